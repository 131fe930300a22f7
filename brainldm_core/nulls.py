"""Systems that are no models: what each metric says of them tells how to read what it says of a model.

A Gaussian fitted to the latents has the right mean and covariance and nothing else; a nearest-neighbour resampler has
perfect brains and invents none. ``spec/metrics.md``, beyond the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from .covariates import Ranges, encode
from .diffusion import condition_vector
from .errors import BrainLDMError
from .networks import in_batches
from .sampling import Pipeline, decode

if TYPE_CHECKING:
    import pandas as pd


def draw_gaussian(latents: torch.Tensor, count: int, seed: int = 0) -> torch.Tensor:
    """Draws (count, C, d, h, w) of the Gaussian with the mean and the sample covariance of latents (N, C, d, h, w).

    With the centred latents as rows of X and unit noise e, X'e / sqrt(N - 1) has the covariance X'X / (N - 1): no
    matrix of latent x latent values is needed.

    Raises:
        BrainLDMError: fewer than two latents, or nothing to draw.
    """
    if len(latents) < 2 or count < 1:
        raise BrainLDMError(f"Gaussian of {len(latents)} latents, {count} draws: at least 2 and 1 are needed")
    mean = latents.float().mean(0, keepdim=True)
    centred = (latents.float() - mean).flatten(1) / (len(latents) - 1) ** 0.5
    noise = torch.randn(count, len(latents), generator=torch.Generator().manual_seed(seed))
    return mean + (noise @ centred).reshape(count, *latents.shape[1:])


def decode_all(pipeline: Pipeline, latents: torch.Tensor) -> np.ndarray:
    """Volumes (N, D, H, W) in [0, 1] of latents (N, C, d, h, w) as the autoencoder gives them, in padded batches."""
    scaled, batch = latents * pipeline.latent_scale, pipeline.profile.sampling.batch_size
    return in_batches(lambda part: decode(pipeline, part), scaled, batch, pipeline.device)[:, 0].numpy()


def latent_gaussian(pipeline: Pipeline, latents: torch.Tensor, count: int, seed: int = 0) -> np.ndarray:
    """Volumes (count, D, H, W) in [0, 1]: a Gaussian fitted to training latents (N, C, d, h, w), drawn and decoded."""
    return decode_all(pipeline, draw_gaussian(latents, count, seed))


def mean_for_requests(pipeline: Pipeline, requests: pd.DataFrame) -> np.ndarray:
    """Volumes (N, D, H, W) in [0, 1]: the mean latent of each request, which the regression foretells, decoded.

    No noise and no network of diffusion: what conditioning by linear regression alone gives.

    Raises:
        BrainLDMError: the profile has no ``mean_latent``.
    """
    settings = pipeline.profile.diffusion
    if not settings.mean_latent:
        raise BrainLDMError(f"profile {pipeline.profile.name!r} has no mean_latent: nothing foretells its latents")
    values, present = (torch.from_numpy(part).to(pipeline.device) for part in encode(requests, pipeline.ranges))
    latents = pipeline.unet.mean_latent(condition_vector(settings, values, present))
    return decode_all(pipeline, latents.cpu() / pipeline.latent_scale)


def nearest_by_covariates(training: pd.DataFrame, requests: pd.DataFrame, ranges: Ranges) -> np.ndarray:
    """Which training row (N,) lies nearest to each request, in covariates scaled to [0, 1] by ``ranges``.

    Covariates that are missing on either side do not count. Decoded to volumes, this is the resampler.
    """
    (known, there), (asked, given) = encode(training, ranges), encode(requests, ranges)
    both = there[None] * given[:, None]
    return ((known[None] - asked[:, None]) ** 2 * both).sum(-1).argmin(1)
