"""What a scanner and a skull-stripping do to a rendered head: texture, blur, bias, noise, a mask. Voxels of 2 mm."""

from __future__ import annotations

from typing import Any

import numpy as np

BRIGHTEST = 3.0  # normalised images end here: fat and vessels may be far brighter than the brain


def normalise(volume: Any) -> Any:
    """A volume (D, H, W), torch, whose tissue has the mean 1, in [0, 3].

    Tissue is what is brighter than the mean of the volume, in whole heads and in brains alone.
    """
    tissue = volume[volume > volume.mean()]
    return (volume / (float(tissue.mean()) if len(tissue) else 1.0)).clamp(0, BRIGHTEST)


def blurred(volume: Any, sigmas: tuple[float, float, float]) -> Any:
    """Gaussian blur of a volume (D, H, W) by ``sigmas`` voxels along each axis."""
    import torch

    for axis, sigma in enumerate(sigmas):
        if sigma < 0.05:
            continue
        reach, side = max(1, int(np.ceil(2.5 * sigma))), volume.shape[axis]
        weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        pad = [0] * 6
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = reach
        padded = torch.nn.functional.pad(volume[None, None], pad, mode="replicate")[0, 0]
        parts = (float(weight) * padded.narrow(axis, k, side) for k, weight in enumerate(weights / weights.sum()))
        volume = sum(parts)  # of shifted copies: convolutions of one image take a slow path on processors
    return volume


def smooth_noise(shape: Any, knots: tuple[int, int, int], generator: Any) -> Any:
    """Smooth random field (D, H, W) of deviation about 1 at its knots."""
    import torch

    coarse = torch.randn(1, 1, *knots, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=tuple(shape), mode="trilinear", align_corners=True)[0, 0]


def stripping(rng: np.random.Generator, to_closed: Any, to_brain: Any, generator: Any) -> Any:
    """Share (D, H, W) that a skull-stripping keeps of each voxel, from distances in mm: tight or loose, and uneven."""
    import torch

    uneven = rng.uniform(0, 1.5) * smooth_noise(to_closed.shape, (8, 9, 8), generator)
    kept = torch.sigmoid(2 * (rng.uniform(-0.5, 5) - to_closed + uneven))
    if rng.random() < 0.5:  # along the sulci, as careful masks go
        kept = kept * torch.sigmoid(2 * (rng.uniform(0.5, 4) - to_brain + uneven))
    return kept


def degrade(rng: np.random.Generator, mean: Any, spread: Any, lateral: Any, kept: Any, generator: Any) -> Any:
    """An image (D, H, W) from mean intensities and their spread, white matter 1, as a scanner might give it.

    Args:
        lateral: share of the lateral ventricles, where plexus is added.
        kept: share that a skull-stripping leaves; None: a whole head.
    """
    import torch

    shape = tuple(mean.shape)

    def noise() -> Any:
        return torch.randn(shape, generator=generator)

    # Texture is part fine, part a few voxels wide; choroid plexus is a bright patch of a ventricle.
    patches = 9 * blurred(noise(), (1.2,) * 3)  # of deviation 1
    image = mean + spread * (noise() if rng.random() < 0.5 else 0.6 * (noise() + patches))
    image = image + rng.uniform(0, 0.5) * lateral * (patches - rng.uniform(0.3, 2.0)).clamp(0, 1)
    image = image.clamp(min=0) ** np.exp(rng.normal(0, 0.2))
    image = image * torch.exp(rng.uniform(0, 0.3) * smooth_noise(shape, (4, 5, 4), generator))
    if kept is not None:
        image = image * kept
    soft = blurred(image, (rng.uniform(0.4, 0.9),) * 3)
    image = image + rng.uniform(-0.5, 1.0) * (soft - image)  # sharper or softer
    if rng.random() < 0.4:
        sigmas = [0.0, 0.0, 0.0]
        sigmas[rng.integers(3)] = rng.uniform(0.2, 0.8)  # slices of up to 4 mm
        image = blurred(image, tuple(sigmas))
    grain = rng.uniform(0, 0.06) * noise()
    if kept is not None:
        return ((image + grain) * (kept > 0.5)).clamp(min=0)
    return (image + rng.uniform(0, 0.05) + grain).abs()
