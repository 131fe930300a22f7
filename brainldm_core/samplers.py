"""Which time steps a sampler visits, and how it goes from one to the next.

DDIM (section 2.1 of the paper) and DDPM, which is DDIM with eta 1 over every time step, are linear updates with weights
known beforehand. DPM-Solver++ (Lu 2022) and UniPC (Zhao 2023) also use what the network said at the step before; they
are those of ``diffusers``, on time steps that are even in the logarithm of signal over noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
import torch

from .diffusion import alpha_bars
from .errors import BrainLDMError
from .profiles import Diffusion, Sampler

SAMPLERS = get_args(Sampler)
Step = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Place of the step, clean latent and noise that the network sees, latent -> the next latent; all (B, C, d, h, w)."""


def sampler_timesteps(settings: Diffusion, sampler: str, steps: int) -> list[int]:
    """Time steps that a sampler visits, from noise to image: all (DDPM), every T/steps-th (DDIM), or even in log-SNR.

    Raises:
        BrainLDMError: unknown sampler, or more steps than the schedule has.
    """
    if sampler not in SAMPLERS:
        raise BrainLDMError(f"sampler {sampler!r} is unknown; choose one of {', '.join(SAMPLERS)}")
    if sampler == "ddpm":
        return list(range(settings.timesteps))[::-1]
    if not 1 <= steps <= settings.timesteps:
        raise BrainLDMError(f"steps {steps}: choose 1 to {settings.timesteps}")
    if sampler == "ddim":
        return [step * (settings.timesteps // steps) for step in range(steps)][::-1]
    return even_in_log_snr(settings, steps)


def even_in_log_snr(settings: Diffusion, steps: int) -> list[int]:
    """Time steps from the noisiest on whose log(signal / noise) lies as evenly as whole time steps allow.

    The last one is an interval away from the cleanest: the solver goes from it to the image itself.
    """
    bars = alpha_bars(settings).numpy()
    log_snr = 0.5 * np.log(bars / (1 - bars))
    wanted = np.linspace(log_snr[-1], log_snr[0], steps + 1)[:-1]
    times = np.abs(log_snr[None] - wanted[:, None]).argmin(1)
    for place in range(steps - 2, -1, -1):  # near the image whole steps are wider apart than what is wanted
        times[place] = max(times[place], times[place + 1] + 1)
    return np.minimum(times, settings.timesteps - 1 - np.arange(steps)).tolist()


def sampler_coefficients(settings: Diffusion, timesteps: Sequence[int], eta: float) -> torch.Tensor:
    """Weights of clean latent, predicted noise and fresh noise at each step, (S, 3): equations 12 and 16 of DDIM."""
    bars = alpha_bars(settings)
    now = bars[list(timesteps)]
    after = torch.cat([bars[list(timesteps[1:])], torch.ones(1, dtype=bars.dtype)])
    sigma = eta * ((1 - after) / (1 - now) * (1 - now / after)).clamp(min=0).sqrt()
    return torch.stack([after.sqrt(), (1 - after - sigma**2).clamp(min=0).sqrt(), sigma], dim=1)


def stepper(
    settings: Diffusion,
    sampler: str,
    timesteps: Sequence[int],
    eta: float,
    noise: Callable[[], torch.Tensor],
    device: torch.device,
) -> Step:
    """The update of a sampler, for one batch from its first step to its last; ``noise`` draws fresh noise.

    Nothing in it waits for the accelerator.
    """
    if sampler in ("dpmpp", "unipc"):
        scheduler, times = _scheduler(settings, sampler, timesteps), torch.tensor(timesteps)
        return lambda index, clean, epsilon, latent: scheduler.step(clean, times[index], latent, return_dict=False)[0]
    weights = sampler_coefficients(settings, timesteps, 1.0 if sampler == "ddpm" else eta).float().to(device)

    def linear(index: int, clean: torch.Tensor, epsilon: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        following = weights[index, 0] * clean + weights[index, 1] * epsilon
        return following + weights[index, 2] * noise() if sampler == "ddpm" or eta > 0 else following

    return linear


def _scheduler(settings: Diffusion, sampler: str, timesteps: Sequence[int]) -> Any:
    """Second-order solver of ``diffusers`` that is given clean latents and visits exactly these time steps."""
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    bars = alpha_bars(settings)
    betas = 1 - bars / torch.cat([torch.ones(1, dtype=bars.dtype), bars[:-1]])
    shared = {"trained_betas": betas.numpy(), "prediction_type": "sample", "solver_order": 2}
    kind = DPMSolverMultistepScheduler if sampler == "dpmpp" else UniPCMultistepScheduler
    scheduler = kind(settings.timesteps, **shared)
    scheduler.set_timesteps(len(timesteps))
    # Its own time steps would be other ones than its noise levels, rounded; these are both exact.
    now = bars[list(timesteps)]
    scheduler.timesteps = torch.tensor(timesteps)
    scheduler.sigmas = torch.cat([((1 - now) / now).sqrt(), torch.zeros(1, dtype=now.dtype)]).float()
    scheduler.set_begin_index(0)
    return scheduler
