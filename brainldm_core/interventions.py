"""What moves when one thing is moved: cross-talk, requests exchanged between noises, requests beyond the range.

Section 3.2 and figure 4 of the paper, as numbers. The requests are made, and drawn, in ``sweeps``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .covariates import numeric

if TYPE_CHECKING:
    import pandas as pd

    from .conditioning import Agreement

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


def regions_in_words(name: str, found: Mapping[str, Agreement]) -> str:
    """What a scorecard of rows inside and outside the training range says of slope and bias, where it has both."""
    if not {"inside", "outside"} <= set(found):
        return f"**{name.capitalize()}**: too few rows inside or outside the range to compare."
    inside, outside = found["inside"], found["outside"]
    if not np.isfinite([inside.slope, outside.slope]).all():
        return f"**{name.capitalize()}**: there is no slope inside or outside the range, so nothing to compare."
    said = (
        f"**{name.capitalize()}**: one millilitre more that is asked for gives {inside.slope:.2f} ml inside the range "
        f"(n = {inside.n}) and {outside.slope:.2f} ml outside it (n = {outside.n})."
    )
    apart = inside.slope_low > outside.slope_high or outside.slope_low > inside.slope_high
    said += " The intervals of the slopes " + ("do not overlap." if apart else "overlap.")
    return said + f" The mean error is {inside.mae:.1f} ml inside and {outside.mae:.1f} ml outside."


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
