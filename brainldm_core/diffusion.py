"""Diffusion in the latent space (section 2.1): noise schedule, hybrid conditioning and the training loss."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from .errors import BrainLDMError
from .profiles import Diffusion


@lru_cache
def alpha_bars(settings: Diffusion) -> torch.Tensor:
    """Cumulative products of 1 - beta_t, float64 of shape (T,), for betas linear in their square root.

    The released network's schedule: ``linspace(sqrt(0.0015), sqrt(0.0205), T) ** 2``.
    """
    roots = torch.linspace(settings.beta_start**0.5, settings.beta_end**0.5, settings.timesteps, dtype=torch.float64)
    return torch.cumprod(1 - roots**2, dim=0)


def signal_and_noise(settings: Diffusion, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t) for time steps (B,), shaped (B, 1, 1, 1, 1) to multiply latents."""
    level = alpha_bars(settings).to(timesteps.device)[timesteps].float().reshape(-1, 1, 1, 1, 1)
    return level.sqrt(), (1 - level).sqrt()


def add_noise(settings: Diffusion, latent: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Forward process q(z_t | z_0): sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) noise, all (B, C, d, h, w)."""
    signal, sigma = signal_and_noise(settings, timesteps)
    return signal * latent + sigma * noise


def target(settings: Diffusion, latent: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """What the network predicts: the noise, or the velocity sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) z_0."""
    if settings.prediction == "epsilon":
        return noise
    signal, sigma = signal_and_noise(settings, timesteps)
    return signal * noise - sigma * latent


def split_prediction(
    settings: Diffusion, output: torch.Tensor, noisy: torch.Tensor, timesteps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean latent and noise that a network output stands for: the inverse of ``target``."""
    signal, sigma = signal_and_noise(settings, timesteps)
    if settings.prediction == "epsilon":
        return (noisy - sigma * output) / signal, output
    return signal * noisy - sigma * output, sigma * noisy + signal * output


def condition_vector(settings: Diffusion, values: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Conditioning vector (B, 4) of scaled covariates, or (B, 8) with their presence flags.

    Most people's values spread over a small part of [0, 1]; ``condition_gain`` makes them as loud as the latents, so
    that short trainings hear them. The paper's input has gain 1 and no flags.

    Raises:
        BrainLDMError: a covariate is missing and the profile has no mask channels.
    """
    if settings.mask_channels:
        return torch.cat([settings.condition_gain * values * present, present], dim=1)
    if not bool((present == 1).all()):
        raise BrainLDMError(
            "a covariate is missing, and this profile has the paper's exact input without mask channels; "
            "give age, sex, ventricular and brain volume, or use another profile"
        )
    return settings.condition_gain * values


def predict(
    settings: Diffusion, unet: nn.Module, noisy: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor
) -> torch.Tensor:
    """Hybrid conditioning: the vector (B, K) joins the latent (B, C, d, h, w) as maps and as the one context token.

    With one of the two alone (``settings.conditioning``) the other sees zeros, so that the network keeps its size.
    """
    maps, token = (condition * (settings.conditioning != other) for other in ("cross-attention", "concatenation"))
    maps = maps[:, :, None, None, None].expand(-1, -1, *noisy.shape[2:])
    return unet(torch.cat([noisy, maps], dim=1), timesteps=timesteps, context=token[:, None, :])


def drop_covariates(present: torch.Tensor, rate: float, generator: torch.Generator) -> torch.Tensor:
    """Forget covariates at random, each with probability ``rate`` and all of a subject's with ``rate``; (B, 4)."""
    single = torch.rand(present.shape, generator=generator) >= rate
    whole = torch.rand((len(present), 1), generator=generator) >= rate
    return present * single * whole


def draw_timesteps(settings: Diffusion, count: int, generator: torch.Generator) -> torch.Tensor:
    """Time steps (B,) for training: uniform and stratified over the batch, shifted to more noise by ``timestep_shift``.

    A shift s maps u to s u / (1 + (s - 1) u); s = 1 is the paper's uniform draw.
    """
    uniform = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    shifted = settings.timestep_shift * uniform / (1 + (settings.timestep_shift - 1) * uniform)
    return (shifted * settings.timesteps).long().clamp(max=settings.timesteps - 1)


def draw_training(
    settings: Diffusion, latent: torch.Tensor, present: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a training step draws for latents (B, C, d, h, w): presence flags (B, 4), time steps (B,) and noise."""
    timesteps = draw_timesteps(settings, len(latent), generator)
    noise = torch.randn(latent.shape, generator=generator)
    if settings.covariate_dropout:
        present = drop_covariates(present, settings.covariate_dropout, generator)
    return present, timesteps, noise


def diffusion_loss(
    settings: Diffusion,
    unet: nn.Module,
    latent: torch.Tensor,
    values: torch.Tensor,
    present: torch.Tensor,
    timesteps: torch.Tensor,
    noise: torch.Tensor,
) -> torch.Tensor:
    """Mean squared error of the predicted noise or velocity (the simple loss of Ho et al. 2020).

    ``latent`` (B, C, d, h, w) is scaled to unit standard deviation; ``values`` and ``present`` are (B, 4).
    """
    condition = condition_vector(settings, values, present)
    output = predict(settings, unet, add_noise(settings, latent, noise, timesteps), timesteps, condition)
    return ((output.float() - target(settings, latent, noise, timesteps)) ** 2).mean()
