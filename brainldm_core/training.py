"""The two trainings of the paper: the autoencoder (section 2.2), then the diffusion model in its latents (2.1)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .covariates import KEYS, encode, fit_ranges
from .dataset import load_cohort, scan_name
from .diffusion import diffusion_loss, draw_training
from .errors import BrainLDMError
from .loop import LOSSES, STATE, Fit, adamw, draw_rows, fit
from .losses import adversarial_loss, kl_divergence, perceptual_loss
from .networks import (
    build_autoencoder,
    build_discriminator,
    build_unet,
    default_device,
    load_checkpoint,
    load_network,
    mixed_precision,
    parameter_count,
    save_checkpoint,
)
from .processes import parts, prepare_accelerator, update
from .profiles import Optimisation
from .records import Record, Run, read_record, sha256, stage_key

if TYPE_CHECKING:
    import pandas as pd
    from accelerate import Accelerator

WEIGHTS = "weights.safetensors"


class Reconstruction(nn.Module):
    """An autoencoder that is given the noise of its posterior's draw, so that one can be drawn for a whole batch."""

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, batch: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reconstruction (B, 1, D, H, W), mean and standard deviation (B, C, d, h, w) of volumes."""
        mean, sigma = self.autoencoder.encode(batch)
        return self.autoencoder.decode(mean + noise.to(sigma.dtype) * sigma), mean, sigma


def mirrored(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """About half of the volumes (B, 1, D, H, W) flipped left-right, as in the paper's augmentation."""
    flip = torch.rand(len(batch), generator=generator) < 0.5
    return torch.where(flip[:, None, None, None, None], batch.flip(2), batch)


def batch_names(rows: pd.DataFrame, values: torch.Tensor, plan: Optimisation, seed: int) -> Callable[[int], str]:
    """What says which scans (``rows``) a step's batch has, and which of their ``values`` (N, ...) are not finite.

    ``values`` may go on behind the scans with their mirror images.
    """

    def names(step: int) -> str:
        chosen = draw_rows(len(values), plan.batch_size, seed, step).tolist()
        scans = {row: scan_name(*rows.loc[row % len(rows), list(KEYS)]) for row in chosen}
        broken = [scan for row, scan in scans.items() if not values[row].isfinite().all()]
        return ", ".join(scans.values()) + (f" ({', '.join(broken)}: not finite itself)" if broken else "")

    return names


