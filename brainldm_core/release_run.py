"""Releases from the command line: a run's own miniature of the paper's set (section 4), and any set in shards.

Where the covariates of a release come from is said in its description: a run draws whole rows of its training cohort,
weights without a cohort draw from the population that ``covariates`` knows.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .covariates import COLUMNS, MISSING, draw_covariates
from .dataset import load_cohort, read_nifti
from .errors import BrainLDMError
from .profiles import Profile
from .records import Record, Run, clear_stage, read_json, read_record, stage_key
from .release import (
    TRAINING_ROWS,
    begun_plan,
    draw_requests,
    finish_release,
    missing_batches,
    release_plan,
    release_shard,
)
from .release_check import RAW, SUMS, is_release, verify_release
from .runner import locked
from .samples import volume_name
from .sampling import Pipeline, load_pipeline

if TYPE_CHECKING:
    import pandas as pd

SET = "set"
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
    if weights is not None and (Path(weights) / "run.json").exists():
        facts, folder = read_json(Path(weights) / "run.json"), Path(weights).resolve()
        run = Run(Profile.model_validate(facts["profile"]), facts["cohort"], facts["seed"], folder.parent)
        return draw_requests(load_cohort(run.stage("cohort")).rows("train"), count, seed), TRAINING_ROWS
    return draw_population(pipeline, count, seed), POPULATION


def release_stage(run: Run, progress: bool = True) -> dict[str, Any]:
    """Ensure a run's own release in ``release/set``: drawn shard by shard, finished, and verified.

    A set begun by ``draw_release`` with the same settings, for instance by the jobs of a cluster, is gone on with.

    Raises:
        BrainLDMError: the profile has no section for it, or the finished set has a problem.
    """
    folder, settings = run.stage("release"), run.profile.release
    if (done := read_record(folder)) is not None:
        return done
    if settings is None:
        raise BrainLDMError(f"profile {run.profile.name}: has no section release; add volumes, steps and shards")
    inputs = {stage: stage_key(run.stage(stage)) for stage in ("cohort", "autoencoder", "diffusion")}
    record = Record(folder, "brainldm miniature", settings.model_dump(mode="json"), inputs, run.seed)
    pipeline, out = load_pipeline(run.folder), folder / SET
    requests, origin = release_requests(pipeline, run.folder, settings.volumes, run.seed)
    how = {"sampler": "ddim", "steps": settings.steps, "seed": run.seed, "origin": origin}
    if begun_plan(out) not in (None, release_plan(pipeline, requests, **how)):  # of earlier weights or settings
        clear_stage(folder)
    for shard in range(settings.shards):
        release_shard(pipeline, requests, out, shard, settings.shards, progress=progress, **how)
    made = finish_release(out, f"Synthetic brains of run {run.name}")
    start = time.perf_counter()
    problems = verify_release(out, None if settings.volumes <= REMEASURED else REMEASURED)
    if problems:
        raise BrainLDMError(f"{problems[0]} ({len(problems)} problems in all); delete {out} and draw it again")
    sizes = [(out / RAW / volume_name(identity)).stat().st_size for identity in range(1, settings.volumes + 1)]
    return record.finish(
        [out / SUMS, out / "record.json"],
        volumes=settings.volumes,
        bytes=sum(sizes),
        seconds_a_volume=round(made["seconds"] / settings.volumes, 4),
        seconds_to_verify=round(time.perf_counter() - start, 1),
        problems=len(problems),
        requests=origin,
    )


def draw_release(
    out: Path,
    weights: Path | None = None,
    count: int | None = None,
    shard: int = 0,
    shards: int = 1,
    steps: int | None = None,
    seed: int | None = None,
    finish: bool = False,
    progress: bool = True,
) -> str:
    """Draw one shard of a set into ``out``; the last shard to come finishes the set. Returns what to tell the user.

    Args:
        weights: a run, whose training rows are requested, or exported weights; None: the weights that ship.
        steps: of DDIM; None: the profile's for releases.
        seed: of requests and noise; None: that of the training.
        finish: draw nothing, only finish what has been drawn.

    Raises:
        BrainLDMError: no number of volumes, no such shard, or ``out`` holds another release.
    """
    out = Path(out)
    drawn = 0
    if not finish:
        if count is None:
            raise BrainLDMError("release: how many volumes in all? give --n, the same for every shard")
        pipeline = load_pipeline(weights)
        if not pipeline.training.get("brain_only", True):
            raise BrainLDMError(
                f"{weights}: draws whole heads, which a release cannot measure; draw them with: brainldm sample"
            )
        usual = (pipeline.profile.release or pipeline.profile.sampling).steps
        seed = int(pipeline.training.get("seed", 0)) if seed is None else seed
        requests, origin = release_requests(pipeline, weights, count, seed)
        drawn = release_shard(
            pipeline, requests, out, shard, shards, "ddim", steps or usual, seed, progress, origin
        )  # fmt: skip
    with locked(out.parent / f".{out.name}.lock"):  # two shards may be the last at once
        if finish or not (missing := missing_batches(out)):
            volumes = finish_release(out)["results"]["volumes"]
            return f"{out}: {volumes:,} volumes, finished; check them with: brainldm verify {out}"
    return f"{out}: shard {shard} of {shards} is done, {drawn:,} volumes drawn now; {missing:,} batches are missing"


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
        Path(out) / RAW / "participants.tsv", sep="\t", na_values=[MISSING], keep_default_na=False
    ).head(count)
    names = [volume_name(int(name[4:])) for name in table["participant_id"]]
    return np.clip(np.stack([read_nifti(Path(out) / RAW / name)[0] for name in names]), 0, 1), table
