"""Simulated cohorts on disk: who is in them, made by several processes, kept when interrupted."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from .anatomies import assign_anatomies, ensure_anatomies, facts_of
from .anatomy import Anatomy
from .covariates import COLUMNS, MISSING, draw_covariates
from .dataset import cut_splits, labels_path, save_nifti, save_volume, volume_path, write_tables
from .errors import BrainLDMError
from .manifests import publishable
from .profiles import Grid
from .records import Record, Run, read_json, read_record, settings_hash, write_json
from .simulate import COHORT_SEED, LOOKS, Look, simulate_subject, working_factor

ANATOMIES = "anatomies"  # folder of a cohort in the making
REQUESTED = (*COLUMNS, "intracranial_volume_ml")


def simulate_cohort(run: Run, workers: int = 2, progress: bool = True, labels: Path | None = None) -> dict[str, Any]:
    """Ensure the ``cohort`` stage of a simulated run: volumes, labels and a table of measured covariates.

    Subjects that an earlier, interrupted call finished are kept.

    Args:
        labels: folder of label maps, for the cohorts of people.

    Raises:
        BrainLDMError: another cohort than those of ``LOOKS``, or label maps are missing or no label maps.
    """
    from tqdm import tqdm

    folder = run.stage("cohort")
    if (done := read_record(folder)) is not None:
        return done
    if run.cohort not in LOOKS:
        raise BrainLDMError(
            f"cohort {run.cohort!r}: is not simulated; choose one of {', '.join(LOOKS)}, or prepare a BIDS folder"
        )
    if (run.cohort == "atlas") != (labels is None):
        raise BrainLDMError(f"cohort {run.cohort!r}: " + ("takes no label maps" if labels else "needs label maps"))
    look, size, grid = LOOKS[run.cohort], run.profile.cohort, run.profile.grid
    count = size.train + size.validation + size.test
    spacing = grid.spacing_mm / working_factor(grid)
    settings = {
        "cohort": run.cohort,
        "grid": grid.model_dump(mode="json"),
        "subjects": size.model_dump(mode="json"),
        "look": asdict(look),
        "working_spacing_mm": spacing,
    }
    record = Record(folder, "simulate_run.simulate_cohort", settings, {}, seed=COHORT_SEED)
    sources = ensure_anatomies(labels, folder / ANATOMIES, spacing, workers, look.whole_head)
    facts = {name: facts_of(path) for name, path in sources.items()}
    record.inputs |= {f"anatomy {name}": fact.sha256 for name, fact in facts.items()}
    table = draw_covariates(count, np.random.default_rng(COHORT_SEED))
    ids = [f"sub-{number:04d}" for number in range(1, count + 1)]
    splits = cut_splits(ids, size.model_dump())
    table.insert(0, "participant_id", ids)
    table.insert(1, "session_id", MISSING)
    table.insert(2, "split", [splits[name] for name in ids])
    table["anatomy"] = assign_anatomies(table, facts, np.random.default_rng([COHORT_SEED, 1]))
    key = settings_hash([settings, record.inputs])
    # In the order of their anatomies, so that a worker reads each of them few times.
    jobs = [
        (row["participant_id"], row, sources[row["anatomy"]], folder, key)
        for row in table.sort_values("anatomy", kind="stable").to_dict("records")
    ]
    show = progress and sys.stderr.isatty()
    with tqdm(total=count, desc="simulate", unit="brain", disable=not show, file=sys.stderr) as bar:
        measured = {}
        for name, values in _run_jobs(jobs, grid, look, workers):
            measured[name] = values
            bar.update()
    misses = {}
    for column in ("ventricular_volume_ml", "brain_volume_ml", "intracranial_volume_ml"):
        found = np.array([measured[name][column] for name in ids])
        misses[column] = round(float(np.abs(found / table[column].to_numpy(float) - 1).max()), 4)
        table[column] = found
    write_tables(
        folder,
        table,
        facts={"simulated": True, "brain_only": not look.whole_head, "publishable": publishable(run.cohort)[0]},
    )
    images = [volume_path(folder, name) for name in ids]
    done = record.finish([folder / "participants.tsv", *images], subjects=count, largest_relative_miss=misses)
    shutil.rmtree(folder / ANATOMIES)
    return done


def _simulate_to(job: tuple[str, dict[str, Any], Path, Path, str]) -> tuple[str, dict[str, float]]:
    """Simulate and write one subject, unless its sidecar says that it is there already."""
    name, row, source, folder, key = job
    path = volume_path(folder, name)
    sidecar = path.with_name(path.name.replace(".nii.gz", ".json"))
    if sidecar.exists() and (content := read_json(sidecar)).get("settings") == key:
        return name, content["measured"]
    if _WORKER.get("source") != source:
        _WORKER.update(source=source, anatomy=Anatomy.load(source))
    number = int(name.removeprefix("sub-"))
    subject = simulate_subject(_WORKER["anatomy"], _WORKER["grid"], row, number, _WORKER["look"])
    affine = _WORKER["grid"].affine
    save_volume(path, subject.image, affine)
    save_nifti(labels_path(folder, name), subject.labels, affine)
    requested = {column: row[column] for column in REQUESTED}
    content = {
        "SkullStripped": not _WORKER["look"].whole_head,
        "measured": subject.measured,
        "requested": requested,
        "settings": key,
    }
    write_json(sidecar, content | {"anatomy": row["anatomy"]})
    return name, subject.measured


_WORKER: dict[str, Any] = {}  # what each worker process simulates from


def _start_worker(grid: Grid, look: Look) -> None:
    import torch

    torch.set_num_threads(1)  # one core a worker; results do not depend on the number of workers
    _WORKER.update(grid=grid, look=look)


def _run_jobs(jobs: list[Any], grid: Grid, look: Look, workers: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Subjects as they are finished, by ``workers`` processes (fresh ones: forking after threads can hang)."""
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (grid, look)) as pool:
        yield from pool.map(_simulate_to, jobs, chunksize=2)
