"""The scorecard of a conditional model: every number beside its ceilings and beside what ignoring the request gives.

The numbers come from ``conditioning`` and ``regression``; here they are set side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .conditioning import Agreement, agreement, four_numbers, middle

if TYPE_CHECKING:
    import pandas as pd

NULL = "requests permuted"
PERMUTATIONS = 1000


def cell(value: float, low: float, high: float, form: str = ".2f") -> str:
    """A number with its interval, as far as they are known."""
    if not np.isfinite(value):
        return "–"
    shown, *ends = (f"{number:{form}}" for number in (value, low, high))
    shown, *ends = (text if text.strip("-0.") else text.lstrip("-") for text in (shown, *ends))  # no minus nought
    return f"{shown} [{', '.join(ends)}]" if np.isfinite([low, high]).all() else shown


def scorecard(found: Mapping[str, Mapping[str, Agreement]], units: Mapping[str, str]) -> pd.DataFrame:
    """A row for each quantity and source (or region): n, and r, slope, bias and mean error with 95 % intervals."""
    import pandas as pd

    forms = {"r": ".3f", "slope": ".2f", "bias": "+.1f", "mae": ".1f"}
    rows = {
        (f"{quantity} ({units[quantity]})", source): (
            row.n,
            *(cell(*row.interval(name), form) for name, form in forms.items()),
        )
        for quantity, sources in found.items()
        for source, row in sources.items()
    }
    columns = ["n", "r [95 %]", "slope [95 %]", "bias [95 %]", "mean error [95 %]"]
    return pd.DataFrame(rows.values(), pd.MultiIndex.from_tuples(rows, names=["covariate", "source"]), columns)


def numbers(row: Agreement, unit: str) -> dict[str, dict[str, Any]]:
    """The four numbers of an agreement by name, for ``whole``; the errors in ``unit``."""
    names = {"r": "r", "slope": "slope", f"bias ({unit})": "bias", f"mean error ({unit})": "mae"}
    return {
        shown: dict(zip(("value", "low", "high"), row.interval(name), strict=True)) | {"n": row.n}
        for shown, name in names.items()
    }


def permuted(
    requested: np.ndarray, statistic: Callable[[np.ndarray], Any], draws: int = PERMUTATIONS, seed: int = 0
) -> np.ndarray:
    """Mean and middle 95 % (3, ...) of a statistic of requests (N,) that were dealt out to the volumes at random.

    What a model would reach that ignores the request but draws from the same distribution.
    """
    rng = np.random.default_rng(seed)
    requested = np.asarray(requested)
    found = np.array([statistic(rng.permutation(requested)) for _ in range(draws)], float)
    columns = found.reshape(draws, -1)
    known = np.isfinite(columns).any(axis=0)
    mean = np.array([np.nanmean(part) if some else np.nan for part, some in zip(columns.T, known, strict=True)])
    ends = np.array([middle(part) for part in columns.T])
    return np.vstack([mean, ends.T]).reshape(3, *found.shape[1:])


def chance(requested: np.ndarray, statistic: Callable[[np.ndarray], float]) -> dict[str, Any]:
    """A number of permuted requests (N,), as a row of results: mean and range instead of value and interval."""
    requested = np.asarray(requested, float)
    found = permuted(requested, statistic).tolist()
    return dict(zip(("value", "low", "high"), found, strict=True)) | {"n": int(np.isfinite(requested).sum())}


def null(requested: np.ndarray, measured: np.ndarray, draws: int = PERMUTATIONS, seed: int = 0) -> Agreement:
    """Agreement of permuted requests with the same measurements: means, and ranges instead of intervals.

    The bias has no range: it compares two means, and no dealing out of requests changes them.
    """
    pairs = np.column_stack([np.asarray(requested, float), np.asarray(measured, float)])
    x, y = pairs[np.isfinite(pairs).all(axis=1)].T
    found = agreement(x, y)
    if not np.isfinite(found.r):
        return Agreement(found.n, *[np.nan] * 6)
    (r, line, bias, mae), low, high = permuted(x, lambda dealt: four_numbers(dealt, y), draws, seed).tolist()
    ends = [low[1], high[1], np.nan, np.nan, low[3], high[3]]
    return Agreement(found.n, r, low[0], high[0], line, bias, mae, *ends)


def above_null(found: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]], source: str) -> list[str]:
    """Covariates of ``whole`` whose first number of a source lies above the null with its whole interval."""
    names = []
    for covariate, card in found.items():
        name, row = next(iter(card[source].items()))
        dealt = card[NULL][name]
        if row["low"] > dealt.get("high", dealt["value"]):
            names.append(covariate)
    return names


def whole(found: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]) -> pd.DataFrame:
    """One table of all numbers: covariate -> source -> name -> row of results; a column a source.

    A row's ``n`` is that of its first source, and is said in the cell where another source has another.
    """
    import pandas as pd

    sources = list(dict.fromkeys(source for card in found.values() for source in card))
    rows = {}
    for covariate, card in found.items():
        for name in dict.fromkeys(name for part in card.values() for name in part):
            parts = {source: card[source][name] for source in sources if name in card.get(source, {})}
            n = next(iter(parts.values()))["n"]
            form = ".1f" if "(" in name else ".2f"
            cells = {
                source: cell(part["value"], part.get("low", np.nan), part.get("high", np.nan), form)
                + ("" if part["n"] == n else f", n = {part['n']}")
                for source, part in parts.items()
            }
            rows[covariate, name] = [n, *(cells.get(source, "") for source in sources)]
    index = pd.MultiIndex.from_tuples(rows, names=["covariate", "number"])
    return pd.DataFrame(rows.values(), index, ["n", *(f"{source} [95 %]" for source in sources)])
