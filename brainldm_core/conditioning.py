"""Does a volume have what was asked of it? Section 3.2 of the paper, its figures 2 and 3, and what they leave open.

Agreement of requested and measured values; how far other quantities move with the one that is asked for; whether what
is measured follows the request or the noise. The requests are made, and drawn, in ``sweeps``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .covariates import numeric

if TYPE_CHECKING:
    import pandas as pd

ASKED_AND_MEASURED = {
    "ventricles": ("ventricular_volume_ml", "measured_lateral_ventricles_ml"),
    "brain": ("brain_volume_ml", "measured_brain_volume_ml"),
}
"""Quantity -> column of the request and of the measurement, both in ml."""


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

    def record(self) -> dict[str, float | None]:
        """Every number, as a stage's record holds it; what is not finite is null."""
        return {name: round(value, 4) if np.isfinite(value) else None for name, value in vars(self).items()}

    def result(self, **more: Any) -> dict[str, Any]:
        """The row of a results file."""
        return {
            "value": round(self.r, 4),
            "unit": "r",
            "low": round(self.low, 4),
            "high": round(self.high, 4),
            "n": self.n,
        } | more


def result_rows(key: str, row: Agreement, unit: str, **more: Any) -> dict[str, dict[str, Any]]:
    """Rows of a results file: r under ``<key>_r``, then mean absolute error and bias in ``unit``, and slope."""
    errors = {f"{key}_mae_{unit}": (row.mae, unit), f"{key}_bias_{unit}": (row.bias, unit)}
    rows = {name: {"value": round(value, 3), "unit": of, "n": row.n} for name, (value, of) in errors.items()}
    return {f"{key}_r": row.result(**more)} | rows | {f"{key}_slope": {"value": round(row.slope, 3), "n": row.n}}


