"""Drawing brains: a sample is a function of (checkpoint, covariates, sample id, sampler).

Noise comes from the sample's own id, and volumes are computed in a fixed, padded batch, so that a sample does
not depend on its company. DDIM (section 2.1) with eta 1 over every time step is DDPM.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .covariates import COLUMNS, Ranges, encode, warn_outside
from .diffusion import condition_vector, predict, split_prediction
from .errors import BrainLDMError
from .mean_latent import MeanLatentUNet
from .networks import default_device, load_network, mixed_precision
from .profiles import Diffusion, Profile, load_profile
from .records import sha256
from .samplers import sampler_timesteps, stepper

if TYPE_CHECKING:
    import pandas as pd

SHIPPED = "tiny"
RELEASED = "bundle"  # names the network that the paper's authors released
DECODED_AT_ONCE = 160 * 224 * 160  # voxels: one of the paper's volumes, which takes about 11 GB


@dataclass(frozen=True)
class Pipeline:
    """What sampling needs: both networks, their profile, the covariate ranges and the latent scale."""

    profile: Profile
    autoencoder: nn.Module
    unet: nn.Module
    ranges: Ranges
    latent_scale: float
    sha256: dict[str, str]
    training: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return next(self.unet.parameters()).device


def weight_files(weights: Path | None = None) -> tuple[Path, Path]:
    """Autoencoder and UNet files of a run folder or of a folder of exported weights; None: the weights that ship."""
    folder = Path(str(files(__package__) / "weights" / SHIPPED)) if weights is None else Path(weights)
    for pair in (
        (folder / "autoencoder.safetensors", folder / "unet.safetensors"),
        (folder / "autoencoder" / "weights.safetensors", folder / "diffusion" / "weights.safetensors"),
        (folder / "models" / "autoencoder.safetensors", folder / "models" / "model.safetensors"),
    ):
        if all(path.is_file() for path in pair):
            return pair
    raise BrainLDMError(f"{folder}: holds no trained weights; give a run folder with finished training as --weights")


def load_pipeline(
    weights: Path | str | None = None, device: str | None = None, profile: str | Path | None = None
) -> Pipeline:
    """Load both networks, checking that the UNet was trained in this autoencoder's latents.

    Args:
        weights: a run's folder, one of exported weights, one of the released network, or ``bundle``: that network where
            ``brainldm data fetch`` puts it. None: the weights that ship.
        profile: that the weights must be of; None: any.

    Raises:
        BrainLDMError: files are missing, not ours, not a pair, or of another profile.
    """
    from .released import is_released, load_released

    if weights == RELEASED or (weights is not None and is_released(Path(weights))):
        return load_released(None if weights == RELEASED else Path(weights), profile, device)
    autoencoder_path, unet_path = weight_files(weights)
    autoencoder, _ = load_network(autoencoder_path, "autoencoder")
    unet, config = load_network(unet_path, "unet")
    made = config["profile"]["name"]
    if profile is not None and load_profile(profile).name != made:
        raise BrainLDMError(
            f"{unet_path}: holds weights of profile {made!r}, not {load_profile(profile).name!r}; leave out --profile, "
            "or give others as --weights (bundle: those that the paper's authors released)"
        )
    hashes = {"autoencoder": sha256(autoencoder_path), "unet": sha256(unet_path)}
    if config["autoencoder_sha256"] != hashes["autoencoder"]:
        raise BrainLDMError(f"{unet_path}: was trained with another autoencoder than {autoencoder_path}; use its own")
    device = device or default_device()
    return Pipeline(
        profile=Profile.model_validate(config["profile"]),
        autoencoder=autoencoder.to(device),
        unet=unet.to(device),
        ranges={name: tuple(limits) for name, limits in config["ranges"].items()},
        latent_scale=config["latent_scale"],
        sha256=hashes,
        training=config["training"],
    )


def sample_generator(seed: int, sample_id: int) -> torch.Generator:
    """The generator of one sample's noise, from the seed and the sample's own id."""
    digest = hashlib.sha256(f"{seed}/{sample_id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def guided_prediction(
    settings: Diffusion,
    unet: nn.Module,
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
    condition: torch.Tensor,
    without: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Classifier-free guidance (Ho and Salimans 2022): f(without) + scale (f(condition) - f(without)).

    ``without`` (B, K) may lack some covariates or all: what they add to the prediction is multiplied by ``scale``.
    None, or a scale of 1, is the plain prediction in half the time.
    """
    if without is None or scale == 1:
        return predict(settings, unet, noisy, timesteps, condition)
    both = predict(settings, unet, noisy.repeat(2, 1, 1, 1, 1), timesteps.repeat(2), torch.cat([condition, without]))
    asked, less = both.chunk(2)
    return less + scale * (asked - less)


