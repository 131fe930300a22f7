"""Real scans: from a BIDS folder of T1w volumes and its table to a cohort in MNI space with covariates.

Table errors stop before anything is written. A scan that cannot be used is listed with its reason and the others go
on; a second start keeps the scans that are done. Like the paper (section 2.3) scans are aligned rigidly and resampled
once; bias is not corrected and nothing is removed, so a whole head stays one.
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .brain_extraction import load_extractor
from .covariates import KEYS, MISSING, check_table, read_table
from .dataset import assign_splits, scan_name, volume_path, write_tables
from .errors import BrainLDMError
from .manifests import find_manifest, map_columns, publishable
from .quality import draw_quality, flag_outliers
from .quality_page import write_page
from .records import Record, Run, read_json, read_record, settings_hash, sha256, write_json, write_text
from .scans import METHOD, Job, Preparation, prepare_scan

if TYPE_CHECKING:
    import pandas as pd

QUALITY = ("source", "brain_only", "correlation", "mutual_information", "rotation_degrees", "scale", "white_level")
QUALITY += ("brain_extraction", "brain_ml", "bias_percent")


def find_scans(bids: Path) -> dict[tuple[str, str], Path]:
    """T1w scans by (participant_id, session_id): ``sub-*/[ses-*/]anat/*_T1w.nii[.gz]``, the first where there are runs.

    Raises:
        BrainLDMError: this is not a BIDS folder of T1w scans.
    """
    bids = Path(bids)
    if not bids.is_dir():
        raise BrainLDMError(f"{bids}: no such folder; give a BIDS folder")
    if not (bids / "participants.tsv").is_file():
        raise BrainLDMError(f"{bids}: is not a BIDS folder with a table: participants.tsv is missing; add it")
    scans: dict[tuple[str, str], Path] = {}
    found = [*bids.glob("sub-*/anat/*_T1w.nii*"), *bids.glob("sub-*/ses-*/anat/*_T1w.nii*")]
    for path in sorted(path for path in found if path.name.endswith((".nii", ".nii.gz"))):
        parts = path.relative_to(bids).parts
        scans.setdefault((parts[0], parts[1] if len(parts) == 4 else MISSING), path)
    if not scans:
        raise BrainLDMError(f"{bids}: has no T1w scans; they belong in sub-*/[ses-*/]anat/*_T1w.nii.gz")
    return scans


def read_subjects(bids: Path, run: Run) -> tuple[pd.DataFrame, dict[tuple[str, str], Path], list[tuple[str, str]]]:
    """Checked rows that have a scan, the scans, and keys of rows without one.

    Raises:
        BrainLDMError: the folder is not BIDS, or its table is wrong; see ``covariates.check_table``.
    """
    bids = Path(bids)
    scans = find_scans(bids)
    source = bids / "participants.tsv"
    raw = read_table(source)
    manifest = find_manifest(run.cohort, bids.resolve().name)
    if manifest and manifest.kind == "simulated":
        raise BrainLDMError(f"cohort {manifest.name!r} is a simulated one; give your scans another name: --cohort NAME")
    table = map_columns(raw, source, manifest)
    table = check_table(table, source, allow_missing=run.profile.diffusion.mask_channels)
    if "session_id" not in raw:  # one session each: the table need not name it
        sessions = {person: [s for p, s in scans if p == person] for person, _ in scans}
        table["session_id"] = [(sessions.get(person) or [MISSING])[0] for person in table["participant_id"]]
    keys = list(table[list(KEYS)].itertuples(index=False, name=None))
    absent = sorted(set(scans) - set(keys))
    if absent:
        raise BrainLDMError(
            f"{source}: has no row ({absent[0][0]}, {absent[0][1]}) for {scans[absent[0]].relative_to(bids)}; "
            "add the row (column session_id names the session) or take the scan out"
        )
    rows = table[[key in scans for key in keys]].reset_index(drop=True)
    if rows["participant_id"].nunique() < 3:
        raise BrainLDMError(f"{bids}: has scans of fewer than 3 participants, one for each split; add scans")
    return rows, scans, [key for key in keys if key not in scans]


def prepare_all(jobs: list[Job], workers: int) -> list[dict[str, Any]]:
    """Results of ``prepare_scan`` in order, from several processes, with a progress bar on a terminal."""
    from tqdm.auto import tqdm

    with ExitStack() as stack:
        results = map(prepare_scan, jobs)
        if workers > 1 and len(jobs) > 1:
            pool = stack.enter_context(ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")))
            stack.callback(pool.shutdown, wait=True, cancel_futures=True)
            results = pool.map(prepare_scan, jobs)
        bar = tqdm(results, "align", len(jobs), disable=not sys.stderr.isatty(), unit="scan", file=sys.stderr)
        try:
            return list(bar)
        except BrokenProcessPool:
            raise BrainLDMError(
                "a worker was killed, perhaps for want of memory; start again with fewer: finished scans are kept"
            ) from None


def prepare_bids(
    bids: Path, run: Run, out: Path | None = None, workers: int = 2, preparation: Preparation | None = None
) -> dict[str, Any]:
    """Ensure the ``cohort`` stage from a BIDS folder: aligned volumes, checked covariates, splits, quality, failures.

    ``out``: another folder for the cohort. Done before with the same table, scans and settings: returns at once.
    """
    import pandas as pd

    preparation = preparation or Preparation()
    folder = Path(out) if out is not None else run.stage("cohort")
    done = read_record(folder) if (folder / "participants.tsv").exists() else None
    if done is not None and not Path(bids).exists():
        return done
    rows, scans, absent = read_subjects(bids, run)
    bids = Path(bids)
    settings = {"cohort": run.cohort, "grid": run.profile.grid.model_dump(mode="json"), "method": METHOD}
    settings |= preparation.settings()
    facts = [(str(path.relative_to(bids)), path.stat().st_size, path.stat().st_mtime_ns) for path in scans.values()]
    listing = settings_hash([settings, sha256(bids / "participants.tsv"), run.profile.diffusion.mask_channels, facts])
    if done is not None and done["results"].get("listing") == listing:
        return done
    if preparation.brain_extraction:
        load_extractor()  # not at the first scan, but before anything is written
    _claim(folder, bids)
    record = Record(
        folder, "preprocess.prepare_bids", settings, {"participants.tsv": sha256(bids / "participants.tsv")}
    )
    keys = list(rows[list(KEYS)].itertuples(index=False, name=None))
    jobs = [Job(scans[key], volume_path(folder, *key), run.profile.grid, preparation) for key in keys]
    results = prepare_all(jobs, workers)
    failures = [(*key, result["failed"]) for key, result in zip(keys, results, strict=True) if "failed" in result]
    good = ["failed" not in result for result in results]
    if not any(good):
        (folder / "dataset_description.json").unlink()
        if not any(folder.iterdir()):
            folder.rmdir()
        raise BrainLDMError(f"{bids}: none of {len(keys)} scans could be used; the first: {failures[0][2]}")
    failures += [(*key, "row without a T1w scan") for key in absent]
    _write_rows(folder / "failed.tsv", pd.DataFrame(failures, columns=[*KEYS, "reason"]))
    table = rows[good].reset_index(drop=True)
    quality = pd.DataFrame([result for result in results if "failed" not in result])[list(QUALITY)]
    quality = pd.concat([table[list(KEYS)], quality], axis=1)
    quality["flagged"] = flag_outliers(quality)
    _write_rows(folder / "quality.tsv", quality.replace({"flagged": {"": MISSING}}))
    splits = assign_splits(table["participant_id"])
    table.insert(2, "split", [splits[person] for person in table["participant_id"]])
    brain_only = bool(quality["brain_only"].all())
    about = {"simulated": False, "brain_only": brain_only, "publishable": publishable(run.cohort)[0]}
    write_tables(folder, table, run.cohort, about)
    draw_quality(folder, quality, run.profile.grid)
    write_page(folder, run.cohort, quality, failures, run.profile.grid, preparation)
    _tell(failures, quality)
    record.inputs["scans"] = settings_hash([result["key"] for result in results if "failed" not in result])
    volumes = [volume_path(folder, *key) for key, fine in zip(keys, good, strict=True) if fine]
    return record.finish(
        [folder / "participants.tsv", *volumes],
        listing=listing,
        scans=len(volumes),
        failed=len(failures),
        flagged=int((quality["flagged"] != "").sum()),
        brain_only=brain_only,
        brains_extracted=int(quality["brain_ml"].notna().sum()),
        correlation_median=round(float(quality["correlation"].median()), 4),
    )


def _claim(folder: Path, bids: Path) -> None:
    """Take a folder that is new, empty or a cohort of ours; a finished one becomes unfinished."""
    description = folder / "dataset_description.json"
    if folder.is_dir() and any(entry.name[0] != "." for entry in folder.iterdir()):
        if not description.exists() or "BrainLDM" not in read_json(description):
            raise BrainLDMError(f"{folder}: holds other files; give --out a new or empty folder")
    elif folder.exists() and not folder.is_dir():
        raise BrainLDMError(f"{folder}: is a file; give --out a new or empty folder")
    if bids.resolve() in folder.resolve().parents:
        raise BrainLDMError(f"{folder}: lies inside the scans' own folder; give --out a folder elsewhere")
    write_json(description, {"Name": bids.resolve().name, "BIDSVersion": "1.10.0", "BrainLDM": {"finished": False}})
    (folder / "record.json").unlink(missing_ok=True)


def _write_rows(path: Path, table: pd.DataFrame) -> None:
    write_text(path, table.to_csv(sep="\t", index=False, na_rep=MISSING, lineterminator="\n"))


def _tell(failures: list[tuple[str, str, str]], quality: pd.DataFrame) -> None:
    """List on standard error what failed and what should be looked at."""
    for person, session, reason in failures:
        print(f"not used: {scan_name(person, session)}: {reason}", file=sys.stderr)
    for row in quality[quality["flagged"] != ""].itertuples():
        print(f"look at: {scan_name(row.participant_id, row.session_id)}: {row.flagged}", file=sys.stderr)
