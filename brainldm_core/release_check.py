"""Reading a released set of synthetic brains again: is every file there, whole, and what the table says?

Shares the layout with ``release``, which writes it, and ``release_repair``, which mends it.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .covariates import COLUMNS, MISSING
from .dataset import read_nifti
from .errors import BrainLDMError
from .records import read_record, settings_hash, sha256, write_text
from .release_write import measured_row, pool, voxel_digest

if TYPE_CHECKING:
    import pandas as pd

BIDS, SUMS, VOXELS, REQUESTS, MADE_BY = "bids", "SHA256SUMS", "VOXELS.sha256", "requests.tsv", "brainldm release"
TABLES = ("LICENSE", "README", "T1w.json", "dataset_description.json", "participants.json", "participants.tsv")


def plain_rows(requests: pd.DataFrame) -> list[list[Any]]:
    """Requests as JSON-able rows in model order; a missing one is null."""

    def plain(value: Any) -> Any:
        if value is None or value == MISSING or value != value:
            return None
        return value if isinstance(value, str) else float(value)

    return [[plain(value) for value in row] for row in requests[list(COLUMNS)].itertuples(index=False)]


def files_of(out: Path) -> set[str]:
    """Files of the BIDS folder of a release, relative to ``out``."""
    found = set()
    for folder, _, names in os.walk(out / BIDS):
        place = os.path.relpath(folder, out)
        found.update(f"{place}/{name}" for name in names)
    return found


def write_sums(path: Path, sums: dict[str, str]) -> None:
    """Write checksums by file, as ``sha256sum -c`` reads them."""
    write_text(path, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))


def read_sums(path: Path) -> dict[str, str]:
    """Checksums by file; of a damaged list what can be read, of a missing one none."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def due_volumes(plan: dict[str, Any]) -> list[str]:
    """Names of all volumes of a release, relative to ``out``, in the order of their numbers."""
    from .samples import volume_name  # imports of torch, which a process that reads can do without

    return [f"{BIDS}/{volume_name(identity)}" for identity in range(1, plan["count"] + 1)]


def is_release(out: Path) -> bool:
    """Whether a finished release lies there."""
    return (read_record(out) or {}).get("made_by") == MADE_BY


def verify_release(out: Path, remeasure: int | None = None, workers: int = 0) -> list[str]:
    """Read every file of a finished release again; return what is wrong, nothing if all is well.

    Checked: checksums, missing and extra files, the requests of the table, and of each volume its format, place, shape
    and range, and that no two are the same. Volumes are also measured again and held against the table, all of them or
    ``remeasure`` evenly spread ones. ``workers``: processes that read; 0: this one.
    """
    out = Path(out)
    if not is_release(out):
        return [f"{out}: is not a finished release; run its shards and finish it"]
    record = read_record(out)
    plan, problems = record["settings"], []
    for name in (SUMS, VOXELS, REQUESTS):
        if not (out / name).is_file() or sha256(out / name) != record["outputs"].get(name):
            problems.append(f"{out / name}: is missing or was changed")
    sums, voxels = read_sums(out / SUMS), read_sums(out / VOXELS)
    present, volumes = files_of(out), due_volumes(plan)
    due = {*volumes, *(f"{BIDS}/{name}" for name in TABLES)}
    problems += [f"{out / name}: is missing" for name in sorted(due - present)]
    problems += [f"{out / name}: does not belong to the release" for name in sorted(present - due)]
    table, found = read_participants(out / BIDS / "participants.tsv", plan)
    every = 1 if remeasure is None else -(-plan["count"] // max(1, remeasure))
    rows = [None if table is None or remeasure == 0 or place % every else place for place in range(len(volumes))]
    jobs = [
        (str(out / name), plan, None if row is None else table.iloc[row].to_dict())
        for name, row in zip(volumes, rows, strict=True)
        if name in present
    ]
    digests = {f"{BIDS}/{name}": sha256(out / BIDS / name) for name in TABLES if f"{BIDS}/{name}" in present}
    of_volumes: list[str] = []
    for name, (digest, wrong) in zip(
        (name for name in volumes if name in present), _inspected(jobs, workers), strict=True
    ):
        digests[name] = digest
        of_volumes += wrong
    for name in sorted(digests):
        if digests[name] != sums.get(name):
            same = name.endswith(".gz") and voxels_of(out / name) == voxels.get(name.removesuffix(".gz"))
            problems.append(f"{out / name}: was changed{', though not its voxels' if same else ''}")
    first: dict[str, str] = {}
    for name in sorted(digests):
        if first.setdefault(digests[name], name) != name:
            problems.append(f"{out / name}: is the same as {first[digests[name]]}")
    return problems + found + of_volumes


def voxels_of(path: Path) -> str | None:
    """Checksum of a volume's voxels and header; None where it is missing or damaged."""
    try:
        return voxel_digest(path.read_bytes())
    except (OSError, EOFError, ValueError, zlib.error):
        return None


def _inspected(jobs: list[tuple], workers: int) -> Iterator[tuple[str, list[str]]]:
    """Of each volume its checksum and what is wrong with it, here or in processes."""
    if not workers:
        yield from map(inspect, jobs)
        return
    with pool(workers) as executor:
        yield from executor.map(inspect, jobs, chunksize=8)


def inspect(job: tuple[str, dict[str, Any], dict[str, Any] | None]) -> tuple[str, list[str]]:
    """Checksum of a volume and what is wrong with it, by path, plan and, to measure it again, its row of the table."""
    path, plan, row = job
    return sha256(Path(path)), _check_volume(Path(path), plan, row)


def read_participants(path: Path, plan: dict[str, Any]) -> tuple[pd.DataFrame | None, list[str]]:
    """The table, None where it cannot be held against volumes, and what is wrong with it."""
    import pandas as pd

    from .samples import participant

    try:
        table = pd.read_csv(path, sep="\t", na_values=[MISSING], keep_default_na=False, float_precision="round_trip")
        names = table["participant_id"].tolist()
        same = settings_hash(plain_rows(table)) == plan["requests_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, [f"{path}: cannot be read as the table of this release ({' '.join(str(error).split())[:80]})"]
    if names != [participant(identity) for identity in range(1, plan["count"] + 1)]:
        return None, [f"{path}: has other rows than the {plan['count']} participants, in order"]
    return table, [] if same else [f"{path}: its requested covariates are not those that were drawn"]


def _check_volume(path: Path, plan: dict[str, Any], row: dict[str, Any] | None) -> list[str]:
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
        again = measured_row(volume, affine)
        # Measurement differs by less than this between machines.
        off = [name for name in again if not abs(again[name] - row.get(name, np.nan)) <= 0.05 + 1e-3 * again[name]]
        problems += [f"{path}: {name} is {again[name]:g}, the table says {row.get(name)}" for name in off[:1]]
    return problems
