"""Profiles: every size, step count and learning rate of a run, read from YAML.

A profile changes sizes and settings, never code paths. Four ship: ``smoke`` (a few steps, for tests), ``tiny`` (two
CPU cores), ``demo`` (2 mm, one GPU) and ``paper`` (1 mm, the networks of Pinaya et al. 2022).
"""

from __future__ import annotations

from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from .errors import BrainLDMError

Sampler = Literal["ddim", "ddpm", "dpmpp", "unipc"]
"""DDIM, DDPM, DPM-Solver++ and UniPC; see ``samplers``."""


class _Settings(BaseModel):
    """Frozen settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Grid(_Settings):
    """Voxel grid in MNI space: (D, H, W) runs left-right, posterior-anterior, inferior-superior (RAS)."""

    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    spacing_mm: float = Field(gt=0)
    centre_mm: tuple[float, float, float] = (0.0, -18.0, 4.0)

    @cached_property
    def affine(self) -> list[list[float]]:
        """4 x 4 voxel-to-MNI matrix (mm), RAS, the field centred on ``centre_mm``."""
        rows = []
        for axis in range(3):
            row = [0.0] * 4
            row[axis] = self.spacing_mm
            row[3] = self.centre_mm[axis] - self.spacing_mm * (self.shape[axis] - 1) / 2
            rows.append(row)
        return [*rows, [0.0, 0.0, 0.0, 1.0]]


class CohortSize(_Settings):
    """Subjects that a simulated cohort has in each split."""

    train: PositiveInt
    validation: PositiveInt
    test: PositiveInt


class Optimisation(_Settings):
    """How a network is trained: steps, batch and learning rate with warm-up and cosine decay."""

    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    final_learning_rate_fraction: float = Field(default=1.0, ge=0, le=1)
    momenta: tuple[float, float] = (0.9, 0.999)  # of AdamW: of gradients and of their squares
    weight_decay: float = Field(default=0.0, ge=0)
    gradient_clip: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    checkpoint_seconds: float = Field(default=60.0, gt=0)
    # Micro-batches of a batch, for want of memory. At 1 it is not in records: those made before it existed stay valid.
    accumulation: PositiveInt = Field(default=1, exclude_if=lambda parts: parts == 1)


class Autoencoder(_Settings):
    """Autoencoder of section 2.2 of the paper: widths, latent and loss weights."""

    channels: tuple[PositiveInt, ...]
    residual_blocks: PositiveInt
    latent_channels: PositiveInt
    norm_groups: PositiveInt
    log_variance_bias: float | None = None
    kl_weight: float = Field(ge=0)
    perceptual: Literal["lpips", "medicalnet", "spectral"]
    perceptual_weight: float = Field(ge=0)
    adversarial_weight: float = Field(ge=0)
    adversarial_start_step: int = Field(ge=0)
    discriminator_channels: PositiveInt
    discriminator_layers: PositiveInt
    discriminator_learning_rate: float = Field(gt=0)
    training: Optimisation

    @property
    def factor(self) -> int:
        """How many voxels along a side one latent voxel covers."""
        return 2 ** (len(self.channels) - 1)


class Diffusion(_Settings):
    """Latent diffusion model of section 2.1 of the paper: network, noise schedule and loss."""

    channels: tuple[PositiveInt, ...]
    residual_blocks: PositiveInt
    attention_levels: tuple[bool, ...]
    head_channels: tuple[int, ...]
    norm_groups: PositiveInt
    mask_channels: bool
    prediction: Literal["epsilon", "velocity"]
    # How the request enters; hybrid, the paper's, is not in records: those made before there was a choice stay valid.
    conditioning: Literal["hybrid", "concatenation", "cross-attention"] = Field(
        default="hybrid", exclude_if=lambda way: way == "hybrid"
    )
    timesteps: PositiveInt = 1000
    beta_start: float = Field(default=0.0015, gt=0)
    beta_end: float = Field(default=0.0205, gt=0)
    covariate_dropout: float = Field(default=0.0, ge=0, lt=1)
    condition_gain: float = Field(default=1.0, gt=0)
    mean_latent: bool = False  # the UNet learns what a linear regression leaves
    timestep_shift: float = Field(default=1.0, gt=0)
    training: Optimisation

    @model_validator(mode="after")
    def _levels_agree(self) -> Diffusion:
        if not len(self.channels) == len(self.attention_levels) == len(self.head_channels):
            raise ValueError("channels, attention_levels and head_channels must have one entry a level")
        if self.covariate_dropout and not self.mask_channels:
            raise ValueError("covariate_dropout needs mask_channels: true")
        if self.mean_latent and not self.mask_channels:
            raise ValueError("mean_latent needs mask_channels: true")
        if self.mean_latent and self.conditioning != "hybrid":
            raise ValueError("mean_latent brings the request by a way of its own: it needs conditioning: hybrid")
        return self


class Baselines(_Settings):
    """LSGAN and VAE-GAN of section 3.1 of the paper: widths (one a level, the coarsest grid first) and loss weights.

    Both are given the seconds that the diffusion model's training took; ``training.steps`` is only an upper cap.
    """

    latent_size: PositiveInt
    generator_channels: tuple[PositiveInt, ...] = Field(min_length=2)
    discriminator_channels: tuple[PositiveInt, ...] = Field(min_length=2)
    encoder_channels: tuple[PositiveInt, ...] = Field(min_length=1)
    norm_groups: PositiveInt
    discriminator_learning_rate: float = Field(gt=0)
    kl_weight: float = Field(ge=0)
    feature_weight: float = Field(ge=0)
    feature_layer: int = Field(ge=0)
    adversarial_weight: float = Field(ge=0)
    training: Optimisation

    @property
    def factor(self) -> int:
        """How many voxels along a side one voxel of the generator's first grid becomes."""
        return 2 ** (len(self.generator_channels) - 1)

    @model_validator(mode="after")
    def _settings_agree(self) -> Baselines:
        if any(width % self.norm_groups for width in (*self.generator_channels, *self.encoder_channels)):
            raise ValueError(f"generator_channels and encoder_channels must be multiples of {self.norm_groups} groups")
        if self.feature_layer >= len(self.discriminator_channels):
            raise ValueError("feature_layer must be one of the discriminator's levels")
        return self


