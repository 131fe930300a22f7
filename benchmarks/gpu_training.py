"""The part of the GPU hour that trains: a cohort simulated in the background, then both networks, then samples."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import carried
import numpy as np
import torch
from measures import psnr_in_mask
from training_step import time_case

from brainldm_core.errors import BrainLDMError
from brainldm_core.profiles import Profile
from brainldm_core.records import Run, atomic_path, read_json, read_record

SHARES = {"autoencoder": 0.4, "diffusion": 0.5}  # of the time for training; the rest is reading, latents and samples
KEPT = 24  # samples that travel back
ROWS = 500  # of a loss table


def with_subjects(profile: Profile, subjects: int) -> Profile:
    """A profile whose cohort has at most so many subjects to train on, and few others."""
    size = profile.cohort
    fewer = {"train": min(size.train, subjects), "validation": min(size.validation, 20), "test": min(size.test, 40)}
    return profile.model_copy(update={"cohort": size.model_copy(update=fewer)})


def with_steps(profile: Profile, steps: dict[str, int]) -> Profile:
    """A profile trained for so many steps; what is counted in steps moves along."""
    changed = {}
    for stage, count in steps.items():
        settings = getattr(profile, stage)
        plan = settings.training
        share = count / plan.steps
        new = {"training": plan.model_copy(update={"steps": count, "warmup_steps": round(share * plan.warmup_steps)})}
        if stage == "autoencoder":
            new["adversarial_start_step"] = round(share * settings.adversarial_start_step)
        changed[stage] = settings.model_copy(update=new)
    return profile.model_copy(update=changed)


def planned_steps(profile: Profile, device: torch.device, minutes: float, results: Path) -> dict[str, Any]:
    """Steps of both trainings that fit the minutes, by the measured time of a step; never more than the profile's."""
    steps, times = {}, {}
    for stage, share in SHARES.items():
        timed = results / f"step-{profile.name}-{stage}-ours.json"
        known = read_json(timed) if timed.exists() else {}
        times[stage] = known.get("median_ms") or time_case(profile, stage, "ours", device, 10)["median_ms"]
        fit = int(1000 * 60 * minutes * share / max(times[stage], 1e-3))
        steps[stage] = max(1, min(getattr(profile, stage).training.steps, fit))
    return {"profile": profile.name, "minutes": minutes, "steps": steps, "step_ms": times}


