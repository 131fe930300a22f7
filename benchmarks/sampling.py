"""Seconds and memory of a volume by each sampler, against the released bundle's recipe, in one run.

    python benchmarks/sampling.py --rounds 3 --out runs/sampling.json

draws from the weights that ship (``--weights`` for others). Every case has a process of its own, so that its peak
memory is its own, and the cases take turns, so that what else the machine does falls on all of them. A case is a batch
of the profile: from noise to latents (the denoising loop), decoding, and writing as compressed NIfTI.

``bundle`` is what the model zoo's bundle does with the same networks: float32, one volume at a time, DDIM 50 with
MONAI's scheduler, nibabel's own writer. The others are ``brainldm sample``: the padded batch of the profile, autocast
where the device gains from it.

Counted work of a volume is that of its network evaluations (two where guidance acts) and of its decoding, on meta
tensors; time over DDIM 50 can be held against it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import torch
from forward import bundle_parts, example, random_network
from measures import choose_device, counted_tflop, environment, peak_gib, reset_peak, synchronise

from brainldm_core.dataset import save_volume
from brainldm_core.profiles import Profile
from brainldm_core.records import write_json
from brainldm_core.samplers import sampler_timesteps
from brainldm_core.sampling import load_pipeline, sample

BUNDLE, REFERENCE = "bundle", "ddim:50"
CASES = [BUNDLE, REFERENCE, "ddim:25", "ddim:16", "ddim:10", "dpmpp:16", "dpmpp:10", "dpmpp:8", "dpmpp:6", "unipc:10"]
ONCE = ["ddpm:1000"]
PARTS = ("denoising", "decoding", "writing")


def split(case: str) -> tuple[str, int]:
    """Sampler and steps of ``SAMPLER:STEPS``."""
    sampler, _, steps = case.partition(":")
    return sampler, int(steps)


def evaluations(profile: Profile, case: str) -> int:
    """How often a volume goes through the UNet: twice in a step where guidance acts."""
    if case == BUNDLE:
        return profile.sampling.steps
    settings = profile.sampling
    low, high = settings.guidance_interval
    visited = sampler_timesteps(profile.diffusion, *split(case))
    guided = settings.guidance_scale != 1
    return sum(1 + (guided and low <= time_step / profile.diffusion.timesteps <= high) for time_step in visited)


def counted_work(profile: Profile) -> dict[str, float]:
    """TFLOP of one evaluation of the UNet and of one decoding, for one volume."""
    work = {}
    for kind in ("unet", "decoder"):
        network = random_network(kind, profile, torch.device("meta"))
        inputs = example(kind, profile, 1, torch.device("meta"))
        entry = network if kind == "unet" else network.decode
        work[kind] = counted_tflop(lambda entry=entry, inputs=inputs: entry(**inputs))
    return work


def time_bundle(profile: Profile, device: torch.device, folder: Path) -> list[float]:
    """Seconds of denoising, decoding and writing a volume as the bundle does."""
    draw, decode = bundle_parts(profile, device)
    affine = np.array(profile.grid.affine)
    with torch.no_grad():
        decode(draw())
        reset_peak(device)
        start = time.perf_counter()
        latent = draw()
        synchronise(device)
        denoised = time.perf_counter()
        volume = decode(latent)[0, 0].numpy()
    decoded = time.perf_counter()
    nibabel.save(nibabel.Nifti1Image(volume, affine), folder / "bundle.nii.gz")
    return np.diff([start, denoised, decoded, time.perf_counter()]).tolist()


def time_ours(case: str, weights: Path | None, device: torch.device, folder: Path) -> list[float]:
    """Seconds of denoising, decoding and writing a volume as ``brainldm sample`` does, in a batch."""
    pipeline = load_pipeline(weights, device.type)
    count, affine = pipeline.profile.sampling.batch_size, pipeline.profile.grid.affine
    middle = {name: (low + high) / 2 for name, (low, high) in pipeline.ranges.items()} | {"sex": "F"}
    table, ids = pd.DataFrame([middle] * count), list(range(count))
    sampler, steps = split(case)
    marks = []

    def seen(done: int, total: int) -> None:
        if done == total:
            synchronise(device)
            marks.append(time.perf_counter())

    sample(pipeline, table, ids, "ddim", 2)
    if sampler in ("dpmpp", "unipc"):  # their library is imported once a process
        sample(pipeline, table, ids, sampler, 4)
    reset_peak(device)
    start = time.perf_counter()
    volumes = sample(pipeline, table, ids, sampler, steps, progress=seen)
    decoded = time.perf_counter()
    for number, volume in enumerate(volumes):
        save_volume(folder / f"{number}.nii.gz", volume, affine)
    return (np.diff([start, marks[0], decoded, time.perf_counter()]) / count).tolist()


def time_case(case: str, weights: Path | None, device: torch.device) -> dict[str, Any]:
    """One case, warmed up and timed once: seconds of its parts a volume, batch and peak memory."""
    profile = load_pipeline(weights, "cpu").profile
    with tempfile.TemporaryDirectory() as folder:
        if case == BUNDLE:
            seconds, batch = time_bundle(profile, device, Path(folder)), 1
        else:
            seconds, batch = time_ours(case, weights, device, Path(folder)), profile.sampling.batch_size
    return {"case": case, "batch": batch, "peak_gib": peak_gib(device)} | dict(zip(PARTS, seconds, strict=True))


def summary(case: str, rounds: list[dict[str, Any]], profile: Profile, work: dict[str, float]) -> dict[str, Any]:
    """Medians and ranges of a case over all rounds, and its counted work."""
    totals = [sum(round_[part] for part in PARTS) for round_ in rounds]
    count = evaluations(profile, case)
    return {
        "case": case,
        "batch": rounds[0]["batch"],
        "n": len(rounds),
        **{f"{part}_s": round(statistics.median(round_[part] for round_ in rounds), 5) for part in PARTS},
        "seconds_a_volume": round(statistics.median(totals), 5),
        "range_s": [round(min(totals), 5), round(max(totals), 5)],
        "peak_gib": max(round_["peak_gib"] for round_ in rounds),
        "evaluations": count,
        "counted_tflop": round(count * work["unet"] + work["decoder"], 6),
    }


def ratios(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Each case against DDIM 50 and the bundle: above 1, it is faster than they; counted and measured."""
    found = []
    for name, row in rows.items():
        against = {"case": name}
        for other in (REFERENCE, BUNDLE):
            if other in rows and other != name:
                base = rows[other]
                against[other] = {
                    "denoising": round(base["denoising_s"] / row["denoising_s"], 3),
                    "end_to_end": round(base["seconds_a_volume"] / row["seconds_a_volume"], 3),
                    "counted": round(base["counted_tflop"] / row["counted_tflop"], 3),
                }
        found.append(against)
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="a run's folder; default: the weights that ship")
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="CASE", help="bundle or SAMPLER:STEPS")
    parser.add_argument("--once", nargs="*", default=ONCE, metavar="CASE", help="slow cases, in the first round only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--out", type=Path, help="JSON file of all results")
    parser.add_argument("--one", metavar="CASE", help="one case, printed as JSON")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    if options.one:
        print(json.dumps(time_case(options.one, options.weights, device)))
        return
    pipeline = load_pipeline(options.weights, "cpu")
    work, rounds = counted_work(pipeline.profile), {case: [] for case in (*options.cases, *options.once)}
    facts = {"command": "benchmarks/sampling.py", "profile": pipeline.profile.name, "sha256": pipeline.sha256}
    for turn in range(options.rounds):
        for case in options.cases + ([] if turn else options.once):
            words = [sys.executable, "-W", "ignore", __file__, "--device", device.type, "--one", case]
            words += ["--weights", str(options.weights)] if options.weights else []
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            rounds[case].append(json.loads(done.stdout.splitlines()[-1]) | {"load_average": os.getloadavg()[0]})
            print(json.dumps(rounds[case][-1]), flush=True)
        rows = {case: summary(case, some, pipeline.profile, work) for case, some in rounds.items()}
        content = facts | {
            "environment": environment(device),
            "counted_tflop": {name: round(value, 6) for name, value in work.items()},
            "load_average": [round_["load_average"] for some in rounds.values() for round_ in some],
            "cases": list(rows.values()),
            "ratios": ratios(rows),
        }
        if options.out:
            write_json(options.out, content)
    print(json.dumps(content["ratios"], indent=1))


if __name__ == "__main__":
    main()
