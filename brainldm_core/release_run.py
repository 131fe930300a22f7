"""Releases from the command line: a run's own miniature of the paper's set (section 4), and any set in shards.

Where the covariates of a release come from is said in its description: a run draws whole rows of its training cohort,
weights without a cohort draw from the population that ``covariates`` knows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .covariates import COLUMNS, MISSING, draw_covariates
from .dataset import load_cohort, read_nifti
from .errors import BrainLDMError
from .records import Record, Run, clear_stage, read_record, run_in, stage_key
from .release import draw_requests, finish_release, release_shard
from .release_begin import begin_release, begun_plan, check_shard, missing_batches, release_plan
from .release_check import BIDS, SUMS, due_volumes, is_release, verify_release
from .release_tables import TRAINING_ROWS
from .release_write import usual_workers
from .runner import locked
from .samples import volume_name
from .sampling import Pipeline, load_pipeline

if TYPE_CHECKING:
    import pandas as pd

SET = "set"
Requests = Callable[[Pipeline, int, int], "tuple[pd.DataFrame, str]"]
"""Gives the requested rows (years, ml) of a count and a seed, and in words where they come from."""
POPULATION = (
    "drawn from the joint statistics of 291 people of the IXI data set aged 40 to 86, inside the ranges of the training"
)
REMEASURED = 1000  # volumes of a large set that are measured again when it is verified
_BLOCK = 1000


def draw_population(pipeline: Pipeline, count: int, seed: int = 0) -> pd.DataFrame:
    """Covariates (years, ml) of ``count`` people of ``covariates.draw_covariates`` inside the training ranges.

    The first k of many requests are those of a smaller set.

    Raises:
        BrainLDMError: hardly anybody of that population lies inside the training ranges.
    """
    import pandas as pd

    rng, parts = np.random.default_rng(seed), []
    while sum(map(len, parts)) < count:
        people = draw_covariates(_BLOCK, rng)
        for column in COLUMNS[1:]:
            people = people[people[column].between(*pipeline.ranges[column])]
        if len(people) < _BLOCK // 100:
            raise BrainLDMError(
                "requests: the population hardly meets the ranges of these weights; give a run's folder"
            )
        parts.append(people)
    return pd.concat(parts, ignore_index=True)[list(COLUMNS)].head(count)


def release_requests(pipeline: Pipeline, weights: Path | None, count: int, seed: int = 0) -> tuple[pd.DataFrame, str]:
    """Covariates of a release and, in words, where they come from: training rows of a run, else the population.

    Raises:
        BrainLDMError: fewer than one volume asked for.
    """
    if count < 1:
        raise BrainLDMError(f"release of {count} volumes: ask for at least one")
    if (run := run_in(weights)) is not None:
        return draw_requests(load_cohort(run.stage("cohort")).rows("train"), count, seed), TRAINING_ROWS
    return draw_population(pipeline, count, seed), POPULATION


def release_stage(run: Run, progress: bool = True, shard: tuple[int, int] | None = None) -> dict[str, Any]:
    """Ensure a run's own release in ``release/set``: drawn shard by shard, finished, and verified.

    A set begun with the same settings, for instance by the jobs of a cluster, is gone on with. With ``shard``, (i, N),
    only that part is drawn; what it returns is no record.

    Raises:
        BrainLDMError: the profile has no section for it, or the finished set has a problem.
    """
    folder, settings = run.stage("release"), run.profile.release
    out = folder / SET
    if (done := read_record(folder)) is not None and "compression" in (begun_plan(out) or {}):  # of today's layout
        return done
    if settings is None:
        raise BrainLDMError(f"profile {run.profile.name}: has no section release; add volumes, steps and shards")
    inputs = {stage: stage_key(run.stage(stage)) for stage in ("cohort", "autoencoder", "diffusion")}
    record = Record(folder, "brainldm miniature", settings.model_dump(mode="json"), inputs, run.seed)
    pipeline = load_pipeline(run.folder)
    requests, origin = release_requests(pipeline, run.folder, settings.volumes, run.seed)
    how = {"sampler": settings.sampler, "steps": settings.steps, "seed": run.seed, "origin": origin}
    how["title"] = f"Synthetic brains of run {run.name}"
    plan = release_plan(pipeline, requests, **how)
    with locked(folder.with_name(".release.begin.lock"), quiet=True):  # shards may be jobs that begin at once
        if begun_plan(out) not in (None, plan):  # of earlier weights or settings
            clear_stage(folder)
        begin_release(out, plan, requests)
    workers = usual_workers(pipeline.device.type)
    for part in [shard] if shard else [(place, settings.shards) for place in range(1, settings.shards + 1)]:
        drawn = release_shard(pipeline, requests, out, *part, progress=progress, workers=workers, **how)
    if shard:
        return {"seconds": record.seconds, "volumes": drawn}
    made = finish_release(out)
    start = time.perf_counter()
    problems = verify_release(out, REMEASURED, workers)
    if problems:
        raise BrainLDMError(f"{problems[0]} ({len(problems)} problems in all); mend it with: brainldm release verify "
                            f"{out} --repair --weights {run.folder}")  # fmt: skip
    return record.finish(
        [out / SUMS, out / "record.json"],
        volumes=settings.volumes,
        bytes=sum((out / name).stat().st_size for name in due_volumes(made["settings"])),
        seconds_a_volume=round(made["seconds"] / settings.volumes, 4),
        seconds_to_write=round(made["results"]["seconds_writing"] / settings.volumes, 4),
        seconds_to_verify=round(time.perf_counter() - start, 1),
        problems=len(problems),
        requests=origin,
    )


def draw_release(
    out: Path,
    weights: Path | None = None,
    count: int | None = None,
    shard: tuple[int, int] = (1, 1),
    sampler: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    workers: int | None = None,
    requests: Requests | None = None,
    progress: bool = True,
    **about: Any,
) -> str:
    """Draw shard i of N of a set into ``out``; the last shard to come finishes the set. Returns what to tell the user.

    Args:
        weights: a run, whose training rows are requested, or exported weights; None: the weights that ship.
        sampler, steps: None: the profile's for releases.
        seed: of requests and noise; None: that of the training.
        workers: processes that write; None: none on a CPU, up to eight on a GPU.
        requests: other rows than those of ``release_requests``.
        about: title, licence and authors of the set.

    Raises:
        BrainLDMError: no number of volumes, no such shard, or ``out`` holds another release.
    """
    out = Path(out)
    if count is None:
        raise BrainLDMError("release: how many volumes in all? give --n, the same for every shard")
    check_shard(*shard)
    pipeline = load_pipeline(weights)
    if not pipeline.training.get("brain_only", True):
        raise BrainLDMError(
            f"{weights}: draws whole heads, which a release cannot measure; draw them with: brainldm sample"
        )
    usual = pipeline.profile.release or pipeline.profile.sampling
    seed = int(pipeline.training.get("seed", 0)) if seed is None else seed
    rows, origin = requests(pipeline, count, seed) if requests else release_requests(pipeline, weights, count, seed)
    workers = usual_workers(pipeline.device.type) if workers is None else workers
    about |= {"sampler": sampler or usual.sampler, "steps": steps or usual.steps, "seed": seed, "origin": origin}
    drawn = release_shard(pipeline, rows, out, *shard, progress=progress, workers=workers, **about)
    said = f"{out}: shard {shard[0]}/{shard[1]} is done, {drawn:,} volumes drawn now"
    if missing := missing_batches(out):
        return f"{said}; {len(missing):,} batches are missing"
    return f"{said}; {_end(out)}"


def end_release(out: Path) -> str:
    """Write the tables of a set whose shards are all drawn. Returns what to tell the user."""
    return f"{out}: {_end(out)}"


def _end(out: Path) -> str:
    volumes = finish_release(out)["results"]["volumes"]
    return f"the set has {volumes:,} volumes, finished; check them with: brainldm release verify {out}"


def mend_release(out: Path, weights: Path | None = None) -> list[str]:
    """Make again what is missing or damaged in a finished set; return the files that were."""
    from .release_repair import repair_release

    pipeline = load_pipeline(weights)
    return repair_release(out, pipeline, lambda count, seed: release_requests(pipeline, weights, count, seed)[0])


def find_release(folder: Path) -> Path:
    """The finished release in a folder, or in that of a run's release stage.

    Raises:
        BrainLDMError: there is none.
    """
    for place in (Path(folder), Path(folder) / SET):
        if is_release(place):
            return place
    raise BrainLDMError(f"{folder}: is not a finished release; run its shards and finish it")


def read_release(out: Path, count: int | None = None) -> tuple[np.ndarray, pd.DataFrame]:
    """Volumes (N, D, H, W) in [0, 1] and rows (years, ml) of a finished release, all or the first ``count``."""
    import pandas as pd

    table = pd.read_csv(
        Path(out) / BIDS / "participants.tsv", sep="\t", na_values=[MISSING], keep_default_na=False
    ).head(count)
    names = [volume_name(int(name[4:])) for name in table["participant_id"]]
    return np.clip(np.stack([read_nifti(Path(out) / BIDS / name)[0] for name in names]), 0, 1), table
