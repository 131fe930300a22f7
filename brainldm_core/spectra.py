"""How fine is the detail of a volume, and how noisy is it: radially averaged power, and noise from fine differences."""

from __future__ import annotations

import numpy as np

from .errors import BrainLDMError

HEAD = 0.05  # darker voxels are outside the head


def radial_power(volumes: np.ndarray, spacing_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (K,) in cycles/mm and mean power (N, K) of volumes (N, D, H, W) in shells of equal frequency.

    Power is |FFT|^2 over the number of voxels, so that white noise of variance s^2 has power s^2 at every frequency.
    Shells are as wide as the lowest frequency of the longest side and end at 1 / (2 spacing); the mean is left out.

    Raises:
        BrainLDMError: not volumes (N, D, H, W), or no spacing.
    """
    volumes = np.asarray(volumes, np.float32)
    if volumes.ndim != 4 or not len(volumes) or not spacing_mm > 0:
        raise BrainLDMError(
            f"volumes {volumes.shape}, spacing {spacing_mm} mm: give (N, D, H, W) and a spacing above 0"
        )
    shape = volumes.shape[1:]
    axes = [np.fft.fftfreq(side, spacing_mm) for side in shape[:2]] + [np.fft.rfftfreq(shape[2], spacing_mm)]
    radius = np.sqrt(sum(part**2 for part in np.meshgrid(*axes, indexing="ij")))
    width = 1 / (max(shape) * spacing_mm)
    shell = np.round(radius / width).astype(int)
    last = int(np.floor(1 / (2 * spacing_mm) / width + 1e-9))
    # A half-sided transform holds each frequency pair once, but those of its first and last plane twice.
    weight = np.full(shell.shape, 2.0)
    weight[..., 0] = 1
    if shape[2] % 2 == 0:
        weight[..., -1] = 1
    inside = (shell >= 1) & (shell <= last)
    counts = np.bincount(shell[inside], weight[inside], last + 1)[1:]
    rows = []
    for volume in volumes:
        power = np.abs(np.fft.rfftn(volume)) ** 2 / volume.size
        rows.append(np.bincount(shell[inside], (power * weight)[inside], last + 1)[1:] / counts)
    return width * np.arange(1, last + 1), np.stack(rows)


def noise_level(volumes: np.ndarray) -> np.ndarray:
    """Noise (N,) of volumes (N, D, H, W), in grey values: the robust estimate from the finest diagonal Haar detail.

    Median of |detail| / 0.6745 over blocks of 2 x 2 x 2 voxels inside the head (Donoho and Johnstone 1994): the
    standard deviation of white noise. Fine anatomy counts too, so it is an upper bound, and a poor one where voxels are
    coarse; NaN without a head.
    """
    levels = []
    for volume in np.asarray(volumes, np.float32):
        detail, inside = volume, volume > HEAD
        for axis in range(3):
            low, high = (np.delete(detail, place, axis) for place in (-1, 0))
            detail = (low - high) / np.sqrt(2)
            inside = np.delete(inside, -1, axis) & np.delete(inside, 0, axis)
        levels.append(np.median(np.abs(detail[inside])) / 0.6745 if inside.any() else np.nan)
    return np.array(levels, float)
