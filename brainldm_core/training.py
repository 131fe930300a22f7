"""Training that resumes: the loop, and the two stages of the paper (autoencoder, then diffusion in its latents).

Every random draw of a step comes from (seed, step) alone, so a resumed run continues as if it had never stopped.
"""

from __future__ import annotations

import csv
import io
import math
import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from .covariates import encode, fit_ranges
from .dataset import load_cohort
from .diffusion import diffusion_loss
from .errors import BrainLDMError
from .losses import adversarial_loss, kl_divergence, perceptual_loss
from .networks import (
    build_autoencoder,
    build_discriminator,
    build_unet,
    load_checkpoint,
    load_network,
    mixed_precision,
    parameter_count,
    save_checkpoint,
)
from .profiles import Optimisation
from .records import Record, Run, read_record, sha256, stage_key, write_text

STATE, WEIGHTS, LOSSES = "state.safetensors", "weights.safetensors", "losses.csv"
Step = Callable[[int, torch.Generator], dict[str, torch.Tensor]]


def learning_rate(settings: Optimisation, base: float, step: int) -> float:
    """Linear warm-up, then a cosine from ``base`` down to its final fraction."""
    if step < settings.warmup_steps:
        return base * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    floor = settings.final_learning_rate_fraction
    return base * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of all random draws of a step; also seeds the global one, which some layers use."""
    mixed = (seed * 1_000_003 + step * 7_919 + 17) % 2**63
    torch.manual_seed(mixed)
    return torch.Generator().manual_seed(mixed)


def draw_rows(count: int, batch: int, seed: int, step: int) -> torch.Tensor:
    """Rows of a step's batch: every epoch visits each of ``count`` rows once, in an order of its own."""
    rows = []
    for place in range(step * batch, (step + 1) * batch):
        epoch, index = divmod(place, count)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
        rows.append(order[index])
    return torch.stack(rows)


def ema_update(average: dict[str, torch.Tensor], network: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of weights, with the decay warmed up so that the first steps are forgotten."""
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, value in network.state_dict().items():
            average[name].lerp_(value.float(), 1 - decay) if value.is_floating_point() else average[name].copy_(value)


@contextmanager
def stop_on_sigterm():
    """Turn SIGTERM (a cluster's notice) into an event, so that the loop saves its state before it leaves."""
    asked = threading.Event()
    main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, lambda *_: asked.set()) if main else None
    try:
        yield asked
    finally:
        if main:
            signal.signal(signal.SIGTERM, previous)


def fit(
    folder: Path,
    key: dict[str, Any],
    networks: dict[str, nn.Module],
    optimisers: dict[str, torch.optim.Optimizer],
    averaged: str,
    step: Step,
    settings: Optimisation,
    seed: int,
    progress: bool = True,
) -> tuple[dict[str, torch.Tensor], float]:
    """Run ``step`` until ``settings.steps``, saving state as it goes; return the averaged weights and the seconds.

    Args:
        key: what this training is made from; a state made from anything else is refused.
        averaged: name of the network whose weights are averaged (``ema_decay`` 0: its last weights).
        step: does one optimiser step and returns the losses to log.

    Raises:
        BrainLDMError: a loss is not finite (the step is named), or the saved state is of another training.
    """
    average = {name: value.detach().clone() for name, value in networks[averaged].state_dict().items()}
    base = {name: optimiser.param_groups[0]["lr"] for name, optimiser in optimisers.items()}
    first, seconds, rows = _restore(folder, key, networks, optimisers, average)
    begin = saved = time.perf_counter()
    with (
        stop_on_sigterm() as asked,
        tqdm(total=settings.steps, initial=first, desc=folder.name, disable=None if progress else True) as bar,
    ):
        for index in range(first, settings.steps):
            for name, optimiser in optimisers.items():
                optimiser.param_groups[0]["lr"] = learning_rate(settings, base[name], index)
            losses = {name: float(loss) for name, loss in step(index, step_generator(seed, index)).items()}
            if not all(map(math.isfinite, losses.values())):
                raise BrainLDMError(
                    f"{folder}: loss is not finite at step {index} (seed {seed}, {losses}); "
                    "lower learning_rate in the profile, delete that folder and start again"
                )
            ema_update(average, networks[averaged], settings.ema_decay, index)
            now = time.perf_counter()
            rows.append({"step": index, **losses, "seconds": round(seconds + now - begin, 3)})
            bar.update()
            bar.set_postfix({name: f"{loss:.3f}" for name, loss in losses.items()}, refresh=False)
            if asked.is_set() or now - saved > settings.checkpoint_seconds or index == settings.steps - 1:
                _save(folder, key, networks, optimisers, average, index + 1, seconds + now - begin, rows)
                saved = now
                if asked.is_set():
                    raise SystemExit(143)
    return average, seconds + time.perf_counter() - begin


def _save(folder, key, networks, optimisers, average, step, seconds, rows) -> None:
    tensors = {f"average/{name}": value for name, value in average.items()}
    for owner, network in networks.items():
        tensors |= {f"{owner}/{name}": value for name, value in network.state_dict().items()}
    for owner, optimiser in optimisers.items():
        for index, values in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{owner}/{index}/{name}": value for name, value in values.items()}
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / LOSSES, table.getvalue())
    # State last: it names the step up to which the loss table is believed.
    save_checkpoint(folder / STATE, tensors, {"kind": "state", "key": key, "step": step, "seconds": seconds})