class Simulation:
    """The cohort of a run in the making, at low priority in processes of its own, which rest while one is timed."""

    def __init__(self, run: Run, packed: Path | None, workers: int, log: Path) -> None:
        self.run = run
        self.process = None
        if read_record(run.stage("cohort")) is None and packed is not None:
            words = [sys.executable, "-W", "ignore", __file__, packed, run.root, workers]
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "ab") as file:
                self.process = subprocess.Popen(
                    [str(word) for word in words],
                    stdin=subprocess.PIPE,
                    stdout=file,
                    stderr=file,
                    process_group=0,
                    text=True,
                )
            self.process.stdin.write(run.profile.model_dump_json() + "\n")
            self.process.stdin.flush()  # and it stays open: when we end, however that is, so does the simulation

    def _tell(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, number)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Nothing is simulated inside this block."""
        self._tell(signal.SIGSTOP)
        try:
            yield
        finally:
            self._tell(signal.SIGCONT)

    def wait(self) -> dict[str, Any]:
        """The record of the finished cohort.

        Raises:
            BrainLDMError: the simulation failed, or there is nothing to simulate from.
        """
        if self.process is not None:
            self.process.wait()
        record = read_record(self.run.stage("cohort"))
        if record is None:
            raise BrainLDMError(f"{self.run.stage('cohort')}: no cohort; give --carried, and see simulate.log")
        return record

    def stop(self) -> None:
        """End what still runs; finished subjects are kept."""
        self._tell(signal.SIGCONT)
        self._tell(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
            self.process.stdin.close()


def simulate(packed: Path, root: Path, workers: int) -> None:
    """Make the cohort whose profile comes in on the standard input; end with whoever holds its other end."""
    from brainldm_core.simulate_run import ANATOMIES, simulate_cohort

    profile = Profile.model_validate_json(sys.stdin.readline())

    def watch() -> None:
        sys.stdin.read()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    os.nice(19)
    run = Run(profile, carried.facts(packed)["cohort"], 0, root)
    names = carried.unpack(packed, run.stage("cohort") / ANATOMIES, workers)
    labels = None
    if run.cohort != "atlas":  # the anatomies are there: of the label maps only the names are asked for
        labels = root / "names"
        labels.mkdir(parents=True, exist_ok=True)
        for name in names:
            (labels / f"{name}.nii.gz").touch()
    simulate_cohort(run, workers, progress=False, labels=labels)


def thin_losses(source: Path, target: Path) -> None:
    """A loss table of at most ``ROWS`` rows, each column the mean over what it stands for."""
    with open(source, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    width = -(-len(rows) // ROWS)
    with atomic_path(target) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for start in range(0, len(rows), width):
            part = rows[start : start + width]
            means = {name: [float(row[name]) for row in part if row[name]] for name in rows[0]}
            kept = {name: f"{sum(values) / len(values):.6g}" if values else "" for name, values in means.items()}
            writer.writerow(kept | {"step": part[-1]["step"], "seconds": part[-1]["seconds"]})


def train(run: Run, stage: str, device: torch.device, results: Path) -> dict[str, Any]:
    """Train one network, or go on with it; its record in short, and for the autoencoder its PSNR on held-out people."""
    from brainldm_core import training
    from brainldm_core.dataset import load_cohort
    from brainldm_core.networks import in_batches, load_network

    record = getattr(training, f"train_{stage}")(run, progress=False)
    thin_losses(run.stage(stage) / "losses.csv", results / f"losses-{run.profile.name}-{stage}.csv")
    short = {key: record[key] for key in ("hardware", "date", "seed", "results")}
    short |= {"steps": getattr(run.profile, stage).training.steps, "profile": run.profile.name, "cohort": run.cohort}
    if stage == "autoencoder":
        network = load_network(run.stage(stage) / training.WEIGHTS, stage)[0].to(device)
        real = load_cohort(run.stage("cohort")).volumes("test")
        rebuilt = in_batches(network.reconstruct, real, run.profile.sampling.batch_size, device)[:, 0].clamp(0, 1)
        values = psnr_in_mask(real[:, 0].numpy(), rebuilt.numpy())
        short["psnr_db"] = {"mean": round(float(values.mean()), 2), "sd": round(float(values.std()), 2)}
        short["psnr_db"]["n"] = len(values)
    return short


def draw(run: Run, results: Path, export: Path) -> dict[str, Any]:
    """Samples for held-out people, a montage of them, and what travels back: weights in half precision, volumes."""
    from brainldm_core import figures
    from brainldm_core.dataset import load_cohort
    from brainldm_core.samples import quantise, reconstruct
    from brainldm_core.sampling import load_pipeline, sample
    from brainldm_core.training import export_weights

    pipeline, cohort = load_pipeline(run.folder), load_cohort(run.stage("cohort"))
    rows, real = cohort.rows("test").head(KEPT), cohort.volumes("test")[:KEPT]
    settings = run.profile.sampling
    start = time.perf_counter()
    drawn = sample(pipeline, rows, list(range(len(rows))), steps=settings.steps, eta=settings.eta, seed=run.seed)
    seconds = time.perf_counter() - start
    rebuilt = reconstruct(pipeline, real)
    export_weights(run.folder, export)
    with atomic_path(export / "samples.npz") as partial, open(partial, "wb") as file:
        np.savez_compressed(file, volumes=quantise(drawn))
    with atomic_path(export / "samples.tsv") as partial:
        rows.to_csv(partial, sep="\t", index=False)
    few = {"real": real[:8, 0].numpy(), "reconstructed": rebuilt[:8], "generated": drawn[:8]}
    with atomic_path(results / f"samples-{run.profile.name}.png") as partial:
        figures.rows_of(few).savefig(partial, dpi=120, format="png")
    computed = -(-len(rows) // settings.batch_size) * settings.batch_size
    return {
        "profile": run.profile.name,
        "cohort": run.cohort,
        "n": len(rows),
        "steps": settings.steps,
        "seconds_a_volume": round(seconds / computed, 4),
        "psnr_db": round(float(psnr_in_mask(real[:, 0].numpy(), rebuilt).mean()), 2),
    }


if __name__ == "__main__":
    simulate(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
