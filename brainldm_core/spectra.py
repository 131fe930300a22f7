"""How fine is the detail of a volume, and how noisy is it: radially averaged power, and noise from fine differences."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .errors import BrainLDMError
from .volume_sets import VolumeSet

HEAD = 0.05  # darker voxels are outside the head


def power_spectrum(volumes: VolumeSet, spacing_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Radially averaged power spectra: frequencies (K,) in cycles/mm, mean power (N, K) of volumes (N, D, H, W) there.

    Power is |FFT|^2 over the number of voxels, so that white noise of variance s^2 has power s^2 at every frequency.
    Shells are as wide as the lowest frequency of the longest side and end at 1 / (2 spacing); the mean is left out.

    Raises:
        BrainLDMError: not volumes (N, D, H, W), or no spacing.
    """
    if len(volumes.shape) != 4 or not len(volumes) or not spacing_mm > 0:
        raise BrainLDMError(
            f"volumes {tuple(volumes.shape)}, spacing {spacing_mm} mm: give (N, D, H, W) and a spacing above 0"
        )
    shape = tuple(volumes.shape[1:])
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
    for volume in _one_by_one(volumes):
        power = np.abs(np.fft.rfftn(volume)) ** 2 / volume.size
        rows.append(np.bincount(shell[inside], (power * weight)[inside], last + 1)[1:] / counts)
    return width * np.arange(1, last + 1), np.stack(rows)


def log_spectral_distance(
    frequencies: np.ndarray, a: np.ndarray, b: np.ndarray, low: float = 0.0, high: float = np.inf
) -> float:
    """Distance in dB of two sets' mean power (N, K) and (M, K): root mean square over frequencies of 10 log10(a / b).

    Args:
        frequencies: (K,) in cycles/mm, of ``power_spectrum``.
        low: first frequency that counts, in cycles/mm; ``high`` is the last.

    Raises:
        BrainLDMError: the spectra do not fit, the range holds no frequency, or there is no power at one.
    """
    frequencies = np.asarray(frequencies)
    inside = (frequencies >= low) & (frequencies <= high)
    if {np.shape(part)[1:] for part in (a, b)} != {np.shape(frequencies)} or not inside.any():
        raise BrainLDMError(
            f"spectra {np.shape(a)} and {np.shape(b)}, frequencies {frequencies.shape}, {low} to {high} cycles/mm: "
            "give (N, K) and (M, K) of one grid, and a range with a frequency"
        )
    means = [np.asarray(part, float).mean(0)[inside] for part in (a, b)]
    if not all((part > 0).all() and np.isfinite(part).all() for part in means):
        raise BrainLDMError("spectra: no power at some frequency; look for empty volumes, or give a smaller range")
    return float(np.sqrt(np.mean((10 * np.log10(means[0] / means[1])) ** 2)))


def _one_by_one(volumes: VolumeSet) -> Iterator[np.ndarray]:
    """Volumes (D, H, W) float32 of a set, each read when its turn comes."""
    return (np.asarray(volumes[place : place + 1], np.float32)[0] for place in range(len(volumes)))


def noise_level(volumes: VolumeSet) -> np.ndarray:
    """Noise (N,) of volumes (N, D, H, W), in grey values: the robust estimate from the finest diagonal Haar detail.

    Median of |detail| / 0.6745 over blocks of 2 x 2 x 2 voxels inside the head (Donoho and Johnstone 1994): the
    standard deviation of white noise. Fine anatomy counts too, so it is an upper bound, and a poor one where voxels are
    coarse; NaN without a head.
    """
    levels = []
    for volume in _one_by_one(volumes):
        detail, inside = volume, volume > HEAD
        for axis in range(3):
            low, high = (np.delete(detail, place, axis) for place in (-1, 0))
            detail = (low - high) / np.sqrt(2)
            inside = np.delete(inside, -1, axis) & np.delete(inside, 0, axis)
        levels.append(np.median(np.abs(detail[inside])) / 0.6745 if inside.any() else np.nan)
    return np.array(levels, float)