class BrainAge(_Settings):
    """Age network of Cole et al. 2017: a block for each of ``channels``, and how volumes are altered in training."""

    channels: tuple[PositiveInt, ...] = Field(min_length=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    translation_voxels: int = Field(default=0, ge=0)
    blur_voxels: float = Field(default=0.0, ge=0, le=2)  # largest standard deviation
    intensity_share: float = Field(default=0.0, ge=0, lt=1)
    noise: float = Field(default=0.0, ge=0)  # largest standard deviation, of intensities in [0, 1]
    training: Optimisation


class Sampling(_Settings):
    """Default sampler. ``batch_size`` is fixed and padded, so that a sample never depends on its company."""

    sampler: Sampler = "ddim"
    steps: PositiveInt = 50
    eta: float = Field(default=0.0, ge=0, le=1)
    guidance_scale: float = Field(default=1.0, ge=0)  # 1: none
    guided: tuple[Literal["sex", "age_years", "ventricular_volume_ml", "brain_volume_ml"], ...] = ()  # none: all four
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # shares of the schedule between which there is guidance
    batch_size: int = Field(gt=1)
    evaluation_samples: PositiveInt
    ddpm_samples: PositiveInt


class Release(_Settings):
    """The run's set of synthetic brains (section 4 of the paper): volumes, sampler, steps, parts."""

    # DDIM, the first there was, is not in records: those made before there was a choice stay valid.
    sampler: Sampler = Field(default="ddim", exclude_if=lambda sampler: sampler == "ddim")
    volumes: PositiveInt
    steps: PositiveInt
    shards: PositiveInt


class Expectation(_Settings):
    """A number that a run of this profile should give, and where that number comes from."""

    value: float
    unit: str = ""
    source: str


class Profile(_Settings):
    """All settings of a run."""

    name: str
    description: str
    grid: Grid
    cohort: CohortSize
    autoencoder: Autoencoder
    diffusion: Diffusion
    sampling: Sampling
    baselines: Baselines | None = None  # None: a checkpoint older than these sections
    brain_age: BrainAge | None = None
    release: Release | None = None
    expected: dict[str, Expectation] = {}

    @model_validator(mode="after")
    def _guidance_has_masks(self) -> Profile:
        if self.sampling.guidance_scale != 1 and not self.diffusion.mask_channels:
            raise ValueError("sampling.guidance_scale other than 1 needs diffusion.mask_channels: true")
        return self

    @model_validator(mode="after")
    def _sides_divide(self) -> Profile:
        down = 2 ** (len(self.diffusion.channels) - 1)
        for side in self.grid.shape:
            if side % self.autoencoder.factor or (side // self.autoencoder.factor) % down:
                raise ValueError(
                    f"grid side {side} must be divisible by {self.autoencoder.factor * down} "
                    f"(autoencoder factor {self.autoencoder.factor} x UNet factor {down})"
                )
            if self.baselines and side % self.baselines.factor:
                raise ValueError(f"grid side {side} must be divisible by {self.baselines.factor} (baselines generator)")
            if self.brain_age and side < 2 ** len(self.brain_age.channels):
                raise ValueError(f"brain_age has more blocks than grid side {side} can be halved")
        return self

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Channels and sides of the latent: (C, D, H, W)."""
        factor = self.autoencoder.factor
        return (self.autoencoder.latent_channels, *(side // factor for side in self.grid.shape))

    def settings(self) -> dict[str, Any]:
        """Plain values, as stored in records and checkpoints."""
        return self.model_dump(mode="json")


def profile_names() -> list[str]:
    """Names of the profiles that ship with the package."""
    folder = files(__package__) / "profiles"
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_profile(name: str | Path) -> Profile:
    """Read a shipped profile by name, or one of your own by the path of its YAML file.

    Raises:
        BrainLDMError: no such profile, or a setting is unknown, missing or out of range.
    """
    if str(name).endswith((".yaml", ".yml")):
        source = Path(name)
        if not source.is_file():
            raise BrainLDMError(f"{source}: no such profile file; give one of {', '.join(profile_names())}")
    elif name in profile_names():
        source = files(__package__) / "profiles" / f"{name}.yaml"
    else:
        raise BrainLDMError(f"profile {str(name)!r} is unknown; choose one of {', '.join(profile_names())}")
    try:
        return Profile.model_validate(yaml.safe_load(source.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError) as error:
        where = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in getattr(error, "errors", list)()
        )
        raise BrainLDMError(f"{source}: not a valid profile: {where or error}") from None
