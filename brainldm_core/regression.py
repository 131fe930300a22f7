"""What a straight line knows: age without a picture, what is left when volumes are known, two sexes told apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .conditioning import correlation, middle, resample

PENALTIES = tuple(10.0**power for power in range(-1, 6))  # of ridge regression; leaving one out chooses


def partial_correlation(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """Pearson r of what is left of ``x`` and ``y`` (N,) after least squares on ``given`` (N, K); NaN for few rows."""
    rows = np.column_stack([np.asarray(x, float), np.asarray(y, float), np.asarray(given, float)])
    rows = rows[np.isfinite(rows).all(axis=1)]
    design = np.column_stack([np.ones(len(rows)), rows[:, 2:]])
    if len(rows) < design.shape[1] + 2:
        return float("nan")
    left = rows[:, :2] - design @ np.linalg.lstsq(design, rows[:, :2], rcond=None)[0]
    if (left.std(axis=0) <= 1e-9 * np.abs(rows[:, :2]).max(axis=0)).any():  # nothing left but rounding
        return float("nan")
    return float(correlation(left[:, 0], left[:, 1]))


def partial_row(x: np.ndarray, y: np.ndarray, given: np.ndarray, draws: int = 2000, seed: int = 0) -> dict[str, Any]:
    """``partial_correlation`` with its 95 % bootstrap interval over rows, as a row of results."""
    rows = np.column_stack([np.asarray(x, float), np.asarray(y, float), np.asarray(given, float)])
    rows = rows[np.isfinite(rows).all(axis=1)]
    value = partial_correlation(rows[:, 0], rows[:, 1], rows[:, 2:])
    row = {"value": value, "low": np.nan, "high": np.nan, "n": len(rows), "unit": "r"}
    if not np.isfinite(value):
        return row
    rng = np.random.default_rng(seed)
    parts = (rows[chosen] for block in resample(rng, len(rows), draws) for chosen in block)
    low, high = middle(np.array([partial_correlation(part[:, 0], part[:, 1], part[:, 2:]) for part in parts]))
    return row | {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4)}


def linear_prediction(features: np.ndarray, target: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Least squares of ``target`` (N,) on ``features`` (N, K), applied to ``new`` (M, K); NaN where unknown."""
    features, target, new = (np.asarray(part, float) for part in (features, target, new))
    known = np.isfinite(features).all(axis=1) & np.isfinite(target)
    if not known.any():
        return np.full(len(new), np.nan)
    centre, scale = features[known].mean(axis=0), features[known].std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    design = np.column_stack([np.ones(known.sum()), (features[known] - centre) / scale])
    weights = np.linalg.lstsq(design, target[known], rcond=None)[0]
    return weights[0] + (new - centre) / scale @ weights[1:]


def separation(scores: np.ndarray, positive: np.ndarray, draws: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Area under the ROC curve with its 95 % bootstrap interval, as a row of results; chance is 0.5.

    The share of pairs (one of each group) in which the positive one (1 against 0, NaN unknown) scores higher.
    """
    scores, positive = np.asarray(scores, float), np.asarray(positive, float)
    known = np.isfinite(scores) & np.isfinite(positive)
    yes, no = (scores[known & (positive == side)] for side in (1, 0))
    row = {"value": np.nan, "low": np.nan, "high": np.nan, "n": int(known.sum()), "unit": "area under ROC"}
    if min(len(yes), len(no)) < 2:
        return row
    wins = (yes[:, None] > no[None]) + 0.5 * (yes[:, None] == no[None])
    rng = np.random.default_rng(seed)
    again = [
        wins[np.ix_(rng.integers(0, len(yes), len(yes)), rng.integers(0, len(no), len(no)))].mean()
        for _ in range(draws)
    ]
    low, high = np.quantile(again, [0.025, 0.975])
    return row | {"value": round(float(wins.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def ridge_prediction(
    features: np.ndarray, target: np.ndarray, new: np.ndarray, penalties: Sequence[float] = PENALTIES
) -> np.ndarray:
    """Ridge regression of ``target`` (N,) on standardised ``features`` (N, F), applied to ``new`` (M, F).

    w = argmin |Xw - y|^2 + a |w|^2; the penalty a is the one of least squared error when each row is left out in turn
    (Golub 1979). For a target of 0 and 1 and many features this is a regularised discriminant. NaN where fewer than two
    different targets are known.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, target, new = (np.asarray(part, float) for part in (features, target, new))
    known = np.isfinite(target)
    if len(np.unique(target[known])) < 2:
        return np.full(len(new), np.nan)
    return make_pipeline(StandardScaler(), RidgeCV(penalties)).fit(features[known], target[known]).predict(new)


def half_way(scores: np.ndarray, positive: np.ndarray) -> float:
    """The threshold of a discriminant: half way between the mean scores (N,) of both groups of the training rows."""
    scores, positive = np.asarray(scores, float), np.asarray(positive, float)
    means = [scores[np.isfinite(scores) & (positive == side)] for side in (1, 0)]
    return float(np.mean([part.mean() for part in means])) if all(map(len, means)) else float("nan")


def accuracy(scores: np.ndarray, positive: np.ndarray, threshold: float) -> dict[str, Any]:
    """Share of rows on the right side of a threshold set elsewhere, as a row of results, and that of the majority.

    ``positive`` is 1, 0 or NaN (unknown). The 95 % interval is Wilson's; ``null`` is what naming the more
    frequent group every time would reach.
    """
    from scipy.stats import binomtest

    scores, positive = np.asarray(scores, float), np.asarray(positive, float)
    known = np.isfinite(scores) & np.isfinite(positive)
    n, side = int(known.sum()), positive[known]
    row = {"value": np.nan, "low": np.nan, "high": np.nan, "n": n, "unit": "share right", "null": np.nan}
    if not n or not np.isfinite(threshold):
        return row
    right = int(((scores[known] > threshold) == (side == 1)).sum())
    low, high = binomtest(right, n).proportion_ci(method="wilson")
    ends = {
        "value": right / n,
        "low": float(low),
        "high": float(high),
        "null": float(max(side.mean(), 1 - side.mean())),
    }
    return row | {name: round(value, 4) for name, value in ends.items()}
