"""Is one sampler as good as another? Paired differences inside a margin that was set beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import BrainLDMError

ENOUGH = 256  # pairs below which no equivalence is claimed


@dataclass(frozen=True)
class Equivalence:
    """Mean of ``n`` paired differences with its 95 % interval, and the margin set beforehand, in the same unit."""

    n: int
    difference: float
    low: float
    high: float
    margin: float

    @property
    def shown(self) -> bool:
        """Whether "as good as" is shown: at least 256 pairs and the whole interval inside the margin."""
        return self.n >= ENOUGH and -self.margin < self.low and self.high < self.margin

    def record(self) -> dict[str, Any]:
        """Every number and the verdict, for a results file."""
        return {**vars(self), "shown": self.shown}


def equivalence(differences: np.ndarray, margin: float, groups: Sequence | None = None) -> Equivalence:
    """Test of equivalence of two systems from paired differences (N,): 95 % interval of the mean inside the margin.

    Both ends are tests at 2.5 % (two one-sided tests, Schuirmann 1987). A common error of both systems, such as the
    ruler's bias, cancels in a difference.

    Args:
        groups: what differences share (N,), for instance the request that several noises answer. Each group counts as
            one difference, its mean, as what shares a request is not independent.

    Raises:
        BrainLDMError: fewer than two differences, one that is not finite, a margin that is not above zero,
            or groups that do not fit.
    """
    from scipy.stats import t as student

    differences = np.asarray(differences, float)
    if groups is not None:
        if np.shape(groups) != differences.shape:
            raise BrainLDMError(f"{np.shape(groups)} groups of {differences.shape} differences: give one a difference")
        _, member = np.unique(np.asarray(groups), return_inverse=True)
        differences = np.bincount(member, differences) / np.bincount(member)
    if differences.ndim != 1 or len(differences) < 2 or not np.isfinite(differences).all() or not margin > 0:
        raise BrainLDMError(
            f"{differences.shape} differences, margin {margin}: at least 2 finite differences in one column and "
            "a margin above 0 are needed"
        )
    n, mean = len(differences), float(differences.mean())
    half = float(student.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n))
    return Equivalence(n, mean, mean - half, mean + half, float(margin))


def paired_distance(
    metric: Callable[..., float],
    reference: np.ndarray,
    one: np.ndarray,
    other: np.ndarray,
    margin: float,
    draws: int = 200,
    seed: int = 0,
) -> Equivalence:
    """Equivalence of two sets of features (N, F), rows paired, in their distance to a reference (M, F), as FID.

    The difference is ``metric(reference, one) - metric(reference, other)``. Its 95 % interval comes from random halves
    without replacement, the same rows of both sets and the same half of the reference: what the sets share cancels, and
    halves spread as new samples of full size would (a bootstrap would repeat volumes and shift FID).

    Raises:
        BrainLDMError: rows that do not pair, or fewer than four of them or of the reference.
    """
    if len(one) != len(other) or min(len(one), len(reference)) < 4 or not margin > 0:
        raise BrainLDMError(
            f"{len(one)} and {len(other)} rows against {len(reference)}, margin {margin}: as many of both, at least 4 "
            "of each and a margin above 0 are needed"
        )
    rng = np.random.default_rng(seed)

    def gap(real: np.ndarray, rows: np.ndarray) -> float:
        return metric(reference[real], one[rows]) - metric(reference[real], other[rows])

    whole = gap(np.arange(len(reference)), np.arange(len(one)))
    halves = ([rng.permutation(len(rows))[: len(rows) // 2] for rows in (reference, one)] for _ in range(draws))
    spread = np.array([gap(*half) for half in halves])
    low, high = whole + np.quantile(spread - spread.mean(), [0.025, 0.975])
    return Equivalence(len(one), whole, float(low), float(high), float(margin))
