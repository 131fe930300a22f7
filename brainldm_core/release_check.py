"""Reading a released set of synthetic brains again: is every file there, whole, and what the table says?

Shares the layout with ``release``, which writes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .covariates import COLUMNS, MISSING
from .dataset import read_nifti
from .errors import BrainLDMError
from .records import read_record, settings_hash, sha256
from .samples import measure_all, participant, volume_name

if TYPE_CHECKING:
    import pandas as pd

RAW, SUMS, MADE_BY = "rawdata", "SHA256SUMS", "brainldm release"
TABLES = ("README", "T1w.json", "dataset_description.json", "participants.json", "participants.tsv")


def plain_rows(requests: pd.DataFrame) -> list[list[Any]]:
    """Requests as JSON-able rows in model order; a missing one is null."""

    def plain(value: Any) -> Any:
        if value is None or value == MISSING or value != value:
            return None
        return value if isinstance(value, str) else float(value)

    return [[plain(value) for value in row] for row in requests[list(COLUMNS)].itertuples(index=False)]


def files_of(out: Path) -> set[str]:
    """Files of the BIDS folder of a release, relative to ``out``."""
    return {str(path.relative_to(out)) for path in (out / RAW).rglob("*") if not path.is_dir()}


def is_release(out: Path) -> bool:
    """Whether a finished release lies there."""
    return (read_record(out) or {}).get("made_by") == MADE_BY


def verify_release(out: Path, remeasure: int | None = None) -> list[str]:
    """Read every file of a finished release again; return what is wrong, nothing if all is well.

    Checked: checksums, missing and extra files, the requests of the table, and of each volume its format, place, shape
    and range, and that no two are the same. Volumes are also measured again and held against the table, all of them or
    ``remeasure`` evenly spread ones.
    """
    out = Path(out)
    if not is_release(out):
        return [f"{out}: is not a finished release; run its shards and finish it"]
    record = read_record(out)
    plan, problems = record["settings"], []
    if not (out / SUMS).is_file() or sha256(out / SUMS) != record["outputs"][SUMS]:
        problems.append(f"{out / SUMS}: is missing or was changed")
    lines = (out / SUMS).read_text(encoding="utf-8").splitlines() if (out / SUMS).is_file() else []
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    present = files_of(out)
    ids = range(1, plan["count"] + 1)
    due = {f"{RAW}/{volume_name(identity)}" for identity in ids} | {f"{RAW}/{name}" for name in TABLES}
    problems += [f"{out / name}: is missing" for name in sorted(due - present)]
    problems += [f"{out / name}: does not belong to the release" for name in sorted(present - due)]
    digests = {name: sha256(out / name) for name in sorted(present & due)}
    problems += [f"{out / name}: was changed" for name in digests if digests[name] != sums.get(name)]
    first: dict[str, str] = {}
    for name, digest in digests.items():
        if first.setdefault(digest, name) != name:
            problems.append(f"{out / name}: is the same as {first[digest]}")
    table, found = _read_participants(out / RAW / "participants.tsv", plan)
    problems += found
    every = 1 if remeasure is None else -(-plan["count"] // max(1, remeasure))
    for identity in ids:
        if f"{RAW}/{volume_name(identity)}" in digests:
            row = None if table is None or remeasure == 0 or (identity - 1) % every else table.iloc[identity - 1]
            problems += _check_volume(out / RAW / volume_name(identity), plan, row)
    return problems


def _read_participants(path: Path, plan: dict[str, Any]) -> tuple[pd.DataFrame | None, list[str]]:
    """The table, None where it cannot be held against volumes, and what is wrong with it."""
    import pandas as pd

    try:
        table = pd.read_csv(path, sep="\t", na_values=[MISSING], keep_default_na=False, float_precision="round_trip")
        names = table["participant_id"].tolist()
        same = settings_hash(plain_rows(table)) == plan["requests_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, [f"{path}: cannot be read as the table of this release ({' '.join(str(error).split())[:80]})"]
    if names != [participant(identity) for identity in range(1, plan["count"] + 1)]:
        return None, [f"{path}: has other rows than the {plan['count']} participants, in order"]
    return table, [] if same else [f"{path}: its requested covariates are not those that were drawn"]


def _check_volume(path: Path, plan: dict[str, Any], row: pd.Series | None) -> list[str]:
    """What is wrong with one volume; with a row of the table it is measured again."""
    try:
        volume, affine = read_nifti(path)
    except BrainLDMError as error:
        return [str(error)]
    if list(volume.shape) != plan["shape"]:
        return [f"{path}: has shape {volume.shape}, not {tuple(plan['shape'])}"]
    problems = []
    if not np.allclose(affine, plan["affine"], atol=1e-4):
        problems.append(f"{path}: lies elsewhere in MNI space than the release (its affine differs)")
    if volume.min() < 0 or volume.max() > 1 + 1e-6:
        problems.append(f"{path}: has intensities from {volume.min():g} to {volume.max():g}, not within 0 to 1")
    if row is not None and not problems:
        again = measure_all(volume[None], affine).iloc[0]
        # Measurement differs by less than this between machines.
        off = [
            name for name in again.index if not abs(again[name] - row.get(name, np.nan)) <= 0.05 + 1e-3 * again[name]
        ]
        problems += [f"{path}: {name} is {again[name]:g}, the table says {row.get(name)}" for name in off[:1]]
    return problems
