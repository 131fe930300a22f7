"""How near generated volumes are to real ones (table 1 of the paper): distances between two sets of features (N, F).

Similarities of pairs of volumes are written in ``similarity`` and given here too, so that every metric has one address.
"""

from __future__ import annotations

import numpy as np
import torch

from .errors import BrainLDMError
from .similarity import PairMean, draw_pairs, four_g_r_ssim, ms_ssim, ms_ssim_scales, pair_mean

__all__ = [
    "PairMean",
    "draw_pairs",
    "four_g_r_ssim",
    "frechet_distance",
    "kernel_distance",
    "ms_ssim",
    "ms_ssim_scales",
    "pair_mean",
    "prdc",
]


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


def frechet_distance(a: np.ndarray | torch.Tensor, b: np.ndarray | torch.Tensor) -> float:
    """Frechet distance of Gaussians fitted to features (N, F) and (M, F): FID (Heusel 2017, equation 6), in float64.

    The trace of the square root is the nuclear norm of the product of the centred sets, exact for fewer rows than
    features too. The value depends on N and M: compare only values of equal numbers.

    Raises:
        BrainLDMError: the tables do not fit or hold values that are not finite.
    """
    a, b = _features(a, b)
    difference = (a.mean(0) - b.mean(0)).square().sum()
    roots = [(values - values.mean(0)) / (len(values) - 1) ** 0.5 for values in (a, b)]
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
    n, m, width = len(a), len(b), a.shape[1]
    aa, bb, ab = ((x @ y.T / width + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = (aa.sum() - aa.trace()) / (n * (n - 1)) + (bb.sum() - bb.trace()) / (m * (m - 1))
    return float(within - 2 * ab.mean())


def prdc(real: np.ndarray | torch.Tensor, fake: np.ndarray | torch.Tensor, k: int = 5) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi 2019), density and coverage (Naeem 2020) of features (N, F), k neighbours.

    Raises:
        BrainLDMError: the tables do not fit, or ``k`` is not smaller than both numbers of rows.
    """
    real, fake = _features(real, fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise BrainLDMError(f"k = {k}: needs 1 <= k < rows, there are {len(real)} and {len(fake)}; give a smaller k")
    exact = "donot_use_mm_for_euclid_dist"  # a volume's distance to itself is 0
    across = torch.cdist(real, fake, compute_mode=exact)
    # The nearest of a set to one of its own is itself, so the k-th neighbour stands at place k + 1.
    radius, other = (torch.cdist(x, x, compute_mode=exact).kthvalue(k + 1, dim=1).values for x in (real, fake))
    inside = across < radius[:, None]
    return {
        "precision": float(inside.any(0).double().mean()),
        "recall": float((across < other[None]).any(1).double().mean()),
        "density": float(inside.sum() / (k * len(fake))),
        "coverage": float(inside.any(1).double().mean()),
    }
