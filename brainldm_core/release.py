"""A public set of synthetic brains in BIDS, as the paper's 100,000 (section 4): sharded, resumable, verified.

``draw_requests``, ``release_shard`` for each shard, ``finish_release``, then ``verify_release`` of ``release_check``.

``OUT/rawdata/`` is the BIDS folder; ``OUT/SHA256SUMS`` names every file in it and ``OUT/record.json`` says what it was
made from. Until it is finished, ``OUT/plan.json`` and ``OUT/batches/`` hold what is to be done and what is done. What
is true of all volumes lies in one ``T1w.json`` at the top, which BIDS lets every volume inherit; what differs is a row
of ``participants.tsv``. So 100,000 volumes need no 100,000 sidecars.

Law 3: rows are cut into batches once for all, and a shard is every so-manyth batch. A volume therefore has the same
bytes for any number of shards, order or restart, on one device and thread count.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .covariates import COLUMNS, MISSING
from .dataset import read_nifti, save_volume
from .errors import BrainLDMError
from .manifests import publishable
from .records import Record, read_json, read_record, settings_hash, sha256, write_json, write_text
from .release_check import MADE_BY, RAW, SUMS, TABLES, files_of, plain_rows
from .release_check import verify_release as verify_release
from .samples import (
    measure_all,
    participant,
    progress_bar,
    quantise,
    sampling_facts,
    volume_name,
    write_participants,
)
from .sampling import Pipeline, sample

if TYPE_CHECKING:
    import pandas as pd

LICENCE = "CC-BY-4.0"
TRAINING_ROWS = "whole rows of the training cohort, drawn with replacement"
_README = """{title}
{line}

{count} T1-weighted brain volumes of no person, drawn from a latent diffusion model (Pinaya et al. 2022,
arXiv 2209.07162) with brainldm. They are synthetic: no volume is a scan, and none is fit for clinical use.

Volumes: sub-NNNNNN/anat/sub-NNNNNN_T1w.nii.gz, {shape} voxels, in MNI space (RAS), intensities from 0 to 1 in
255 steps. T1w.json holds for all of them. Table: participants.tsv, columns explained in participants.json. Covariates
were requested jointly: {origin}. Columns measured_* were measured in the volume.