def train_autoencoder(run: Run, progress: bool = True) -> dict[str, Any]:
    """Train the autoencoder of section 2.2 on a run's training split, or return its record if that is done."""
    folder, profile = run.stage("autoencoder"), run.profile
    if (done := read_record(folder)) is not None:
        return done
    settings = profile.autoencoder
    inputs = {"cohort": stage_key(run.stage("cohort"))}
    record = Record(folder, "brainldm train autoencoder", settings.model_dump(mode="json"), inputs, run.seed)
    plan, accelerator = settings.training, prepare_accelerator()
    mine = parts(accelerator, plan)
    cohort = load_cohort(run.stage("cohort"))
    volumes = cohort.volumes("train")

    torch.manual_seed(run.seed)
    bare = build_autoencoder(profile)
    network = accelerator.prepare(Reconstruction(bare))
    judge = build_discriminator(profile)  # bare where it only judges: it then has no gradients to average
    discriminator = accelerator.prepare(judge)
    generator_optimiser = adamw(network.parameters(), plan)
    discriminator_optimiser = adamw(discriminator.parameters(), plan, settings.discriminator_learning_rate)
    perceptual = perceptual_loss(settings.perceptual)
    if isinstance(perceptual, nn.Module):
        perceptual.to(accelerator.device)

    def step(index: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        rows = draw_rows(len(volumes), plan.batch_size, run.seed, index)
        whole = mirrored(volumes[rows], generator)
        noise = torch.randn(len(rows), *profile.latent_shape)
        adversarial = index >= settings.adversarial_start_step
        made = {}

        def reconstruct(some: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            batch = whole[some].to(accelerator.device)
            with accelerator.autocast():
                reconstruction, mean, sigma = network(batch, noise[some].to(accelerator.device))
            reconstruction, mean, sigma = reconstruction.float(), mean.float(), sigma.float()
            made[some.start] = batch, reconstruction.detach()
            losses = {
                "l1": (reconstruction - batch).abs().mean(),
                "kl": kl_divergence(mean, sigma),
                "perceptual": perceptual(reconstruction, batch),
            }
            total = losses["l1"] + settings.kl_weight * losses["kl"] + settings.perceptual_weight * losses["perceptual"]
            if adversarial:
                with accelerator.autocast():
                    logits = judge(reconstruction)[-1]
                losses["adversarial"] = adversarial_loss(logits, real=True)
                total = total + settings.adversarial_weight * losses["adversarial"]
            return total, losses

        def discriminate(some: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            with accelerator.autocast():
                both = discriminator(torch.cat(made.pop(some.start)))[-1]
            real, fake = both.chunk(2)
            loss = 0.5 * (adversarial_loss(real, True) + adversarial_loss(fake, False))
            return loss, {"discriminator": loss}

        judge.requires_grad_(False)
        losses = update(accelerator, generator_optimiser, [network], reconstruct, mine, plan.gradient_clip)
        judge.requires_grad_(True)
        if adversarial:
            losses |= update(
                accelerator, discriminator_optimiser, [discriminator], discriminate, mine, plan.gradient_clip
            )
        return losses

    key = {"settings": record.settings, "inputs": inputs, "seed": run.seed}
    networks = {"autoencoder": bare, "discriminator": judge}
    optimisers = {"autoencoder": generator_optimiser, "discriminator": discriminator_optimiser}
    names = batch_names(cohort.rows("train"), volumes, plan, run.seed)
    fitted = fit(
        folder, key, networks, optimisers, "autoencoder", step, plan, run.seed, progress,
        accelerator=accelerator, batch_names=names,
    )  # fmt: skip
    return finish_training(run, record, fitted, "autoencoder", bare, accelerator, len(volumes))


def finish_training(
    run: Run,
    record: Record,
    fitted: Fit,
    kind: str,
    network: nn.Module,
    accelerator: Accelerator,
    subjects: int,
    facts: dict[str, Any] | None = None,
    **results: Any,
) -> dict[str, Any]:
    """Write a trained network's checkpoint, then its record, then let the training state go; return the record.

    Of several processes the main one writes, and the others wait for it.

    Args:
        facts: what else the checkpoint's configuration holds, for instance covariate ranges.
        results: what else the record's results hold.
    """
    folder, seconds = record.folder, round(fitted.seconds, 1)
    if accelerator.is_main_process:
        training = {"cohort": run.cohort, "seed": run.seed, "inputs": record.inputs, "seconds": seconds}
        training["subjects"] = subjects
        config = {"kind": kind, "profile": run.profile.settings(), **(facts or {}), "training": training}
        save_checkpoint(folder / WEIGHTS, fitted.weights, config)
        record.earlier_seconds = fitted.earlier_seconds
        if accelerator.num_processes > 1:
            results = {"processes": accelerator.num_processes} | results
        record.finish(
            [folder / WEIGHTS, folder / LOSSES],
            parameters=parameter_count(network),
            precision=accelerator.mixed_precision,
            subjects=subjects,
            **results,
            training_seconds=seconds,
        )
        (folder / STATE).unlink(missing_ok=True)  # after the record: a kill in between loses no training
    accelerator.wait_for_everyone()
    return read_record(folder)


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
    plan, accelerator = settings.training, prepare_accelerator()
    mine = parts(accelerator, plan)
    cohort = load_cohort(run.stage("cohort"))
    rows = cohort.rows("train")
    ranges = fit_ranges(rows)
    with accelerator.main_process_first():
        mean, sigma, scale = cached_latents(run, folder, cohort.volumes("train"))
    values, present = (torch.from_numpy(part).repeat(2, 1) for part in encode(rows, ranges))

    torch.manual_seed(run.seed)
    bare = build_unet(profile)
    if settings.mean_latent:
        scale = bare.fit(mean, sigma, values, present)
    unet = accelerator.prepare(bare)
    optimiser = adamw(unet.parameters(), plan)

    def step(index: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        chosen = draw_rows(len(mean), plan.batch_size, run.seed, index)
        latent = scale * (mean[chosen] + sigma[chosen] * torch.randn(mean[chosen].shape, generator=generator))
        draws = draw_training(settings, latent, present[chosen], generator)

        def denoise(some: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            batch = (part[some].to(accelerator.device) for part in (latent, values[chosen], *draws))
            with accelerator.autocast():
                loss = diffusion_loss(settings, unet, *batch)
            return loss, {"loss": loss}

        return update(accelerator, optimiser, [unet], denoise, mine, plan.gradient_clip)

    key = {"settings": record.settings, "inputs": inputs, "seed": run.seed}
    fitted = fit(
        folder, key, {"unet": bare}, {"unet": optimiser}, "unet", step, plan, run.seed, progress,
        accelerator=accelerator, batch_names=batch_names(rows, mean, plan, run.seed),
    )  # fmt: skip
    facts = {"ranges": ranges, "latent_scale": scale, "autoencoder_sha256": sha256(weights_path)}
    return finish_training(run, record, fitted, "unet", bare, accelerator, len(rows), facts, latent_scale=scale)


def cached_latents(run: Run, folder: Path, volumes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Latent means and deviations of the training volumes and of their mirror images, and the scale 1 / std(z).

    Cached in a file named by the autoencoder that made it.

    Raises:
        BrainLDMError: latents of a scan are not finite.
    """
    path = folder / f"latents-{stage_key(run.stage('autoencoder'))[:16]}.safetensors"
    if not path.exists():
        autoencoder, _ = load_network(run.stage("autoencoder") / WEIGHTS, "autoencoder")
        autoencoder.to(default_device())
        mean, sigma = encode_latents(autoencoder, torch.cat([volumes, volumes.flip(2)]))
        known = (mean.isfinite() & sigma.isfinite()).flatten(1).all(1).reshape(2, -1).all(0)
        if not known.all():
            rows = load_cohort(run.stage("cohort")).rows("train").loc[~known.numpy(), list(KEYS)]
            names = ", ".join(scan_name(*keys) for keys in rows.itertuples(index=False))
            raise BrainLDMError(f"{folder}: latents of {names} are not finite; look at the scan, or leave it out")
        scale = 1 / float((mean.var() + (sigma**2).mean()).sqrt())
        save_checkpoint(path, {"mean": mean, "sigma": sigma}, {"kind": "latents", "latent_scale": scale})
    tensors, config = load_checkpoint(path, "latents")
    return tensors["mean"], tensors["sigma"], config["latent_scale"]


LICENCES = {
    "atlas": "Apache-2.0; trained on simulated brains from the MNI152 2009a template (notice kept by nilearn)",
    "anatomies": "Apache-2.0; trained on brains simulated from the training label maps of SynthSeg (Apache-2.0)",
}


def export_weights(run_folder: Path, out: Path) -> list[Path]:
    """Write the averaged weights of a finished run in half precision, as ``autoencoder`` and ``unet.safetensors``.

    Raises:
        BrainLDMError: the run has not finished both trainings, or its cohort may not be published.
    """
    from .manifests import publishable

    paths: list[Path] = []
    for kind, stage in (("autoencoder", "autoencoder"), ("unet", "diffusion")):
        tensors, config = load_checkpoint(run_folder / stage / WEIGHTS, kind)
        allowed, reason = publishable(config["training"]["cohort"])
        if not allowed:
            raise BrainLDMError(f"{run_folder}: weights trained on this cohort cannot be given away: {reason}")
        licence = LICENCES.get(config["training"]["cohort"], f"that of the cohort: {reason}")
        config |= {"licence": licence, "record": read_record(run_folder / stage)}
        if paths:  # the pair is checked by this hash when it is loaded
            config["autoencoder_sha256"] = sha256(paths[0])
        path = out / f"{kind}.safetensors"
        save_checkpoint(path, {name: value.half() for name, value in tensors.items()}, config)
        paths.append(path)
    return paths
