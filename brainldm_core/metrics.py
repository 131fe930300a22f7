"""How near generated volumes are to real ones (table 1 of the paper): distances between two sets of features (N, F).

What ``moments``, ``pairs``, ``similarity`` and ``spectra`` hold is given here too: every metric has one address. Sums
are taken in float64, and in blocks where a table of all pairs of rows would not fit into memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch

from .errors import BrainLDMError
from .moments import FeatureMoments, check_same, feature_moments, load_moments
from .pairs import PairMean, draw_pairs, pair_mean
from .similarity import four_g_r_ssim, ms_ssim, ms_ssim_scales
from .spectra import log_spectral_distance, power_spectrum

__all__ = [
    "FeatureMoments",
    "PairMean",
    "draw_pairs",
    "feature_moments",
    "four_g_r_ssim",
    "frechet_distance",
    "kernel_distance",
    "load_moments",
    "log_spectral_distance",
    "median_bandwidth",
    "mmd",
    "ms_ssim",
    "ms_ssim_scales",
    "pair_mean",
    "power_spectrum",
    "prdc",
]
BLOCK = 2048  # rows of one block of a table of pairs; 32 MiB of float64


def _features(*sets: np.ndarray | torch.Tensor) -> list[torch.Tensor]:
    """Sets of features as float64."""
    found = [torch.as_tensor(values).detach().to(torch.float64) for values in sets]
    if any(values.ndim != 2 or len(values) < 2 for values in found) or len({v.shape[1] for v in found}) > 1:
        raise BrainLDMError(
            f"features of shapes {[tuple(v.shape) for v in found]}: two tables (N, F) of the same F and at least 2 "
            "rows are needed; give both sets from one extractor"
        )
    if not all(values.isfinite().all() for values in found):
        raise BrainLDMError("features: not all are finite; look for broken volumes in both sets")
    return found


def frechet_distance(
    a: np.ndarray | torch.Tensor | FeatureMoments, b: np.ndarray | torch.Tensor | FeatureMoments
) -> float:
    """Frechet distance of Gaussians fitted to features (N, F) and (M, F): FID (Heusel 2017, equation 6), in float64.

    The trace of the square root is the nuclear norm of the product of the centred sets, exact for fewer rows than
    features too. The value depends on N and M: compare only values of equal numbers. Sets too large for a table are
    given by their moments (``feature_moments``); from a covariance the rounding is larger, as its root is taken.

    Raises:
        BrainLDMError: the sets do not fit or hold values that are not finite.
    """
    given = [isinstance(part, FeatureMoments) for part in (a, b)]
    if any(given):
        a, b = (part if known else feature_moments([part]) for part, known in zip((a, b), given, strict=True))
        check_same(a, b)
        if min(a.n, b.n) < 2:
            raise BrainLDMError(f"moments of {a.n} and {b.n} rows: at least 2 are needed; give more volumes")
        means, roots = [a.mean, b.mean], [a.root(), b.root()]
    else:
        a, b = _features(a, b)
        means = [a.mean(0), b.mean(0)]
        roots = [(values - values.mean(0)) / (len(values) - 1) ** 0.5 for values in (a, b)]
    difference = (means[0] - means[1]).square().sum()
    spread = sum(root.square().sum() for root in roots)
    # With more rows than features the triangular factor is smaller and has the same product.
    left, right = (torch.linalg.qr(r, mode="r").R if len(r) > r.shape[1] else r for r in roots)
    return max(0.0, float(difference + spread - 2 * torch.linalg.svdvals(left @ right.T).sum()))


def kernel_distance(a: np.ndarray | torch.Tensor, b: np.ndarray | torch.Tensor) -> float:
    """Squared maximum mean discrepancy with the kernel (x.y / F + 1)^3: KID (Binkowski 2018, equation 4).

    Unbiased for any number of rows, so it may be below zero.

    Raises:
        BrainLDMError: the tables do not fit or hold values that are not finite.
    """
    a, b = _features(a, b)
    return _discrepancy(a, b, lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3)


def mmd(
    a: np.ndarray | torch.Tensor,
    b: np.ndarray | torch.Tensor,
    bandwidth: float | None = None,
    kernel: Literal["rbf", "linear"] = "rbf",
    unbiased: bool = True,
) -> float:
    """Squared maximum mean discrepancy of features (N, F) and (M, F): MMD (Gretton 2012, equation 3).

    The kernel ``rbf`` is exp(-|x - y|^2 / (2 s^2)), ``linear`` is x.y: the squared distance of the means, as
    MONAI's ``MMDMetric`` takes it. Volumes as rows (N, D H W) are features too.

    Args:
        bandwidth: s of ``rbf``; None: ``median_bandwidth(a, b)``. It depends on both sets, so where several sets are
            compared with one, take it once, of real volumes, and print it with the values.
        unbiased: without the terms of a row with itself, so it may be below zero; else at least zero, 0 of equal sets.

    Raises:
        BrainLDMError: the tables do not fit, hold values that are not finite, or the bandwidth is not above zero.
    """
    if kernel not in ("rbf", "linear"):
        raise BrainLDMError(f"kernel {kernel!r}: is unknown; give rbf or linear")
    a, b = _features(a, b)
    a, b = a - a.mean(0), b - a.mean(0)  # the distances stay, and lose fewer digits
    if kernel == "linear":
        return _discrepancy(a, b, lambda x, y: x @ y.T, unbiased)
    width = median_bandwidth(a, b) if bandwidth is None else bandwidth
    if not 0 < width < np.inf:
        raise BrainLDMError(f"bandwidth {width}: must be above 0; give one, where most rows are the same")

    def rbf(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
        return squares.clamp_(min=0).mul_(-1 / (2 * width**2)).exp_()

    return _discrepancy(a, b, rbf, unbiased)


def median_bandwidth(a: np.ndarray | torch.Tensor, b: np.ndarray | torch.Tensor) -> float:
    """Median distance of two rows among all rows of both sets (N, F) and (M, F): the median heuristic (Gretton 2012).

    Of more than 2,048 rows that many are taken at random, with a fixed seed.

    Raises:
        BrainLDMError: the tables do not fit or hold values that are not finite.
    """
    rows = torch.cat(_features(a, b))
    chosen = np.random.default_rng(0).choice(len(rows), min(len(rows), BLOCK), replace=False)
    return float(np.median(torch.pdist(rows[np.sort(chosen)]).numpy()))


def _discrepancy(a: torch.Tensor, b: torch.Tensor, kernel: Callable, unbiased: bool = True) -> float:
    """Means of the kernel inside both sets less twice that between them, from blocks of rows."""
    n, m = len(a), len(b)

    def within(rows: torch.Tensor) -> torch.Tensor:
        total, parts = torch.zeros((), dtype=torch.float64), rows.split(BLOCK)
        for place, part in enumerate(parts):
            block = kernel(part, part)
            total += block.sum() - block.trace() if unbiased else block.sum()
            total += 2 * sum(kernel(part, other).sum() for other in parts[place + 1 :])
        return total / (len(rows) * (len(rows) - unbiased))

    between = sum(kernel(x, y).sum() for x in a.split(BLOCK) for y in b.split(BLOCK)) / (n * m)
    return float(within(a) + within(b) - 2 * between)


def prdc(real: np.ndarray | torch.Tensor, fake: np.ndarray | torch.Tensor, k: int = 5) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi 2019), density and coverage (Naeem 2020) of features (N, F), k neighbours.

    Raises:
        BrainLDMError: the tables do not fit, or ``k`` is not smaller than both numbers of rows.
    """
    real, fake = _features(real, fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise BrainLDMError(f"k = {k}: needs 1 <= k < rows, there are {len(real)} and {len(fake)}; give a smaller k")
    exact = "donot_use_mm_for_euclid_dist"  # a volume's distance to itself is 0
    precise, recalled, covered, count = torch.zeros(len(fake), dtype=torch.bool), [], [], 0
    # The nearest of a set to one of its own is itself, so the k-th neighbour stands at place k + 1.
    radius, other = (
        torch.cat([torch.cdist(part, x, compute_mode=exact).kthvalue(k + 1, dim=1).values for part in x.split(BLOCK)])
        for x in (real, fake)
    )
    for part, reach in zip(real.split(BLOCK), radius.split(BLOCK), strict=True):
        across = torch.cdist(part, fake, compute_mode=exact)
        inside = across < reach[:, None]
        precise |= inside.any(0)
        covered.append(inside.any(1))
        recalled.append((across < other[None]).any(1))
        count += int(inside.sum())
    return {
        "precision": float(precise.double().mean()),
        "recall": float(torch.cat(recalled).double().mean()),
        "density": count / (k * len(fake)),
        "coverage": float(torch.cat(covered).double().mean()),
    }