def denoise(
    settings: Diffusion,
    unet: nn.Module,
    condition: torch.Tensor,
    generators: list[torch.Generator],
    latent_shape: tuple[int, ...],
    timesteps: Sequence[int],
    eta: float,
    callback: Callable[[int, torch.Tensor], None] | None = None,
    without: torch.Tensor | None = None,
    guidance: float = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
    sampler: str = "ddim",
) -> torch.Tensor:
    """From noise to latents (B, C, d, h, w), one generator a sample; ``callback(step, clean latent so far)``.

    ``without`` is the condition with the guided covariates unknown (``guided_prediction``); guidance acts between two
    shares of the schedule (Kynkaanniemi et al. 2024), elsewhere it costs time and adds little.
    """
    device = condition.device

    def noise() -> torch.Tensor:
        return torch.stack([torch.randn(latent_shape, generator=generator) for generator in generators]).to(device)

    step = stepper(settings, sampler, timesteps, eta, noise, device)
    times = torch.tensor(timesteps, device=device)
    latent = noise()
    if isinstance(unet, MeanLatentUNet):
        latent = latent + unet.noisy_mean(condition, times[:1])
    for index in range(len(timesteps)):
        time = times[index].expand(len(latent))
        acts = interval[0] <= timesteps[index] / settings.timesteps <= interval[1]
        output = guided_prediction(settings, unet, latent, time, condition, without if acts else None, guidance).float()
        clean, epsilon = split_prediction(settings, output, latent, time)
        latent = step(index, clean, epsilon, latent)
        if callback is not None:
            callback(index, clean)
    return latent


def unguided(profile: Profile) -> torch.Tensor:
    """Flags (4,) of the covariates that both predictions of guidance know: 0 for those that the profile guides.

    Raises:
        BrainLDMError: the profile has no mask channels, so its model has never seen a missing covariate.
    """
    if not profile.diffusion.mask_channels:
        raise BrainLDMError(
            f"profile {profile.name!r} has the paper's exact input without mask channels, so nothing can be guided; "
            "leave guidance at 1, or use another profile"
        )
    guided = profile.sampling.guided or COLUMNS
    return torch.tensor([0.0 if name in guided else 1.0 for name in COLUMNS])


def decode(pipeline: Pipeline, latent: torch.Tensor) -> torch.Tensor:
    """Volumes (B, 1, D, H, W) in [0, 1] of scaled latents (B, C, d, h, w); the latent scale is undone here.

    Large ones are decoded in equal parts of the batch, as memory allows.
    """
    part = max(1, min(len(latent), DECODED_AT_ONCE // math.prod(pipeline.profile.grid.shape)))
    while len(latent) % part:
        part -= 1
    parts = (latent / pipeline.latent_scale).split(part)
    return torch.cat([pipeline.autoencoder.decode(part).float().clamp(0, 1) for part in parts])


def sample(
    pipeline: Pipeline,
    covariates: pd.DataFrame,
    ids: Sequence[int],
    sampler: str = "ddim",
    steps: int = 50,
    eta: float = 0.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    trajectory: Sequence[int] | None = None,
    guidance: float | None = None,
) -> np.ndarray:
    """Draw volumes (N, D, H, W), float32 in [0, 1], one for each row of covariates in years and millilitres.

    Args:
        ids: one id a row; the noise of a sample comes from its id and ``seed`` alone.
        sampler: one of ``samplers.SAMPLERS``.
        eta: of ``ddim``: 0 is deterministic; ``ddpm`` always has 1.
        progress: called with steps done and steps in all.
        trajectory: step indices at which the decoded clean estimate is returned instead, (N, S, D, H, W).
        guidance: scale for the covariates that the profile guides; None: the profile's scale, 1: no guidance.

    Raises:
        BrainLDMError: unknown sampler, impossible steps, a covariate missing that the profile needs, or guidance for
            a model that was trained without mask channels.
    """
    settings, batch = pipeline.profile.diffusion, pipeline.profile.sampling.batch_size
    timesteps = sampler_timesteps(settings, sampler, steps)
    warn_outside(covariates, pipeline.ranges)
    values, present = (torch.from_numpy(part) for part in encode(covariates, pipeline.ranges))
    condition = condition_vector(settings, values, present)
    guidance = pipeline.profile.sampling.guidance_scale if guidance is None else guidance
    known = present if guidance == 1 else present * unguided(pipeline.profile)
    without = condition_vector(settings, values, known)
    device = pipeline.device
    total = len(timesteps) * -(-len(ids) // batch)
    volumes = []
    precision = torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision(device) == "bf16")
    with torch.inference_mode(), precision:
        for start in range(0, len(ids), batch):
            rows = [min(start + place, len(ids) - 1) for place in range(batch)]  # padded with the last row
            generators = [sample_generator(seed, ids[row]) for row in rows]
            kept: list[torch.Tensor] = []

            def seen(index: int, clean: torch.Tensor, start: int = start, kept: list = kept) -> None:
                if trajectory is not None and index in trajectory:
                    kept.append(decode(pipeline, clean)[:, 0])
                if progress is not None:
                    progress(start // batch * len(timesteps) + index + 1, total)

            latent = denoise(
                settings, pipeline.unet, condition[rows].to(device), generators,
                pipeline.profile.latent_shape, timesteps, eta, seen, without[rows].to(device), guidance,
                pipeline.profile.sampling.guidance_interval, sampler,
            )  # fmt: skip
            result = decode(pipeline, latent)[:, 0] if trajectory is None else torch.stack(kept, dim=1)
            volumes.append(result[: len(ids) - start].cpu().numpy())
    return np.concatenate(volumes)
