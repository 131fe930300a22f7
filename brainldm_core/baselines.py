"""The two baselines of section 3.1 of the paper, LSGAN and VAE-GAN, given the seconds that the diffusion model had.

Their architectures are unpublished, so these are reconstructions: one generator from a latent vector through x2 blocks
to the profile's grid, least-squares losses (Mao et al. 2017), and for the VAE-GAN (Larsen et al. 2016) an encoder whose
reconstructions are compared by the discriminator's features. Neither sees covariates, as in the paper's Table 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from .dataset import Cohort, load_cohort
from .errors import BrainLDMError
from .loop import LOSSES, adamw, draw_rows, fit
from .losses import adversarial_loss, kl_divergence
from .networks import (
    build_gan_discriminator,
    build_gan_encoder,
    build_gan_generator,
    default_device,
    in_batches,
    load_network,
)
from .processes import is_main, parts, prepare_accelerator, update
from .records import Record, Run, read_record, stage_key
from .sampling import sample_generator
from .training import WEIGHTS, batch_names, finish_training, mirrored

BASELINES = ("lsgan", "vaegan")


def train_baselines(run: Run, progress: bool = True, only: str | None = None) -> dict[str, Any]:
    """Train both baselines of section 3.1, each for the diffusion stage's training seconds, or return their record.

    ``baselines/lsgan`` and ``baselines/vaegan`` have each their weights, losses and record; that of the stage is
    written when both are there. ``only`` one of them is trained if it is named.

    Raises:
        BrainLDMError: the diffusion stage is not finished, or the profile has no baselines.
    """
    folder = run.stage("baselines")
    if (done := read_record(folder / (only or ""))) is not None:
        return done
    inputs = {stage: stage_key(run.stage(stage)) for stage in ("cohort", "diffusion")}
    seconds = read_record(run.stage("diffusion"))["results"]["training_seconds"]
    record = Record(folder, "brainldm train baselines", {**_settings(run), "seconds": seconds}, inputs, run.seed)
    cohort = load_cohort(run.stage("cohort"))
    names = [name for name in BASELINES if only in (None, name)]
    found = {name: train_baseline(run, name, cohort, inputs, seconds, progress) for name in names}
    if only:
        return found[only]
    record.earlier_seconds = max(0.0, sum(part["seconds"] for part in found.values()) - record.seconds)
    outputs = [folder / name / file for name in BASELINES for file in (WEIGHTS, LOSSES)]
    results = {name: part["results"] for name, part in found.items()}
    if is_main():
        record.finish(outputs, budget_seconds=seconds, **results)
    prepare_accelerator().wait_for_everyone()
    return read_record(folder)


def _settings(run: Run) -> dict[str, Any]:
    if run.profile.baselines is None:
        raise BrainLDMError(f"profile {run.profile.name!r} has no section baselines; add one as in those that ship")
    return run.profile.baselines.model_dump(mode="json")


def train_baseline(
    run: Run, name: str, cohort: Cohort, inputs: dict[str, str], seconds: float, progress: bool = True
) -> dict[str, Any]:
    """Train one baseline on a cohort's training split for a number of seconds, or return its record if that is done."""
    folder = run.stage("baselines") / name
    if (done := read_record(folder)) is not None:
        return done
    values = {**_settings(run), "seconds": seconds}
    record = Record(folder, "brainldm train baselines", values, inputs, run.seed)
    settings, volumes = run.profile.baselines, cohort.volumes("train")
    plan, accelerator = settings.training, prepare_accelerator()
    mine = parts(accelerator, plan)
    torch.manual_seed(run.seed)
    builders = {"generator": build_gan_generator, "discriminator": build_gan_discriminator}
    if name == "vaegan":
        builders["encoder"] = build_gan_encoder
    bare = {part: builder(run.profile) for part, builder in builders.items()}
    networks = {part: accelerator.prepare(network) for part, network in bare.items()}
    judge, discriminator = bare["discriminator"], networks["discriminator"]  # bare: no gradients to average
    makers = [network for part, network in networks.items() if part != "discriminator"]
    optimisers = {
        part: adamw([value for network in group for value in network.parameters()], plan, rate)
        for part, group, rate in (
            ("generator", makers, plan.learning_rate),
            ("discriminator", [discriminator], settings.discriminator_learning_rate),
        )
    }

    def step(index: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        whole = mirrored(volumes[draw_rows(len(volumes), plan.batch_size, run.seed, index)], generator)
        draws = whole, *torch.randn(2, len(whole), settings.latent_size, generator=generator)

        def make(some: slice) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
            batch, prior, noise = (part[some].to(accelerator.device) for part in draws)
            losses: dict[str, torch.Tensor] = {}
            with accelerator.autocast():
                if name == "vaegan":
                    mean, sigma = encode(networks["encoder"], batch)
                    losses["kl"] = kl_divergence(*(part[..., None, None, None] for part in (mean, sigma)))
                    prior = torch.cat([mean + sigma * noise, prior])  # reconstructions first, then samples
                return batch, networks["generator"](prior).float(), losses

        # Both players see the same volumes. Of one part the second keeps the graph; more would not fit in the memory.
        made = {mine[0].start: make(mine[0])} if len(mine) == 1 else {}

        def discriminate(some: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            with torch.no_grad():
                batch, fake, losses = made.get(some.start) or make(some)
            with accelerator.autocast():
                logits = discriminator(torch.cat([batch, fake.detach()]))[-1]
            real, generated = logits.tensor_split([len(batch)])
            loss = 0.5 * (adversarial_loss(real, True) + adversarial_loss(generated, False))
            return loss, {**losses, "discriminator": loss}

        def generate(some: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            batch, fake, losses = made.get(some.start) or make(some)
            with accelerator.autocast():
                levels = judge(fake)
            losses["generator"] = total = adversarial_loss(levels[-1], real=True)
            if name == "vaegan":
                with torch.no_grad(), accelerator.autocast():
                    target = judge(batch)[settings.feature_layer]
                found = levels[settings.feature_layer][: len(batch)]
                losses["feature"] = feature_distance(found, target)
                total = (
                    settings.adversarial_weight * total
                    + settings.feature_weight * losses["feature"]
                    + settings.kl_weight * losses["kl"]
                )
            return total, losses

        clip = plan.gradient_clip
        losses = update(accelerator, optimisers["discriminator"], [discriminator], discriminate, mine, clip)
        judge.requires_grad_(False)
        losses |= update(accelerator, optimisers["generator"], makers, generate, mine, clip)
        judge.requires_grad_(True)
        return losses

    key = {"settings": record.settings, "inputs": inputs, "seed": run.seed}
    names = batch_names(cohort.rows("train"), volumes, plan, run.seed)
    fitted = fit(
        folder, key, bare, optimisers, "generator", step, plan, run.seed, progress, seconds,
        accelerator=accelerator, batch_names=names,
    )  # fmt: skip
    return finish_training(
        run, record, fitted, name, bare["generator"], accelerator, len(volumes), steps=fitted.steps
    )  # fmt: skip


def encode(encoder: nn.Module, volumes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and standard deviations (B, Z) of the VAE-GAN's latents of volumes (B, 1, D, H, W)."""
    mean, log_variance = encoder(volumes).float().chunk(2, dim=1)
    return mean, torch.exp(0.5 * log_variance.clamp(-20, 20))


def feature_distance(found: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Feature matching of the VAE-GAN (Larsen et al. 2016, equation 7): mean squared distance of (B, C, d, h, w)."""
    return ((found.float() - target.float()) ** 2).mean()


def sample_baseline(run: Run, name: str, count: int, seed: int = 0) -> np.ndarray:
    """Draw volumes (N, D, H, W), float32 in [0, 1], from a finished baseline; sample i's latent comes from its id i.

    Volumes are computed in the profile's fixed, padded batch, so that a sample does not depend on its company.

    Raises:
        BrainLDMError: no such baseline, or it is not trained.
    """
    if name not in BASELINES:
        raise BrainLDMError(f"baseline {name!r} is unknown; choose one of {', '.join(BASELINES)}")
    network, _ = load_network(run.stage("baselines") / name / WEIGHTS, name)
    device = torch.device(default_device())
    size = run.profile.baselines.latent_size
    latents = torch.stack([torch.randn(size, generator=sample_generator(seed, identity)) for identity in range(count)])
    return in_batches(network.to(device), latents, run.profile.sampling.batch_size, device)[:, 0].clamp(0, 1).numpy()
