"""How a release begins: its plan, what is asked for, and which batches are still to be drawn.

The plan is all that decides the bytes of a set, JSON-able; ``OUT/plan.json`` until the set is finished, the settings of
``OUT/record.json`` afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .claims import open_claims, take
from .covariates import COLUMNS, MISSING
from .errors import BrainLDMError
from .morphometry import choose
from .records import atomic_path, read_json, read_record, settings_hash, write_json
from .release_check import REQUESTS, plain_rows
from .release_tables import LICENCE, TRAINING_ROWS
from .release_write import compression
from .samples import sampling_facts
from .sampling import Pipeline

if TYPE_CHECKING:
    import pandas as pd

LOCK, WHOLE = "claims.lock", 0  # piece 0 is the plan and the end of the set, piece b + 1 is batch b


def check_shard(shard: int, shards: int) -> None:
    """Refuse a shard that is not one of 1 to ``shards``."""
    if not 1 <= shard <= shards:
        raise BrainLDMError(f"shard {shard}/{shards}: choose 1/{max(1, shards)} to {max(1, shards)}/{max(1, shards)}")


def release_plan(
    pipeline: Pipeline,
    requests: pd.DataFrame,
    sampler: str = "ddim",
    steps: int = 50,
    seed: int = 0,
    origin: str = TRAINING_ROWS,
    title: str = "Synthetic brains",
    licence: str = LICENCE,
    authors: Sequence[str] = (),
) -> dict[str, Any]:
    """All that decides the bytes of a release, JSON-able. ``origin``: in words, where the requests come from."""
    affine = pipeline.profile.grid.affine
    return {
        "count": len(requests),
        "title": title,
        "licence": licence,
        "authors": list(authors),
        "origin": origin,
        "requests_sha256": settings_hash(plain_rows(requests)),
        "cohort": pipeline.training.get("cohort", MISSING),
        "shape": list(pipeline.profile.grid.shape),
        "affine": affine,
        "sidecar": sampling_facts(pipeline, sampler, steps, seed)
        | {"SkullStripped": bool(pipeline.training.get("brain_only", True)), "Morphometry": choose(affine)},
        "compression": compression(),
    }


def begin_release(out: Path, plan: dict[str, Any], requests: pd.DataFrame) -> bool:
    """Write the plan and the requests, or check that the plan is the same; whether the release is finished already.

    Raises:
        BrainLDMError: ``out`` holds another release.
    """
    if (begun := begun_plan(out)) is None:
        with open_claims(out / LOCK) as claims:
            take(claims, WHOLE, wait=True)
            if (begun := begun_plan(out)) is None:
                write_requests(out, requests)
                write_json(out / "plan.json", begun := plan)
    if begun != plan:
        other = next((key for key in plan if begun.get(key) != plan[key]), "settings")
        raise BrainLDMError(f"{out}: holds another release (its {other} differs); give another --out, or delete it")
    return read_record(out) is not None


def begun_plan(out: Path) -> dict[str, Any] | None:
    """The plan of a release that is begun or finished; None where there is none."""
    if (done := read_record(out)) is not None:
        return done["settings"]
    return read_json(out / "plan.json") if (out / "plan.json").exists() else None


def batch_rows(plan: dict[str, Any], batch: int) -> range:
    """Rows of the requests that a batch has, from 0."""
    size = plan["sidecar"]["BatchSize"]
    return range(batch * size, min((batch + 1) * size, plan["count"]))


def missing_batches(out: Path) -> list[int]:
    """Batches of a begun release that are still to be drawn; none of a finished one."""
    if read_record(out) is not None:
        return []
    plan = read_json(out / "plan.json")
    there = {entry.name for entry in os.scandir(out / "batches")} if (out / "batches").exists() else set()
    return [batch for batch in batches(plan) if marker(out, batch).name not in there]


def batches(plan: dict[str, Any]) -> range:
    """All batches of a release, from 0."""
    return range(-(-plan["count"] // plan["sidecar"]["BatchSize"]))


def write_requests(out: Path, requests: pd.DataFrame) -> None:
    """Keep what is asked for, in years and ml."""
    with atomic_path(out / REQUESTS) as partial:
        requests[list(COLUMNS)].to_csv(partial, sep="\t", index=False, na_rep=MISSING, lineterminator="\n")


def marker(out: Path, batch: int) -> Path:
    """The file that vouches for a batch; written last."""
    return out / "batches" / f"{batch:06d}.json"