def _restore(folder, key, networks, optimisers, average) -> tuple[int, float, list[dict]]:
    if not (folder / STATE).exists():
        return 0, 0.0, []
    tensors, config = load_checkpoint(folder / STATE, "state")
    if config["key"] != key:
        raise BrainLDMError(f"{folder}: holds the state of another training; delete that folder to start again")
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        owner, rest = name.split("/", 1)
        parts.setdefault(owner, {})[rest] = value
    for name, value in parts["average"].items():
        average[name].copy_(value)
    for owner, network in networks.items():
        network.load_state_dict(parts[owner])
    for owner, optimiser in optimisers.items():
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in parts["optimiser"].items():
            whose, index, entry = name.split("/")
            if whose == owner:
                state.setdefault(int(index), {})[entry] = value
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    with open(folder / LOSSES, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) < config["step"]]
    return config["step"], config["seconds"], rows


def _update(accelerator, optimiser, network, loss, clip: float) -> None:
    optimiser.zero_grad(set_to_none=True)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(network.parameters(), clip)
    optimiser.step()


def _accelerator():
    from accelerate import Accelerator

    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    return Accelerator(mixed_precision=mixed_precision(device), cpu=device.type == "cpu")


def train_autoencoder(run: Run, progress: bool = True) -> dict[str, Any]:
    """Train the autoencoder of section 2.2 on a run's training split, or return its record if that is done."""
    folder, profile = run.stage("autoencoder"), run.profile
    if (done := read_record(folder)) is not None:
        return done
    settings = profile.autoencoder
    inputs = {"cohort": stage_key(run.stage("cohort"))}
    record = Record(folder, "brainldm train autoencoder", settings.model_dump(mode="json"), inputs, run.seed)
    cohort = load_cohort(run.stage("cohort"))
    volumes = cohort.volumes("train")

    torch.manual_seed(run.seed)
    accelerator = _accelerator()
    network = accelerator.prepare(build_autoencoder(profile))
    discriminator = accelerator.prepare(build_discriminator(profile))
    plan = settings.training
    generator_optimiser = torch.optim.AdamW(network.parameters(), plan.learning_rate, weight_decay=plan.weight_decay)
    discriminator_optimiser = torch.optim.AdamW(
        discriminator.parameters(), settings.discriminator_learning_rate, weight_decay=plan.weight_decay
    )
    perceptual = perceptual_loss(settings.perceptual)

    def step(index: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        batch = volumes[draw_rows(len(volumes), plan.batch_size, run.seed, index)]
        flip = torch.rand(len(batch), generator=generator) < 0.5  # left-right, as in the paper's augmentation
        batch = torch.where(flip[:, None, None, None, None], batch.flip(2), batch).to(accelerator.device)
        adversarial = index >= settings.adversarial_start_step
        with accelerator.autocast():
            reconstruction, mean, sigma = network(batch)
        reconstruction, mean, sigma = reconstruction.float(), mean.float(), sigma.float()
        losses = {
            "l1": (reconstruction - batch).abs().mean(),
            "kl": kl_divergence(mean, sigma),
            "perceptual": perceptual(reconstruction, batch),
        }
        total = losses["l1"] + settings.kl_weight * losses["kl"] + settings.perceptual_weight * losses["perceptual"]
        if adversarial:
            discriminator.requires_grad_(False)
            with accelerator.autocast():
                logits = discriminator(reconstruction)[-1]
            losses["adversarial"] = adversarial_loss(logits, real=True)
            total = total + settings.adversarial_weight * losses["adversarial"]
        _update(accelerator, generator_optimiser, network, total, plan.gradient_clip)
        if adversarial:
            discriminator.requires_grad_(True)
            with accelerator.autocast():
                both = discriminator(torch.cat([batch, reconstruction.detach()]))[-1]
            real, fake = both.chunk(2)
            losses["discriminator"] = 0.5 * (adversarial_loss(real, True) + adversarial_loss(fake, False))
            _update(accelerator, discriminator_optimiser, discriminator, losses["discriminator"], plan.gradient_clip)
        return losses

    key = {"settings": record.settings, "inputs": inputs, "seed": run.seed}
    networks = {
        "autoencoder": accelerator.unwrap_model(network),
        "discriminator": accelerator.unwrap_model(discriminator),
    }
    optimisers = {"autoencoder": generator_optimiser, "discriminator": discriminator_optimiser}
    weights, seconds = fit(folder, key, networks, optimisers, "autoencoder", step, plan, run.seed, progress)
    config = {
        "kind": "autoencoder",
        "profile": profile.settings(),
        "training": _facts(run, inputs, seconds, len(volumes)),
    }
    save_checkpoint(folder / WEIGHTS, weights, config)
    (folder / STATE).unlink()
    record.earlier_seconds = seconds - (record.seconds - record.earlier_seconds)
    return record.finish(
        [folder / WEIGHTS, folder / LOSSES],
        parameters=parameter_count(networks["autoencoder"]),
        precision=accelerator.mixed_precision,
        subjects=len(volumes),
        training_seconds=round(seconds, 1),
    )


def _facts(run: Run, inputs: dict[str, str], seconds: float, subjects: int) -> dict[str, Any]:
    return {
        "cohort": run.cohort,
        "seed": run.seed,
        "inputs": inputs,
        "seconds": round(seconds, 1),
        "subjects": subjects,
    }


def encode_latents(autoencoder: nn.Module, volumes: torch.Tensor, batch: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and standard deviations (N, C, d, h, w) of the latents of volumes (N, 1, D, H, W), float32, on the CPU."""
    device = next(autoencoder.parameters()).device
    means, sigmas = [], []
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision(device) == "bf16"):
        for part in volumes.split(batch):
            mean, sigma = autoencoder.encode(part.to(device))
            means.append(mean.float().cpu())
            sigmas.append(sigma.float().cpu())
    return torch.cat(means), torch.cat(sigmas)


def train_diffusion(run: Run, progress: bool = True) -> dict[str, Any]:
    """Train the latent diffusion model of section 2.1 on cached latents, or return its record if that is done."""
    folder, profile = run.stage("diffusion"), run.profile
    if (done := read_record(folder)) is not None:
        return done
    settings = profile.diffusion
    weights_path = run.stage("autoencoder") / WEIGHTS
    inputs = {"cohort": stage_key(run.stage("cohort")), "autoencoder": stage_key(run.stage("autoencoder"))}
    record = Record(folder, "brainldm train diffusion", settings.model_dump(mode="json"), inputs, run.seed)
    cohort = load_cohort(run.stage("cohort"))
    rows = cohort.rows("train")
    ranges = fit_ranges(rows)
    mean, sigma, scale = cached_latents(run, folder, cohort.volumes("train"))
    values, present = (torch.from_numpy(part).repeat(2, 1) for part in encode(rows, ranges))

    torch.manual_seed(run.seed)
    accelerator = _accelerator()
    unet = accelerator.prepare(build_unet(profile))
    plan = settings.training
    optimiser = torch.optim.AdamW(unet.parameters(), plan.learning_rate, weight_decay=plan.weight_decay)

    def step(index: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        chosen = draw_rows(len(mean), plan.batch_size, run.seed, index)
        latent = mean[chosen] + sigma[chosen] * torch.randn(mean[chosen].shape, generator=generator)
        latent, covariates, known = (
            part.to(accelerator.device) for part in (latent * scale, values[chosen], present[chosen])
        )
        with accelerator.autocast():
            loss = diffusion_loss(settings, unet, latent, covariates, known, generator)
        _update(accelerator, optimiser, unet, loss, plan.gradient_clip)
        return {"loss": loss}

    key = {"settings": record.settings, "inputs": inputs, "seed": run.seed}
    bare = accelerator.unwrap_model(unet)
    weights, seconds = fit(folder, key, {"unet": bare}, {"unet": optimiser}, "unet", step, plan, run.seed, progress)
    config = {
        "kind": "unet",
        "profile": profile.settings(),
        "ranges": ranges,
        "latent_scale": scale,
        "autoencoder_sha256": sha256(weights_path),
        "training": _facts(run, inputs, seconds, len(rows)),
    }
    save_checkpoint(folder / WEIGHTS, weights, config)
    (folder / STATE).unlink()
    record.earlier_seconds = seconds - (record.seconds - record.earlier_seconds)
    return record.finish(
        [folder / WEIGHTS, folder / LOSSES],
        parameters=parameter_count(bare),
        precision=accelerator.mixed_precision,
        subjects=len(rows),
        latent_scale=scale,
        training_seconds=round(seconds, 1),
    )


def cached_latents(run: Run, folder: Path, volumes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Latent means and deviations of the training volumes and of their mirror images, and the scale 1 / std(z).

    Cached in a file named by the autoencoder that made it.
    """
    path = folder / f"latents-{stage_key(run.stage('autoencoder'))[:16]}.safetensors"
    if not path.exists():
        autoencoder, _ = load_network(run.stage("autoencoder") / WEIGHTS, "autoencoder")
        autoencoder.to("cuda" if torch.cuda.is_available() else "cpu")
        mean, sigma = encode_latents(autoencoder, torch.cat([volumes, volumes.flip(2)]))
        scale = 1 / float((mean.var() + (sigma**2).mean()).sqrt())
        save_checkpoint(path, {"mean": mean, "sigma": sigma}, {"kind": "latents", "latent_scale": scale})
    tensors, config = load_checkpoint(path, "latents")
    return tensors["mean"], tensors["sigma"], config["latent_scale"]
