"""How alike two volumes are: MS-SSIM and 4-G-R-SSIM (table 1 of the paper), and their means over random pairs.

Volumes are (B, 1, D, H, W) tensors in [0, 1]. Within one set the mean similarity measures variety: the value of the
real set is the goal, a higher one is mode collapse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.stats import t as student
from torch.nn import functional

from .errors import BrainLDMError

WINDOW, SIGMA = 7, 1.5  # a side of 160 does not allow the usual window of 11 at five scales
C1, C2 = 0.01**2, 0.03**2
C3 = C2 / 2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
EDGE, FLAT = 0.12, 0.06  # thresholds of 4-G-R-SSIM, parts of the reference's largest gradient
STABLE = 1e-5
CACHE_BYTES, BATCH_VOXELS = 2**31, 2**18  # of pair_mean: what may be kept, and voxels of one batch of pairs
Parts = tuple[torch.Tensor, ...]


def _volumes(*volumes: torch.Tensor, side: int = WINDOW) -> None:
    """Refuse what is not (B, 1, D, H, W) in [0, 1] of one shape with sides of at least ``side`` voxels."""
    shapes = [tuple(volume.shape) for volume in volumes]
    if len(set(shapes)) > 1 or len(shapes[0]) != 5 or shapes[0][1] != 1:
        raise BrainLDMError(f"volumes of shapes {shapes}: give tensors (B, 1, D, H, W) of one shape")
    if min(shapes[0][2:]) < side:
        raise BrainLDMError(
            f"volumes of {shapes[0][2:]} voxels: every side must have at least {side}; use a finer grid"
        )
    for volume in volumes:
        if not (volume.is_floating_point() and volume.min() >= -1e-4 and volume.max() <= 1 + 1e-4):
            raise BrainLDMError("volumes: intensities must be floating point numbers in [0, 1]; scale them first")


@lru_cache(maxsize=64)
def _band(side: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Matrix (side - 6, side) of the valid Gaussian filter along one axis; products with it beat thin convolutions."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    rows = torch.zeros(side - WINDOW + 1, side, dtype=torch.float64)
    for row in range(len(rows)):
        rows[row, row : row + WINDOW] = weights / weights.sum()
    return rows.to(device, dtype)


def _smooth(x: torch.Tensor) -> torch.Tensor:
    """F[x]: separable Gaussian window, valid part."""
    batch, _, depth, height, width = x.shape
    bands = [_band(side, x.device, x.dtype) for side in (depth, height, width)]
    x = x @ bands[2].T
    x = bands[1] @ x
    return (bands[0] @ x.reshape(batch, depth, -1)).reshape(batch, 1, -1, height - WINDOW + 1, width - WINDOW + 1)


def ms_ssim_scales(shape: tuple[int, ...]) -> int:
    """How many of the five scales of MS-SSIM a grid (D, H, W) allows: every side holds the window at each."""
    return max(0, min(5, int(np.log2(max(1, min(shape) // WINDOW))) + (min(shape) >= WINDOW)))


def _ms_ssim_parts(x: torch.Tensor, scales: int | None = None) -> Parts:
    """At each scale the volume, its local mean and its local variance."""
    parts = []
    for scale in range(scales or ms_ssim_scales(x.shape[2:])):
        x = functional.avg_pool3d(x, 2) if scale else x
        mean = _smooth(x)
        parts += [x, mean, _smooth(x * x) - mean * mean]
    return tuple(parts)


def _ms_ssim(left: Parts, right: Parts) -> torch.Tensor:
    count = len(left) // 3
    weights = np.array(SCALE_WEIGHTS[:count]) / sum(SCALE_WEIGHTS[:count])
    product = 1.0
    for scale in range(count):
        (x, mean_x, var_x), (y, mean_y, var_y) = (parts[3 * scale : 3 * scale + 3] for parts in (left, right))
        both = mean_x * mean_y
        ratio = (2 * (_smooth(x * y) - both) + C2) / (var_x + var_y + C2)
        if scale == count - 1:  # luminance counts at the coarsest scale only
            ratio = ratio * (2 * both + C1) / (mean_x * mean_x + mean_y * mean_y + C1)
        product = product * ratio.mean((1, 2, 3, 4)).relu() ** weights[scale]
    return product


def ms_ssim(x: torch.Tensor, y: torch.Tensor, scales: int | None = None) -> torch.Tensor:
    """Multi-scale structural similarity (B,) of volumes (B, 1, D, H, W) (Wang 2003, equation 7), window 7, sigma 1.5.

    Args:
        scales: how many of the five; None takes what the grid allows (``ms_ssim_scales``). The weights of those that
            are used are renormalised to 1, so values of different numbers of scales do not compare.

    Raises:
        BrainLDMError: shapes or intensities do not fit, or the grid is too small.
    """
    _volumes(x, y)
    allowed = ms_ssim_scales(x.shape[2:])
    if scales is not None and not 1 <= scales <= allowed:
        raise BrainLDMError(f"{scales} scales: a grid of {tuple(x.shape[2:])} voxels allows 1 to {allowed}; give that")
    return _ms_ssim(_ms_ssim_parts(x, scales), _ms_ssim_parts(y, scales))


def _gradient(x: torch.Tensor) -> torch.Tensor:
    """Sum over axes of |S_d * x|, valid; the outer planes of S_d are -/+ [[1,1,1],[1,2,1],[1,1,1]] / 20."""

    def shifted(values: torch.Tensor, axis: int, start: int) -> torch.Tensor:
        return values.narrow(axis, start, values.shape[axis] - 2)

    total = 0.0
    for axis in (2, 3, 4):
        centre, box = x, x
        for other in {2, 3, 4} - {axis}:
            centre, box = shifted(centre, other, 1), sum(shifted(box, other, start) for start in range(3))
        plane = box + centre
        total = total + (shifted(plane, axis, 2) - shifted(plane, axis, 0)).abs()
    return total / 20


def _four_g_r_parts(x: torch.Tensor) -> Parts:
    """Local mean; gradient, its crop and largest value; local mean, variance and deviation of the gradient."""
    gradient = _gradient(x)
    mean, square = _smooth(gradient), _smooth(gradient * gradient)
    variance = square - mean * mean
    deviation = (variance + STABLE * (square + mean * mean) / 2).clamp_min(0).sqrt()
    inner = (..., *[slice(WINDOW // 2, -(WINDOW // 2))] * 3)
    luminance = _smooth(x)[..., 1:-1, 1:-1, 1:-1]
    return luminance, gradient, gradient[inner], gradient.amax((1, 2, 3, 4), keepdim=True), mean, variance, deviation


def _four_g_r(left: Parts, right: Parts, r_rule: bool = True) -> torch.Tensor:
    light_x, grad_x, inner_x, top, mean_x, var_x, dev_x = left
    light_y, grad_y, inner_y, _, mean_y, var_y, dev_y = right
    covariance = _smooth(grad_x * grad_y) - mean_x * mean_y
    both = dev_x * dev_y
    structure = (covariance + C3) / (both + C3)
    if r_rule:  # C1, C2 > 0 leave no denominator of the other two ratios that could be 0
        structure = torch.where(both == 0, ((dev_x == 0) & (dev_y == 0)).to(both.dtype), structure)
    luminance = (2 * light_x * light_y + C1) / (light_x * light_x + light_y * light_y + C1)
    quality = luminance * (2 * both + C2) / (var_x + var_y + C2) * structure
    high_x, high_y = inner_x > EDGE * top, inner_y > EDGE * top
    flat = (inner_x < FLAT * top) & (inner_y <= EDGE * top)  # no edge: t2 < t1 keeps the reference from being one
    regions = [high_x & high_y, high_x ^ high_y, flat, ~(high_x | high_y | flat)]
    sizes = torch.stack([region.sum((1, 2, 3, 4)) for region in regions])
    sums = torch.stack([(quality * region).sum((1, 2, 3, 4)) for region in regions])
    present = (sizes > 0).to(sums.dtype)
    return ((sums / (sizes + STABLE) * present).sum(0) / present.sum(0)).relu()


def four_g_r_ssim(reference: torch.Tensor, other: torch.Tensor, r_rule: bool = True) -> torch.Tensor:
    """Four-component gradient-based structural similarity (B,) of volumes (B, 1, D, H, W) (Li and Bovik 2010), in 3-D.

    Structure and contrast are those of gradients; preserved and changed edges, smooth parts and texture weigh a quarter
    each, or more where one is absent. Not symmetric: the reference sets the thresholds of the regions.

    Args:
        r_rule: where just one of two gradients is constant, structure is 0 (Rouse and Hemami 2008), not nearly 1.

    Raises:
        BrainLDMError: shapes or intensities do not fit, or a side has fewer than 9 voxels.
    """
    _volumes(reference, other, side=WINDOW + 2)
    return _four_g_r(_four_g_r_parts(reference), _four_g_r_parts(other), r_rule)


# What pair_mean may compute once a volume instead of once a pair.
_SPLIT: dict[Callable, tuple[Callable, Callable, int]] = {
    ms_ssim: (_ms_ssim_parts, _ms_ssim, WINDOW),
    four_g_r_ssim: (_four_g_r_parts, _four_g_r, WINDOW + 2),
}


@dataclass(frozen=True)
class PairMean:
    """Mean of a similarity over pairs of ``n`` volumes, its standard error and 95 % interval (NaN for n < 3)."""

    value: float
    error: float
    low: float
    high: float
    pairs: int
    n: int


def draw_pairs(n: int, pairs: int, seed: int = 0) -> np.ndarray:
    """Random pairs (P, 2) of different volumes, none drawn twice; all where there are not so many."""
    rng = np.random.default_rng(seed)
    total = n * (n - 1) // 2
    index = np.sort(rng.choice(total, min(pairs, total), replace=False))
    first = ((1 + np.sqrt(1 + 8.0 * index)) // 2).astype(np.int64)  # pairs numbered row by row below the diagonal
    rows = np.column_stack([first, index - first * (first - 1) // 2])
    return np.where(rng.random((len(rows), 1)) < 0.5, rows, rows[:, ::-1])  # for the metrics that are not symmetric


def pair_values(metric: Callable, volumes: torch.Tensor, pairs: np.ndarray) -> np.ndarray:
    """``metric`` (x, y) -> (B,) of each of ``pairs`` (P, 2) of volumes (N, 1, D, H, W), in double precision (P,).

    Raises:
        BrainLDMError: volumes that the metric refuses.
    """
    n, rows = len(volumes), torch.from_numpy(np.asarray(pairs))
    prepare, compare, side = _SPLIT.get(metric, (lambda x: (x,), lambda x, y: metric(x[0], y[0]), 1))
    _volumes(volumes, side=side)
    one = prepare(volumes[:1])
    keep = n * sum(part.nbytes for part in one) <= CACHE_BYTES
    cached = [torch.cat(part) for part in zip(*map(prepare, volumes.split(16)), strict=True)] if keep else None

    def parts(index: torch.Tensor) -> Parts:
        return tuple(part[index] for part in cached) if keep else prepare(volumes[index])

    batches = rows.split(max(1, BATCH_VOXELS // volumes[0].numel()))
    values = torch.cat([compare(parts(batch[:, 0]), parts(batch[:, 1])) for batch in batches])
    return values.double().cpu().numpy()


def pair_mean(metric: Callable, volumes: torch.Tensor, pairs: int = 1000, seed: int = 0) -> PairMean:
    """Mean of ``metric`` (x, y) -> (B,) over random pairs i != j of volumes (N, 1, D, H, W) (table 1 of the paper).

    Pairs share volumes, so the error is that of leaving out one volume at a time (jackknife), not that of ``pairs``
    independent values; it is on average not too small (Efron and Stein 1981).

    Raises:
        BrainLDMError: fewer than two volumes, or volumes that the metric refuses.
    """
    n = len(volumes)
    if n < 2 or pairs < 1:
        raise BrainLDMError(f"{pairs} pairs of {n} volumes: at least 1 pair of 2 volumes is needed; give more")
    rows = draw_pairs(n, pairs, seed)
    values = pair_values(metric, volumes, rows)
    error = _jackknife(values, rows, n)
    half = error * student.ppf(0.975, n - 1)
    return PairMean(float(values.mean()), error, float(values.mean() - half), float(values.mean() + half), len(rows), n)


def _jackknife(values: np.ndarray, rows: np.ndarray, n: int) -> float:
    """Standard error of the mean of values of pairs ``rows`` (P, 2) from leaving out each of ``n`` volumes."""
    counts = np.bincount(rows.ravel(), minlength=n)
    sums = np.bincount(rows.ravel(), np.repeat(values, 2), minlength=n)
    left = len(values) - counts
    if (left == 0).any():
        return float("nan")
    without = (values.sum() - sums) / left
    return float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))
