"""A public set of synthetic brains in BIDS, as the paper's 100,000 (section 4): sharded, resumable, verified.

``draw_requests``, ``release_shard`` for each shard, ``finish_release``, then ``verify_release`` of ``release_check``;
``release_repair`` makes again what is missing or damaged.

``OUT/bids/`` is the BIDS folder; ``OUT/SHA256SUMS`` names every file in it, ``OUT/VOXELS.sha256`` has checksums of the
volumes before compression, ``OUT/requests.tsv`` what was asked for, and ``OUT/record.json`` what all was made from.
Until it is finished, ``OUT/plan.json`` and ``OUT/batches/`` hold what is to be done and what is done. What is true of
all volumes lies in one ``T1w.json`` at the top, which BIDS lets every volume inherit; what differs is a row of
``participants.tsv``. So 100,000 volumes need no 100,000 sidecars.

Law 3: rows are cut into batches once for all, and a shard is every so-manyth batch. A volume therefore has the same
bytes for any number of shards, writers, order or restart, on one device and thread count.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .claims import give_back, open_claims, take
from .covariates import COLUMNS
from .errors import BrainLDMError
from .records import Record, read_json, read_record, sha256
from .release_begin import LOCK, WHOLE, batch_rows, batches, begin_release, check_shard, marker, missing_batches
from .release_begin import begun_plan as begun_plan
from .release_begin import release_plan as release_plan
from .release_check import BIDS, MADE_BY, REQUESTS, SUMS, TABLES, VOXELS, files_of, plain_rows, write_sums
from .release_check import verify_release as verify_release
from .release_tables import write_tables
from .release_write import Batch, writing
from .samples import participant, progress_bar, quantise, volume_name
from .sampling import Pipeline, sample

if TYPE_CHECKING:
    import pandas as pd

AGAIN = "run all shards again: what is done is kept"


def draw_requests(rows: pd.DataFrame, count: int, seed: int = 0) -> pd.DataFrame:
    """Covariates (years, ml) of ``count`` volumes: whole training rows, drawn with replacement (table 1 of the paper).

    Whole rows keep the joint distribution. The first k of many requests are those of a smaller set.

    Raises:
        BrainLDMError: no rows to draw from, or fewer than one volume asked for.
    """
    if count < 1 or not len(rows):
        raise BrainLDMError(
            f"release of {count} volumes from {len(rows)} training rows: at least one of each is needed"
        )
    chosen = np.random.default_rng(seed).integers(0, len(rows), count)
    return rows[list(COLUMNS)].iloc[chosen].reset_index(drop=True)


def release_shard(
    pipeline: Pipeline,
    requests: pd.DataFrame,
    out: Path,
    shard: int = 1,
    shards: int = 1,
    progress: bool = True,
    workers: int = 0,
    **how: Any,
) -> int:
    """Draw shard ``shard`` of ``shards``, counted from 1, of a release into ``out``; return how many were drawn.

    Done batches are kept, so a killed shard goes on where it was. Shards may run side by side, the same one too: each
    process claims its batch. A restart may have another number of shards. Row i of ``requests`` becomes sample i + 1.

    Args:
        workers: processes that compress, measure and write while the next batch is drawn; 0: this one does.
        how: of ``release_plan``.

    Raises:
        BrainLDMError: no such shard, or ``out`` holds another release.
    """
    check_shard(shard, shards)
    plan, out = release_plan(pipeline, requests, **how), Path(out)
    if begin_release(out, plan, requests):
        return 0
    with open_claims(out / LOCK) as claims:
        todo = [batch for batch in missing_batches(out) if batch % shards == shard - 1]
        drawn, shared = 0, False
        give = lambda path: give_back(claims, int(path.stem) + 1)  # noqa: E731
        with (
            progress_bar(f"release {shard}/{shards}", progress) as seen,
            writing(workers, give) as write,
        ):
            for place, batch in enumerate(todo):
                if not take(claims, batch + 1):
                    if not shared:
                        print(f"{out}: another brainldm is at work on this shard; sharing it", file=sys.stderr)
                    shared = True
                elif not marker(out, batch).exists():
                    write(draw_batch(pipeline, requests, plan, out, batch, _part(seen, place, len(todo))))
                    drawn += len(batch_rows(plan, batch))
                else:  # drawn since we looked
                    give_back(claims, batch + 1)
    return drawn


def _part(seen: Callable[[int, int], None], place: int, parts: int) -> Callable[[int, int], None]:
    return lambda done, total: seen(place * total + done, parts * total)


def draw_batch(
    pipeline: Pipeline,
    requests: pd.DataFrame,
    plan: dict[str, Any],
    out: Path,
    batch: int,
    progress: Callable[[int, int], None] | None = None,
) -> Batch:
    """Draw the volumes of one batch, to be written to ``out``."""
    start = time.perf_counter()
    side, rows = plan["sidecar"], requests.iloc[batch_rows(plan, batch)]
    ids = [place + 1 for place in batch_rows(plan, batch)]
    volumes = sample(pipeline, rows, ids, side["Sampler"], side["Steps"], seed=side["Seed"], progress=progress)
    entries = [
        {"participant_id": participant(identity)} | dict(zip(COLUMNS, asked, strict=True))
        for identity, asked in zip(ids, plain_rows(rows), strict=True)
    ]
    return Batch(
        marker=marker(out, batch),
        paths=[out / BIDS / volume_name(identity) for identity in ids],
        rows=entries,
        volumes=quantise(volumes),
        affine=pipeline.profile.grid.affine,
        made_on=made_on(pipeline),
        seconds=time.perf_counter() - start,
    )


def made_on(pipeline: Pipeline) -> str:
    """The kind of machine that draws; law 3 holds within one."""
    device = pipeline.device.type if pipeline.device.type != "cuda" else torch.cuda.get_device_name(pipeline.device)
    return f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def finish_release(out: Path) -> dict[str, Any]:
    """Write tables, README and checksums once every batch is whole; return the record. Done once, it is only read.

    Raises:
        BrainLDMError: batches are missing, a volume was damaged (its batch is forgotten, so that its shard draws it
            again), or a file is there that does not belong.
    """
    out = Path(out)
    if not read_record(out):
        read_json(out / "plan.json")  # or say that there is none
    with open_claims(out / LOCK) as claims:
        take(claims, WHOLE, wait=True)
        done = read_record(out) or _finish(out)
        shutil.rmtree(out / "batches", ignore_errors=True)
        for left in ("plan.json", LOCK):
            (out / left).unlink(missing_ok=True)
    return done


def _finish(out: Path) -> dict[str, Any]:
    import pandas as pd

    plan = read_json(out / "plan.json")
    record = Record(out, MADE_BY, plan, plan["sidecar"]["CheckpointSHA256"], plan["sidecar"]["Seed"])
    if missing := missing_batches(out):
        raise BrainLDMError(f"{out}: {len(missing)} of {len(batches(plan))} batches are missing; {AGAIN}")
    rows, sums, voxels, damaged, made, seconds = [], {}, {}, [], set(), {"seconds": 0.0, "writing": 0.0}
    for batch in batches(plan):
        content, whole = read_json(marker(out, batch)), True
        for entry in content["volumes"]:
            name = f"{BIDS}/{volume_name(int(entry['row']['participant_id'][4:]))}"
            if not (out / name).is_file() or sha256(out / name) != entry["sha256"]:
                damaged.append(out / name)
                whole = False
            sums[name], voxels[name.removesuffix(".gz")] = entry["sha256"], entry["voxels"]
            rows.append(entry["row"])
        if not whole:
            marker(out, batch).unlink(missing_ok=True)
        made.add(content["made_on"])
        seconds = {name: value + content[name] for name, value in seconds.items()}
    if damaged:
        raise BrainLDMError(f"{damaged[0]}: {len(damaged)} volumes are missing or changed since drawn; {AGAIN}")
    there = files_of(out)
    for left in [name for name in there if name.rpartition("/")[2].startswith(".partial-")]:
        (out / left).unlink()  # of a process that was killed while it wrote
        there.remove(left)
    if extra := sorted(there - {*sums, *(f"{BIDS}/{name}" for name in TABLES)}):
        raise BrainLDMError(f"{out / extra[0]}: does not belong to this release; remove it ({len(extra)} such files)")
    write_tables(out, plan, pd.DataFrame(rows))
    write_sums(out / VOXELS, voxels)
    write_sums(out / SUMS, sums | {f"{BIDS}/{name}": sha256(out / BIDS / name) for name in TABLES})
    record.earlier_seconds = sum(seconds.values())
    rates = {"seconds_drawing": round(seconds["seconds"], 2), "seconds_writing": round(seconds["writing"], 2)}
    outputs = [out / name for name in (SUMS, VOXELS, REQUESTS)]
    return record.finish(outputs, volumes=plan["count"], made_on=sorted(made), **rates)