Trained on: {cohort}. {terms}
Check the files with: sha256sum -c SHA256SUMS (in the folder above this one).
"""


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
    shard: int = 0,
    shards: int = 1,
    sampler: str = "ddim",
    steps: int = 50,
    seed: int = 0,
    progress: bool = True,
    origin: str = TRAINING_ROWS,
) -> int:
    """Draw one of ``shards`` parts of a release into ``out``; return how many volumes were drawn now.

    Done batches are kept, so a killed shard goes on where it was. Shards may run side by side, and a restart may have
    another number of them. Row i of ``requests`` becomes sample i + 1; ``origin``: where rows come from.

    Raises:
        BrainLDMError: no such shard, or ``out`` holds another release.
    """
    if not 0 <= shard < shards:
        raise BrainLDMError(f"shard {shard} of {shards}: choose 0 to {shards - 1}")
    out, size = Path(out), pipeline.profile.sampling.batch_size
    if _begin(out, release_plan(pipeline, requests, sampler, steps, seed, origin)):
        return 0
    todo = [
        batch
        for batch in range(-(-len(requests) // size))
        if batch % shards == shard and not _marker(out, batch).exists()
    ]
    drawn = 0
    with progress_bar(f"release {shard + 1}/{shards}", progress) as seen:
        for place, batch in enumerate(todo):
            rows = requests.iloc[batch * size : (batch + 1) * size]
            bar = _part(seen, place, len(todo))
            drawn += _draw_batch(pipeline, rows, out, batch, {"sampler": sampler, "steps": steps, "seed": seed}, bar)
    return drawn


def _part(seen: Callable[[int, int], None], place: int, parts: int) -> Callable[[int, int], None]:
    return lambda done, total: seen(place * total + done, parts * total)


def release_plan(
    pipeline: Pipeline, requests: pd.DataFrame, sampler: str, steps: int, seed: int, origin: str = TRAINING_ROWS
) -> dict[str, Any]:
    """All that decides the bytes of a release, JSON-able."""
    return {
        "count": len(requests),
        "origin": origin,
        "requests_sha256": settings_hash(plain_rows(requests)),
        "cohort": pipeline.training.get("cohort", MISSING),
        "shape": list(pipeline.profile.grid.shape),
        "affine": pipeline.profile.grid.affine,
        "sidecar": sampling_facts(pipeline, sampler, steps, seed),
    }


def begun_plan(out: Path) -> dict[str, Any] | None:
    """The plan of a release that is begun or finished; None where there is none."""
    if (done := read_record(out)) is not None:
        return done["settings"]
    return read_json(out / "plan.json") if (out / "plan.json").exists() else None


def missing_batches(out: Path) -> int:
    """How many batches of a begun release are still to be drawn; 0 for a finished one."""
    if read_record(out) is not None:
        return 0
    plan = read_json(out / "plan.json")
    return sum(not _marker(out, batch).exists() for batch in range(-(-plan["count"] // plan["sidecar"]["BatchSize"])))


def _begin(out: Path, plan: dict[str, Any]) -> bool:
    """Write the plan, or check that it is the same; whether the release is finished already."""
    begun = begun_plan(out)
    if begun is None:
        write_json(out / "plan.json", plan)
    elif begun != plan:
        other = next((key for key in plan if begun.get(key) != plan[key]), "settings")
        raise BrainLDMError(f"{out}: holds another release (its {other} differs); give another --out, or delete it")
    return read_record(out) is not None


def _marker(out: Path, batch: int) -> Path:
    return out / "batches" / f"{batch:06d}.json"


def _draw_batch(pipeline: Pipeline, rows: pd.DataFrame, out: Path, batch: int, how: dict, bar: Callable) -> int:
    """Draw, keep and measure one batch; its marker is written last and vouches for its files."""
    start = time.perf_counter()
    ids = [int(row) + 1 for row in rows.index]
    volumes = quantise(sample(pipeline, rows, ids, **how, progress=bar)) / np.float32(255)
    affine = pipeline.profile.grid.affine
    entries = []
    for place, (identity, asked) in enumerate(zip(ids, plain_rows(rows), strict=True)):
        path = out / RAW / volume_name(identity)
        save_volume(path, volumes[place], affine)
        measured = measure_all(*_read_back(path, volumes[place], affine)).iloc[0].to_dict()
        row = {"participant_id": participant(identity)} | dict(zip(COLUMNS, asked, strict=True))
        entries.append({"row": row | measured, "sha256": sha256(path)})
    device = pipeline.device.type if pipeline.device.type != "cuda" else torch.cuda.get_device_name(pipeline.device)
    made_on = f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    seconds = round(time.perf_counter() - start, 2)
    write_json(_marker(out, batch), {"made_on": made_on, "seconds": seconds, "volumes": entries})
    return len(ids)


def _read_back(path: Path, volume: np.ndarray, affine: Any) -> tuple[np.ndarray, Any]:
    """The volume as a reader finds it, (1, D, H, W): rounding of a last digit may carry a voxel over a threshold."""
    try:
        volume, affine = read_nifti(path)
    except BrainLDMError:  # an empty volume, as an untrained network may give; verification says so
        pass
    return volume[None], affine


def finish_release(out: Path, title: str = "Synthetic brains", licence: str = LICENCE) -> dict[str, Any]:
    """Write tables, README and checksums once every batch is whole; return the record. Done once, it is only read.

    Raises:
        BrainLDMError: batches are missing, a volume was damaged (its batch is forgotten, so that its shard draws it
            again), or a file is there that does not belong.
    """
    import pandas as pd

    out = Path(out)
    if (done := read_record(out)) is not None:
        return done
    plan = read_json(out / "plan.json")
    record = Record(out, MADE_BY, plan, plan["sidecar"]["CheckpointSHA256"], plan["sidecar"]["Seed"])
    size = plan["sidecar"]["BatchSize"]
    markers = [_marker(out, batch) for batch in range(-(-plan["count"] // size))]
    again = "run all shards again: what is done is kept"
    if missing := [path for path in markers if not path.exists()]:
        raise BrainLDMError(f"{out}: {len(missing)} of {len(markers)} batches are missing; {again}")
    contents, sums, damaged = [read_json(path) for path in markers], {}, []
    for path, content in zip(markers, contents, strict=True):
        for entry in content["volumes"]:
            volume = out / RAW / volume_name(int(entry["row"]["participant_id"][4:]))
            if not volume.is_file() or sha256(volume) != entry["sha256"]:
                damaged.append(volume)
                path.unlink(missing_ok=True)
            sums[str(volume.relative_to(out))] = entry["sha256"]
    if damaged:
        raise BrainLDMError(f"{damaged[0]}: {len(damaged)} volumes are missing or changed since drawn; {again}")
    raw = out / RAW
    for left in raw.rglob(".partial-*"):  # of a process that was killed while it wrote
        left.unlink()
    known = {*sums, *(f"{RAW}/{name}" for name in TABLES)}
    if extra := sorted(files_of(out) - known):
        raise BrainLDMError(f"{out / extra[0]}: does not belong to this release; remove it ({len(extra)} such files)")
    allowed, reason = publishable(plan["cohort"])
    terms = f"Licence: {licence}." if allowed else f"Not to be given away: {reason}."
    table = pd.DataFrame([entry["row"] for content in contents for entry in content["volumes"]])
    facts = {"Synthetic": True, "Requests": plan["origin"]}
    write_participants(raw, table, title, License=licence if allowed else terms, BrainLDM=facts)
    write_json(raw / "T1w.json", plan["sidecar"])
    shape, cohort = " x ".join(map(str, plan["shape"])), reason if allowed else plan["cohort"]
    facts = {"title": title, "line": "=" * len(title), "count": plan["count"], "shape": shape, "cohort": cohort}
    write_text(raw / "README", _README.format(**facts, terms=terms, origin=plan["origin"]))
    sums |= {f"{RAW}/{name}": sha256(raw / name) for name in TABLES}
    write_text(out / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))
    record.earlier_seconds = sum(content["seconds"] for content in contents)
    made_on = sorted({content["made_on"] for content in contents})
    finished = record.finish([out / SUMS], volumes=plan["count"], made_on=made_on)
    shutil.rmtree(out / "batches")
    (out / "plan.json").unlink()
    return finished
