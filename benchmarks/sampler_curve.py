"""Quality against steps for every sampler, on the requests and noises of the trial ``benchmarks/equivalence.py``.

    OMP_NUM_THREADS=2 python benchmarks/sampler_curve.py runs/tiny-atlas --minutes 30

goes on with what that trial has drawn (the same ``--out``), may be stopped at any time, and writes ``curve.json``
beside its results. The chapter on DDIM shows the published ``book/published/trials/sampler-curve-<profile>.json``.

Of each sampler and number of steps: FID against the training volumes with its floor, correlation of requested and
measured volumes, and, for the first ``--near`` noises, how far its volumes lie from those of DDIM over all time steps,
which follows the curve of the same noise most closely. Seconds are those of ``benchmarks/sampling.py``.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from equivalence import DDPM, NAMES, draw, drawn

from brainldm_core.conditioning import ASKED_AND_MEASURED, agreement
from brainldm_core.dataset import load_cohort
from brainldm_core.errors import BrainLDMError
from brainldm_core.features import extract, offline_extractor
from brainldm_core.metrics import frechet_distance, ms_ssim
from brainldm_core.records import commit, hardware, read_json, write_json
from brainldm_core.samples import measure_all
from brainldm_core.sampling import load_pipeline

STEPS = {"ddim": [4, 6, 10, 16, 25, 50], "dpmpp": [4, 6, 8, 10, 16], "unipc": [4, 6, 8, 10, 16]}
NEAR = 16
"""Noises that are followed through all time steps."""


def distances(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """How far volumes (N, D, H, W) lie from others of the same noises: in grey values, and as 1 - MS-SSIM."""
    pair = (torch.from_numpy(part)[:, None] for part in (one, other))
    return {
        "grey": float(np.abs(one - other).mean()),
        "unlike": float(1 - ms_ssim(*pair).double().mean()),
    }


def point(name: str, steps: int, volumes: np.ndarray, table: pd.DataFrame, fid: float, affine: Any) -> dict[str, Any]:
    """One point of the curve: FID and agreement with the requests."""
    measured = measure_all(volumes, affine)
    fits = {
        quantity: agreement(table[asked], measured[found]).record()
        for quantity, (asked, found) in ASKED_AND_MEASURED.items()
    }
    return {"sampler": name, "steps": steps, "n": len(volumes), "fid": fid, **fits}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run of the cohort atlas")
    parser.add_argument("--near", type=int, default=NEAR, help=f"noises followed through all steps (default {NEAR})")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop drawing after so many")
    parser.add_argument("--out", type=Path, help="the trial's folder; default runs/equivalence/<name of the run>")
    options = parser.parse_args(arguments)
    stop, made_with = time.monotonic() + 60 * options.minutes, commit()
    folder = options.out or Path("runs") / "equivalence" / options.run.resolve().name
    if not (folder / "margins.json").exists():
        raise BrainLDMError(f"{folder}: no trial has begun there; run benchmarks/equivalence.py first")
    about, margins = read_json(folder / "settings.json"), read_json(folder / "margins.json")["margins"]
    pipeline = load_pipeline(options.run)
    if pipeline.sha256 != about["sha256"]:
        raise BrainLDMError(f"{folder}: is of other weights than {options.run}; give the run of that trial")
    made = read_json(options.run / "run.json")
    cohort = load_cohort(options.run.parent / f"{made['profile']['name']}-atlas" / "cohort")
    table = pd.read_csv(folder / "people.tsv", sep="\t")
    extractor, timesteps = offline_extractor(), pipeline.profile.diffusion.timesteps
    reference = extract(extractor, cohort.volumes("train")[: about["n"]])
    warnings.filterwarnings("ignore", message=".*outside the training range")

    exact, missing, points = f"{NAMES['ddim']} {timesteps}", [], []
    near = table.head(options.near)
    if lacking := draw(folder, exact, ("ddim", timesteps), pipeline, near, stop):
        missing.append(lacking)
    else:
        followed = drawn(folder, exact)
    for sampler, steps in [(DDPM, timesteps), *((kind, count) for kind in STEPS for count in STEPS[kind])]:
        name = DDPM if sampler == DDPM else f"{NAMES[sampler]} {steps}"
        if lacking := draw(folder, name, (sampler.lower(), steps), pipeline, table, stop):
            missing.append(lacking)
            continue
        volumes = drawn(folder, name)
        fid = frechet_distance(reference, extract(extractor, volumes))
        found = point(sampler.lower(), steps, volumes, table, fid, cohort.affine)
        if exact not in " ".join(missing):
            found |= {"near": distances(volumes[: len(near)], followed) | {"n": len(near)}}
        points.append(found)
        print(name, round(fid, 6), found.get("near"), flush=True)
    content = {
        "command": "benchmarks/sampler_curve.py",
        **{key: about[key] for key in ("run", "sha256", "n", "seed", "batch_size")},
        "timesteps": timesteps,
        "floor": {"fid": margins["fid"]["floor"], "unlike": margins["unlike"]["floor"]},
        "extractor": extractor.note,
        "commit": made_with,
        "hardware": hardware() | {"threads": torch.get_num_threads()},
        "missing": missing,
        "points": points,
    }
    write_json(folder / "curve.json", content)
    print("\n".join(missing) or "all drawn", folder / "curve.json", sep="\n")


if __name__ == "__main__":
    main()
