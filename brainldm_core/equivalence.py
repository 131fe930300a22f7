"""Is one sampler as good as another? Paired differences inside a margin that was set beforehand."""

from __future__ import annotations

from dataclasses import dataclass

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


def equivalence(differences: np.ndarray, margin: float) -> Equivalence:
    """Test of equivalence of two systems from paired differences (N,), one a subject: interval inside the margin.

    Raises:
        BrainLDMError: fewer than two differences, one that is not finite, or a margin that is not above zero.
    """
    from scipy.stats import t as student

    differences = np.asarray(differences, float)
    if differences.ndim != 1 or len(differences) < 2 or not np.isfinite(differences).all() or not margin > 0:
        raise BrainLDMError(
            f"{differences.shape} differences, margin {margin}: at least 2 finite differences in one column and "
            "a margin above 0 are needed"
        )
    n, mean = len(differences), float(differences.mean())
    half = float(student.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n))
    return Equivalence(n, mean, mean - half, mean + half, float(margin))
