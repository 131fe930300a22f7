"""Making again what is missing or damaged in a finished release, so that it is what it was.

A volume is drawn anew in its own batch and held against the checksum it had. Where only the compressor is another, its
voxels are held against theirs, and the record says that it was compressed anew. Nothing else is accepted: a machine
that draws other voxels cannot repair, and says so.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from .claims import open_claims, take
from .covariates import COLUMNS, MISSING
from .errors import BrainLDMError
from .records import atomic_path, read_record, settings_hash, sha256, write_json
from .release import draw_batch, made_on
from .release_begin import LOCK, WHOLE, batch_rows, release_plan, write_requests
from .release_check import (
    BIDS,
    REQUESTS,
    SUMS,
    TABLES,
    VOXELS,
    due_volumes,
    is_release,
    plain_rows,
    read_sums,
    voxels_of,
    write_sums,
)
from .release_tables import write_tables
from .release_write import encode, measured, voxel_digest
from .sampling import Pipeline


def repair_release(
    out: Path,
    pipeline: Pipeline,
    requests: Callable[[int, int], pd.DataFrame] | None = None,
) -> list[str]:
    """Restore volumes, tables and checksums of a finished release; return the files that were made again.

    Args:
        pipeline: of the weights that the release was drawn with.
        requests: gives the rows of a count and a seed again, in case both copies in the release are damaged.

    Raises:
        BrainLDMError: other weights, a machine that draws other voxels, or a record that the result does not fit.
    """
    out = Path(out)
    if not is_release(out):
        raise BrainLDMError(f"{out}: is not a finished release; run its shards and finish it")
    with open_claims(out / LOCK) as claims:
        take(claims, WHOLE, wait=True)
        try:
            return _repair(out, pipeline, requests)
        finally:
            (out / LOCK).unlink(missing_ok=True)


def _repair(out: Path, pipeline: Pipeline, requests: Callable[[int, int], pd.DataFrame] | None) -> list[str]:
    record = read_record(out)
    plan, whole = record["settings"], lambda name: _is(out / name, record["outputs"][name])
    _check_maker(pipeline, plan)
    rows, mended = _requests(out, plan, requests), []
    if not whole(REQUESTS):
        write_requests(out, rows)
        mended.append(REQUESTS)
    sums, voxels = read_sums(out / SUMS), read_sums(out / VOXELS)
    volumes, trusted = due_volumes(plan), whole(SUMS)
    bad = [place for place, name in enumerate(volumes) if not _is(out / name, sums.get(name))]
    if not trusted and whole(VOXELS):  # the list of voxels says which volumes are whole
        bad = [place for place in bad if voxels_of(out / volumes[place]) != voxels.get(_plain(volumes[place]))]
    for batch in sorted({place // plan["sidecar"]["BatchSize"] for place in bad}):
        drawn = draw_batch(pipeline, rows, plan, out, batch)
        for place, path, volume in zip(batch_rows(plan, batch), drawn.paths, drawn.volumes, strict=True):
            if place in bad:
                name = volumes[place]
                packed, plain = encode(volume, drawn.affine)
                _accept(path, packed, plain, sums.get(name), voxels.get(_plain(name)), record)
                with atomic_path(path) as partial:
                    partial.write_bytes(packed)
                mended.append(name)
    found = {name: sha256(out / name) for name in volumes}
    if not whole(VOXELS):
        write_sums(out / VOXELS, {_plain(name): voxel_digest((out / name).read_bytes()) for name in volumes})
        mended.append(VOXELS)
    mended += _tables(out, plan, rows, sums, trusted)
    found |= {f"{BIDS}/{name}": sha256(out / BIDS / name) for name in TABLES}
    if found != sums or not trusted:
        write_sums(out / SUMS, found)
        mended.append(SUMS)
    anew = [name for name in volumes if trusted and found[name] != sums[name]]
    for name in (VOXELS, REQUESTS, *(() if anew else (SUMS,))):
        if not whole(name):
            raise BrainLDMError(
                f"{out / name}: was made again and is not what the record says; one of record and software "
                "was changed, so draw the release again"
            )
    if anew:
        record["outputs"][SUMS] = sha256(out / SUMS)
        again = {"volumes": anew, "made_on": made_on(pipeline)}
        record["results"]["compressed_anew"] = [*record["results"].get("compressed_anew", []), again]
        write_json(out / "record.json", record)
    return mended


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", na_values=[MISSING], keep_default_na=False, float_precision="round_trip")


def _is(path: Path, digest: str | None) -> bool:
    return path.is_file() and sha256(path) == digest


def _plain(name: str) -> str:
    return name.removesuffix(".gz")


def _check_maker(pipeline: Pipeline, plan: dict[str, Any]) -> None:
    """Refuse weights, or a precision, that give other volumes."""
    side = plan["sidecar"]
    mine = release_plan(pipeline, pd.DataFrame(columns=list(COLUMNS)), side["Sampler"], side["Steps"], side["Seed"])[
        "sidecar"
    ]
    for key in mine:
        if mine[key] != side.get(key):
            raise BrainLDMError(
                f"release: was drawn with another {key} ({str(side.get(key))[:90]}); give its weights as --weights, on "
                "the kind of machine that drew it"
            )


def _accept(path: Path, packed: bytes, plain: bytes, due: str | None, voxels: str | None, record: dict) -> None:
    """Refuse a volume made again that is neither the same file nor the same voxels."""
    same_file = hashlib.sha256(packed).hexdigest() == due
    if not same_file and hashlib.sha256(plain).hexdigest() != voxels:
        raise BrainLDMError(
            f"{path}: this machine draws other voxels than the release has; repair it where it was made "
            f"({'; '.join(record['results']['made_on'])})"
        )


def _requests(out: Path, plan: dict[str, Any], again: Callable | None) -> pd.DataFrame:
    """The requested rows: of either copy in the release, whichever is whole, else drawn again."""

    ways: tuple[Callable[[], pd.DataFrame], ...] = (
        lambda: _read(out / REQUESTS),
        lambda: _read(out / BIDS / "participants.tsv"),
        lambda: again(plan["count"], plan["sidecar"]["Seed"]),
    )
    for way in ways:
        try:
            rows = way()[list(COLUMNS)]
            if settings_hash(plain_rows(rows)) == plan["requests_sha256"]:
                return rows
        except (OSError, ValueError, KeyError, TypeError, BrainLDMError):
            continue
    raise BrainLDMError(f"{out}: both copies of what was requested are damaged; draw the release again")


def _tables(out: Path, plan: dict[str, Any], rows: pd.DataFrame, sums: dict[str, str], trusted: bool) -> list[str]:
    """Write the tables again where one is not what it was; volumes are measured anew if their table is lost."""
    names = [f"{BIDS}/{name}" for name in TABLES]
    bad = [name for name in names if not _is(out / name, sums.get(name))]
    if not bad and trusted:
        return []
    table = out / BIDS / "participants.tsv"
    if f"{BIDS}/{table.name}" not in bad and trusted:
        kept = _read(table)
    else:
        entries = []
        for place, name in enumerate(due_volumes(plan)):
            asked = dict(zip(COLUMNS, plain_rows(rows.iloc[[place]])[0], strict=True))
            found = measured(gzip.decompress((out / name).read_bytes()))
            entries.append({"participant_id": Path(name).parts[1]} | asked | found)
        kept = pd.DataFrame(entries)
    write_tables(out, plan, kept)
    return bad
