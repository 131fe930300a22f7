"""Does a volume have what was asked of it? Section 3.2 of the paper, its figures 2 and 3, and what they leave open.

Agreement of requested and measured values with intervals, for two columns or for a whole table of participants. What
moves when one request is moved stands in ``interventions``; the tables that are shown in ``scorecard``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .covariates import Ranges, numeric
from .errors import BrainLDMError

if TYPE_CHECKING:
    import pandas as pd

ASKED_AND_MEASURED = {
    "ventricles": ("ventricular_volume_ml", "measured_lateral_ventricles_ml"),
    "brain": ("brain_volume_ml", "measured_brain_volume_ml"),
}
"""Quantity -> column of the request and of the measurement, both in ml."""
SCORED = {
    **{name: (*pair, "ml") for name, pair in ASKED_AND_MEASURED.items()},
    "age": ("age_years", "measured_age_years", "years"),
}
"""Quantity -> column of the request, of the measurement, and the unit of both."""
FEWEST = 3  # rows of a region that is scored
AT_ONCE = 2**21  # values of resamples held at a time


@dataclass(frozen=True)
class Agreement:
    """Pearson correlation, least-squares slope, bias and mean absolute error, each with its 95 % bootstrap interval.

    Bias (measured less requested) and error are in the unit of the quantity. ``low`` and ``high`` are those of r.
    """

    n: int
    r: float
    low: float
    high: float
    slope: float
    bias: float
    mae: float
    slope_low: float = np.nan
    slope_high: float = np.nan
    bias_low: float = np.nan
    bias_high: float = np.nan
    mae_low: float = np.nan
    mae_high: float = np.nan

    def interval(self, name: str) -> tuple[float, float, float]:
        """``r``, ``slope``, ``bias`` or ``mae`` with the two ends of its interval."""
        ends = ("low", "high") if name == "r" else (f"{name}_low", f"{name}_high")
        return tuple(getattr(self, key) for key in (name, *ends))

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

    def result(self, name: str = "r", unit: str = "r", digits: int = 4, **more: Any) -> dict[str, Any]:
        """The row of a results file: one of the four numbers with its interval, where it has one."""
        value, low, high = self.interval(name)
        ends = {"low": round(low, digits), "high": round(high, digits)} if np.isfinite(low) else {}
        return {"value": round(value, digits), "unit": unit} | ends | {"n": self.n} | more


def result_rows(key: str, row: Agreement, unit: str, **more: Any) -> dict[str, dict[str, Any]]:
    """Rows of a results file: r under ``<key>_r``, mean absolute error and bias in ``unit``, slope; with intervals."""
    errors = {f"{key}_{name}_{unit}": row.result(name, unit, 3) for name in ("mae", "bias")}
    rise = row.result("slope", "", 3)
    rise.pop("unit")
    return {f"{key}_r": row.result(**more)} | errors | {f"{key}_slope": rise}


def agreement(
    requested: np.ndarray,
    measured: np.ndarray,
    draws: int = 2000,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> Agreement:
    """Agreement of two columns (N,); rows where either is missing are left out.

    The intervals hold 95 % of what the same resampled rows give. With fewer than three rows there are none, and with
    fewer than three or a constant column r and slope are NaN.

    Args:
        groups: what rows share (N,), for instance the anatomy they were warped from: groups are resampled instead of
            rows, as rows of one group are not independent. One group alone counts as none.
    """
    pairs = np.column_stack([np.asarray(requested, float), np.asarray(measured, float)])
    known = np.isfinite(pairs).all(axis=1)
    pairs, n = pairs[known], int(known.sum())
    error = pairs[:, 1] - pairs[:, 0]
    bias, mae = (float(error.mean()), float(np.abs(error).mean())) if n else (np.nan, np.nan)
    if n < FEWEST:
        return Agreement(n, np.nan, np.nan, np.nan, np.nan, bias, mae)
    rng = np.random.default_rng(seed)
    names, member = np.unique(np.zeros(n) if groups is None else np.asarray(groups)[known], return_inverse=True)
    if len(names) > 1:
        rows = [np.flatnonzero(member == group) for group in range(len(names))]
        chosen = rng.integers(0, len(names), (draws, len(names)))
        resamples = (np.concatenate([rows[group] for group in draw]) for draw in chosen)
    else:
        resamples = resample(rng, n, draws)
    found = np.concatenate([np.atleast_2d(four_numbers(pairs[rows, 0], pairs[rows, 1])) for rows in resamples])
    r, line = float(correlation(pairs[:, 0], pairs[:, 1])), slope(pairs[:, 0], pairs[:, 1])
    if (np.ptp(pairs, axis=0) == 0).any():  # but for rounding, a resample would have one as well
        r = line = found[:, :2] = np.nan
    of_r, of_slope, of_bias, of_mae = (middle(values) for values in found.T)
    return Agreement(n, r, *of_r, line, bias, mae, *of_slope, *of_bias, *of_mae)


def middle(values: np.ndarray) -> tuple[float, float]:
    """The ends of the middle 95 % of what is known of values (D,); NaN where nothing is."""
    low, high = np.nanquantile(values, [0.025, 0.975]) if np.isfinite(values).any() else (np.nan, np.nan)
    return float(low), float(high)


def four_numbers(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """r, slope, bias and mean absolute error (..., 4) of columns (..., N)."""
    error = y - x
    centred = x - x.mean(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        line = (centred * y).sum(axis=-1) / (centred**2).sum(axis=-1)
    return np.stack([correlation(x, y), line, error.mean(axis=-1), np.abs(error).mean(axis=-1)], axis=-1)


def resample(rng: np.random.Generator, n: int, draws: int) -> Iterator[np.ndarray]:
    """Rows (D, N) of ``draws`` bootstrap samples, in blocks that fit into memory; any size of block draws the same."""
    block = max(1, AT_ONCE // n)
    for start in range(0, draws, block):
        yield rng.integers(0, n, (min(block, draws - start), n))


def correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
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


def by_region(
    table: pd.DataFrame, ranges: Ranges | None = None, groups: Sequence | None = None
) -> dict[str, dict[str, Agreement]]:
    """Agreement of each quantity of ``SCORED`` that a table has columns of: over all rows, inside and outside a range.

    A row is outside for a quantity whose own request lies outside ``ranges``. The ends belong to the inside. Regions
    of fewer than three rows are left out.

    Args:
        table: requested columns and ``measured_`` ones, as in a ``participants.tsv``.
        ranges: of the training cohort, column -> least and largest value; None: no regions but ``all``.
        groups: what rows share (N,), as in ``agreement``.

    Raises:
        BrainLDMError: a cell that is no number, or groups that are not as many as rows.
    """
    if groups is not None and len(groups) != len(table):
        raise BrainLDMError(f"{len(groups)} groups for a table of {len(table)} rows: give one a row")
    found: dict[str, dict[str, Agreement]] = {}
    for quantity, (asked, measured, _) in SCORED.items():
        if asked not in table or measured not in table:
            continue
        x, y = (_numbers(table, column) for column in (asked, measured))
        known = np.isfinite(x) & np.isfinite(y)
        rows = {"all": known}
        if asked in (ranges or {}):
            low, high = ranges[asked]
            rows |= {"inside": known & (x >= low) & (x <= high), "outside": known & ((x < low) | (x > high))}
        found[quantity] = {
            region: agreement(x[part], y[part], groups=None if groups is None else np.asarray(groups)[part])
            for region, part in rows.items()
            if part.sum() >= FEWEST
        }
    return found


def score_table(
    table: pd.DataFrame, ranges: Ranges | None = None, groups: Sequence | None = None
) -> list[dict[str, Any]]:
    """``by_region`` as rows of a file: quantity, unit, region, n, and each number with its interval; null is unknown.

    Raises:
        BrainLDMError: as ``by_region``.
    """
    return [
        {"quantity": quantity, "unit": SCORED[quantity][2], "region": region} | row.record()
        for quantity, regions in by_region(table, ranges, groups).items()
        for region, row in regions.items()
    ]


def _numbers(table: pd.DataFrame, column: str) -> np.ndarray:
    """A column (N,) as numbers, NaN where nothing is known."""
    try:
        return numeric(table, column)
    except (TypeError, ValueError) as error:
        raise BrainLDMError(f"column {column}: holds what is no number ({error}); write numbers or n/a") from None
