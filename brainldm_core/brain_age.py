"""Brain age (section 3.2 of the paper): the network of Cole et al. 2017, trained on the run's real volumes.

What it reads from held-out real volumes is the ceiling for what it can read from generated ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .conditioning import agreement
from .dataset import load_cohort
from .errors import BrainLDMError
from .loop import adamw, draw_rows, fit
from .networks import build_brain_age, default_device, in_batches, load_network
from .processes import parts, prepare_accelerator, update
from .profiles import BrainAge
from .records import Record, Run, read_record, stage_key
from .training import WEIGHTS, batch_names, finish_training, mirrored

if TYPE_CHECKING:
    import pandas as pd

CALIBRATION = 1024  # training volumes that batch-norm statistics are counted over


def train_brain_age(run: Run, progress: bool = True) -> dict[str, Any]:
    """Train the age network of section 3.2 on the run's training split, or return its record if that is done.

    The record's results hold the ceiling: correlation and mean absolute error (years) on the held-out test split.

    Raises:
        BrainLDMError: the cohort has no ages, or only one, or the profile has no section brain_age.
    """
    folder, settings = run.stage("brain_age"), run.profile.brain_age
    if (done := read_record(folder)) is not None:
        return done
    if settings is None:
        raise BrainLDMError(f"profile {run.profile.name!r} has no section brain_age; add one as in those that ship")
    inputs = {"cohort": stage_key(run.stage("cohort"))}
    record = Record(folder, "brainldm train brain_age", settings.model_dump(mode="json"), inputs, run.seed)
    plan, accelerator = settings.training, prepare_accelerator()
    mine = parts(accelerator, plan)
    cohort = load_cohort(run.stage("cohort"))
    years, volumes, scans = _aged(cohort, "train")
    if len(years) < 2 or np.ptp(years) == 0:
        raise BrainLDMError(
            f"{cohort.folder}: {len(years)} training scans have an age_years and they do not differ; "
            "brain age needs a cohort with ages"
        )
    mean, deviation = float(years.mean()), float(years.std())
    targets = torch.from_numpy((years - mean) / deviation).float()

    torch.manual_seed(run.seed)
    bare = build_brain_age(run.profile)
    network = accelerator.prepare(bare)
    optimiser = adamw(network.parameters(), plan)

    def step(index: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        rows = draw_rows(len(volumes), plan.batch_size, run.seed, index)
        whole = translated(mirrored(volumes[rows], generator), settings.translation_voxels, generator)
        whole = degraded(whole, settings, generator)

        def read(some: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            if some.start:  # dropout draws from the global generator: not the same mask for every part of a batch
                torch.manual_seed(torch.initial_seed() + some.start)
            with accelerator.autocast():
                found = network(whole[some].to(accelerator.device))[:, 0]
            # Absolute errors, as in Cole et al.
            loss = (found.float() - targets[rows[some]].to(accelerator.device)).abs().mean()
            return loss, {"loss": loss}

        return update(accelerator, optimiser, [network], read, mine, plan.gradient_clip)

    key = {"settings": record.settings, "inputs": inputs, "seed": run.seed}
    fitted = fit(
        folder, key, {"brain_age": bare}, {"brain_age": optimiser}, "brain_age", step, plan, run.seed, progress,
        accelerator=accelerator, batch_names=batch_names(scans, volumes, plan, run.seed),
    )  # fmt: skip
    bare.load_state_dict(fitted.weights)
    with accelerator.autocast():
        recalibrate(bare, volumes[:CALIBRATION], plan.batch_size)
    fitted = replace(fitted, weights=bare.state_dict())
    held_out, unseen, _ = _aged(cohort, "test")
    read = in_batches(bare.eval(), unseen, run.profile.sampling.batch_size, accelerator.device)
    found = read.flatten().double().numpy() * deviation + mean
    ceiling = agreement(held_out, found).record()
    facts = {"mean_years": mean, "deviation_years": deviation}
    return finish_training(
        run, record, fitted, "brain_age", bare, accelerator, len(years), facts, ceiling=ceiling
    )  # fmt: skip


def predict_age(run: Run, volumes: np.ndarray | torch.Tensor) -> np.ndarray:
    """Brain ages in years, (N,), of volumes (N, D, H, W) in [0, 1], by the run's age network.

    Raises:
        BrainLDMError: the network is not trained, or the volumes are on another grid.
    """
    volumes = torch.as_tensor(volumes, dtype=torch.float32)
    grid = run.profile.grid.shape
    if tuple(volumes.shape[1:]) != grid:
        raise BrainLDMError(
            f"volumes of shape {tuple(volumes.shape)}: brain age of this run needs (N, {', '.join(map(str, grid))})"
        )
    network, config = load_network(run.stage("brain_age") / WEIGHTS, "brain_age")
    device = torch.device(default_device())
    read = in_batches(network.to(device), volumes[:, None], run.profile.sampling.batch_size, device)
    return read.flatten().double().numpy() * config["deviation_years"] + config["mean_years"]


def _aged(cohort, split: str) -> tuple[np.ndarray, torch.Tensor, pd.DataFrame]:
    """Ages (N,), volumes (N, 1, D, H, W) and rows of the scans of a split whose age is known."""
    rows = cohort.rows(split)
    years = rows["age_years"].to_numpy(float) if "age_years" in rows else np.full(len(rows), np.nan)
    known = np.isfinite(years)
    if not known.any():
        raise BrainLDMError(f"{cohort.folder}: no {split} scan has an age_years; brain age needs a cohort with ages")
    return years[known], cohort.volumes(split)[torch.from_numpy(known)], rows[known].reset_index(drop=True)


def recalibrate(network: torch.nn.Module, volumes: torch.Tensor, batch: int) -> None:
    """Count batch-norm statistics anew over volumes (N, 1, D, H, W), all batches alike.

    The running ones lag behind short trainings and belong to other weights than the averaged ones: at the tiny grid
    they shifted all predictions by six years.
    """
    network.eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm3d):
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean over batches
            layer.train()
    with torch.no_grad():
        for part in volumes.split(batch):
            network(part.to(next(network.parameters()).device))
    network.eval()


def translated(batch: torch.Tensor, reach: int, generator: torch.Generator) -> torch.Tensor:
    """Volumes (B, 1, D, H, W) each moved by up to ``reach`` whole voxels along every axis; what comes in is 0."""
    if reach == 0:
        return batch
    shifts = torch.randint(0, 2 * reach + 1, (len(batch), 3), generator=generator)
    padded = torch.nn.functional.pad(batch, (reach,) * 6)
    moved = [
        volume[:, d : d + batch.shape[2], h : h + batch.shape[3], w : w + batch.shape[4]]
        for volume, (d, h, w) in zip(padded, shifts.tolist(), strict=True)
    ]
    return torch.stack(moved)


def degraded(batch: torch.Tensor, settings: BrainAge, generator: torch.Generator) -> torch.Tensor:
    """Volumes (B, 1, D, H, W), each blurred, scaled and made noisy by amounts of its own, up to those of the profile.

    Generated volumes are a little smoother than real ones. A network that has only seen real ones reads sharpness and
    brightness, and gives every generated brain the same age.
    """
    blur, scale, noise = torch.rand((3, len(batch), 1, 1, 1, 1), generator=generator)
    if settings.blur_voxels:
        batch = _blurred(batch, settings.blur_voxels * blur)
    if settings.intensity_share:
        batch = batch * (1 + settings.intensity_share * (2 * scale - 1))
    if settings.noise:
        batch = batch + settings.noise * noise * torch.randn(batch.shape, generator=generator)
    return batch


def _blurred(batch: torch.Tensor, deviations: torch.Tensor) -> torch.Tensor:
    """Gaussian smoothing of each volume by its own standard deviation in voxels, (B, 1, 1, 1, 1)."""
    reach = 3
    place = torch.arange(-reach, reach + 1, dtype=batch.dtype)
    kernel = torch.exp(-0.5 * (place / deviations.reshape(-1, 1).clamp(min=1e-3)) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    volumes = batch.transpose(0, 1)  # one group a volume
    for axis in range(3):
        shape, padding = [1, 1, 1], [0, 0, 0]
        shape[axis], padding[axis] = 2 * reach + 1, reach
        volumes = torch.nn.functional.conv3d(
            volumes, kernel.reshape(len(batch), 1, *shape), padding=padding, groups=len(batch)
        )
    return volumes.transpose(0, 1)
