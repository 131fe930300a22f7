"""Does a volume have what was asked of it? Agreement of requested and measured covariates (figure 3 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Agreement:
    """Pearson correlation with its bootstrap interval, and the errors in the unit of the quantity."""

    n: int
    r: float
    low: float
    high: float
    slope: float
    bias: float
    mae: float

    def note(self) -> str:
        """For the title of a panel: r with its interval, and n."""
        if not np.isfinite(self.r):
            return f"no correlation to compute, n = {self.n}"
        return f"r = {self.r:.3f} [{self.low:.3f}, {self.high:.3f}], n = {self.n}"

    def response(self) -> str:
        """In words: how much more is measured when more is asked for; nothing where there is no line to fit."""
        if not np.isfinite(self.slope):
            return ""
        return f"For one millilitre more that is asked for, {self.slope:.2f} ml more are measured."

    def result(self, **more: Any) -> dict[str, Any]:
        """The row of a results file."""
        return {
            "value": round(self.r, 4),
            "unit": "r",
            "low": round(self.low, 4),
            "high": round(self.high, 4),
            "n": self.n,
        } | more


def agreement(requested: np.ndarray, measured: np.ndarray, draws: int = 2000, seed: int = 0) -> Agreement:
    """Agreement of two columns (N,); rows where either is missing are left out.

    The interval holds 95 % of correlations of resampled rows. With fewer than three rows, or a constant column,
    r is NaN.
    """
    pairs = np.column_stack([np.asarray(requested, float), np.asarray(measured, float)])
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    n = len(pairs)
    error = pairs[:, 1] - pairs[:, 0]
    bias, mae = (float(error.mean()), float(np.abs(error).mean())) if n else (np.nan, np.nan)
    if n < 3 or (np.ptp(pairs, axis=0) == 0).any():
        return Agreement(n, np.nan, np.nan, np.nan, np.nan, bias, mae)
    rows = np.random.default_rng(seed).integers(0, n, (draws, n))
    resampled = _correlation(pairs[rows, 0], pairs[rows, 1])
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    slope = float(np.polyfit(pairs[:, 0], pairs[:, 1], 1)[0])
    return Agreement(n, float(_correlation(pairs[:, 0], pairs[:, 1])), float(low), float(high), slope, bias, mae)


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson r along the last axis; NaN where a resample is constant."""
    x = x - x.mean(axis=-1, keepdims=True)
    y = y - y.mean(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(axis=-1) / np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