def agreement(
    requested: np.ndarray,
    measured: np.ndarray,
    draws: int = 2000,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> Agreement:
    """Agreement of two columns (N,); rows where either is missing are left out.

    The interval holds 95 % of correlations of resampled rows. With fewer than three rows, or a constant column,
    r is NaN.

    Args:
        groups: what rows share (N,), for instance the anatomy they were warped from: groups are resampled instead of
            rows, as rows of one group are not independent. One group alone counts as none.
    """
    pairs = np.column_stack([np.asarray(requested, float), np.asarray(measured, float)])
    known = np.isfinite(pairs).all(axis=1)
    pairs, n = pairs[known], int(known.sum())
    error = pairs[:, 1] - pairs[:, 0]
    bias, mae = (float(error.mean()), float(np.abs(error).mean())) if n else (np.nan, np.nan)
    if n < 3 or (np.ptp(pairs, axis=0) == 0).any():
        return Agreement(n, np.nan, np.nan, np.nan, np.nan, bias, mae)
    rng = np.random.default_rng(seed)
    names, member = np.unique(np.zeros(n) if groups is None else np.asarray(groups)[known], return_inverse=True)
    if len(names) > 1:
        rows = [np.flatnonzero(member == group) for group in range(len(names))]
        chosen = rng.integers(0, len(names), (draws, len(names)))
        resampled = [_correlation(*pairs[np.concatenate([rows[group] for group in draw])].T) for draw in chosen]
    else:
        rows = rng.integers(0, n, (draws, n))
        resampled = _correlation(pairs[rows, 0], pairs[rows, 1])
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    r = float(_correlation(pairs[:, 0], pairs[:, 1]))
    return Agreement(n, r, float(low), float(high), slope(pairs[:, 0], pairs[:, 1]), bias, mae)


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson r along the last axis; NaN where a resample is constant."""
    x = x - x.mean(axis=-1, keepdims=True)
    y = y - y.mean(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(axis=-1) / np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Least-squares slope of two columns (N,), from two different values of ``x`` on; NaN for fewer."""
    pairs = np.column_stack([np.asarray(x, float), np.asarray(y, float)])
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    if len(pairs) < 2 or np.ptp(pairs[:, 0]) == 0:
        return float("nan")
    return float(np.polyfit(pairs[:, 0], pairs[:, 1], 1)[0])


_BEYOND = (
    (-0.25, "turns round"),
    (0.25, "hardly follows any more"),
    (0.75, "follows, but less than inside"),
    (1.5, "goes on much as inside"),
    (float("inf"), "goes further than inside"),
)


def beyond_in_words(name: str, slopes: Mapping[str, float]) -> str:
    """What slopes inside the training range and beyond its ends (``below``, ``above``) say of an extrapolation."""
    inside = slopes["inside"]
    if not inside >= 0.1:
        words = f"the slope is {inside:.2f}" if np.isfinite(inside) else "there is no slope"
        return f"**{name.capitalize()}**: {words} inside the range. What is not followed there says nothing of outside."
    said = [f"**{name.capitalize()}**: one millilitre more that is asked for gives {inside:.2f} ml inside the range."]
    for side in ("below", "above"):
        share = slopes[side] / inside
        if np.isfinite(share):
            words = next(text for limit, text in _BEYOND if share < limit)
            said.append(f"{side.capitalize()} it, the slope is {slopes[side]:.2f}: the answer {words}.")
    return " ".join(said)


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
    return float(_correlation(left[:, 0], left[:, 1]))


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


def scorecard(found: Mapping[str, Mapping[str, Agreement]], units: Mapping[str, str]) -> pd.DataFrame:
    """A table with a row for each quantity and source: n, r with its interval, slope, bias and mean error."""
    import pandas as pd

    rows = {}
    for quantity, sources in found.items():
        for source, row in sources.items():
            r = f"{row.r:.3f} [{row.low:.3f}, {row.high:.3f}]" if np.isfinite(row.r) else "–"
            numbers = {".2f": row.slope, "+.1f": row.bias, ".1f": row.mae}
            cells = [f"{value:{form}}" if np.isfinite(value) else "–" for form, value in numbers.items()]
            rows[f"{quantity} ({units[quantity]})", source] = (row.n, r, *cells)
    columns = ["n", "r, 95 % interval", "slope", "bias", "mean error"]
    return pd.DataFrame(rows.values(), pd.MultiIndex.from_tuples(rows, names=["covariate", "source"]), columns)


def cross_talk(
    table: pd.DataFrame, measured: Sequence[str], units: Mapping[str, float]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How far each measured column moves when one covariate is moved, and its standard error over the noises.

    ``table`` comes from ``sweeps.draw`` and has ``moved`` and ``noise``; ``units`` holds the standard deviation of
    every covariate and measured column (a change of sex counts 1). An entry is the least-squares slope of a noise,
    averaged over noises: standard deviations measured for one that is asked for. The identity is perfect control.
    """
    import pandas as pd

    mean, error = {}, {}
    for column, part in table.groupby("moved", sort=False):
        slopes = []
        for _, rows in part.groupby("noise"):
            x = numeric(rows, column) / units[column]
            y = rows[list(measured)].to_numpy(float) / [units[name] or np.nan for name in measured]
            width = ((x - x.mean()) ** 2).sum()
            slopes.append(((x - x.mean())[:, None] * y).sum(axis=0) / (width if width > 0 else np.nan))
        mean[column] = np.mean(slopes, axis=0)
        error[column] = (
            np.std(slopes, axis=0, ddof=1) / np.sqrt(len(slopes)) if len(slopes) > 1 else mean[column] * np.nan
        )
    return tuple(pd.DataFrame.from_dict(part, orient="index", columns=list(measured)) for part in (mean, error))


def off_diagonal(matrix: pd.DataFrame) -> tuple[str, str, float]:
    """Row, column and value of the largest entry of a square matrix off its diagonal; NaN where none is known."""
    size = np.where(np.eye(len(matrix), dtype=bool), np.nan, np.abs(matrix.to_numpy(float)))
    if np.isnan(size).all():
        return "nothing", "nothing", float("nan")
    row, column = np.unravel_index(np.nanargmax(size), size.shape)
    return matrix.index[row], matrix.columns[column], float(matrix.iat[row, column])


def swap_test(found: np.ndarray, sign: float) -> dict[str, float]:
    """Two requests exchanged between noises: does a measured quantity follow the request, or stay with the noise?

    ``found`` (2, K) holds it for both requests (rows) and K noises; ``sign`` is that of the difference asked for,
    second request less first. Each pair of noises gets the requests one way round and the other. The quantity follows
    the request when the order that was asked for comes out both times, and the noise when the larger value stays where
    it was. Shares of variance are those of a two-way table: request, noise, and what neither explains.
    """
    found = np.asarray(found, float)
    sign = np.sign(sign) or np.nan  # nothing was asked for
    noises = found.shape[1]
    pairs = [(j, k) for j in range(noises) for k in range(j)]
    one = np.array([sign * (found[1, j] - found[0, k]) for j, k in pairs])
    other = np.array([sign * (found[1, k] - found[0, j]) for j, k in pairs])
    centre = found.mean()
    parts = {
        "request": noises * ((found.mean(axis=1) - centre) ** 2).sum(),
        "noise": 2 * ((found.mean(axis=0) - centre) ** 2).sum(),
    }
    total = ((found - centre) ** 2).sum()
    shares = {name: part / total if total > 0 else np.nan for name, part in parts.items()}
    ordered = bool(pairs) and np.isfinite(sign)
    return {
        "follows the request": float(np.mean((one > 0) & (other > 0))) if ordered else np.nan,
        "stays with the noise": float(np.mean(one * other < 0)) if ordered else np.nan,
        "variance by request": float(shares["request"]),
        "variance by noise": float(shares["noise"]),
        "variance by neither": float(1 - shares["request"] - shares["noise"]),
    }
