"""Is one sampler as good as another? Paired differences inside a margin that was set beforehand.

The second half reads what ``benchmarks/equivalence.py`` has published, for the chapter on DDIM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import BrainLDMError

if TYPE_CHECKING:
    import pandas as pd

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
    halves spread at least as new samples of full size would (a bootstrap would repeat volumes and shift FID). With
    Gaussian features the interval was 1.2 to 1.8 times as wide as theirs (N 64 and 256, F 4 to 256): it claims too
    little rather than too much.

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


def verdict(row: Mapping[str, Any]) -> str:
    """What a row of a trial says: ``shown``; ``differs`` where the interval is all beyond the margin."""
    if row["shown"]:
        return "shown"
    return "differs" if max(row["low"], -row["high"]) > row["margin"] else "not shown"


def trial_table(trial: Mapping[str, Any] | None) -> pd.DataFrame:
    """A row for each pair of samplers and quantity: n, paired difference with interval, margin, verdict."""
    import pandas as pd

    columns = ["samplers", "quantity", "n", "difference [95 %]", "margin", "as good as"]
    rows = []
    for pair in trial["comparisons"] if trial else ():
        for quantity, row in pair["rows"].items():
            digits = max(0, 2 - int(np.floor(np.log10(row["margin"]))))
            cells = [f"{row[key]:+.{digits}f}" for key in ("difference", "low", "high")]
            unit = f" ({row['unit']})" if row["unit"] else ""
            difference = f"{cells[0]} [{cells[1]}, {cells[2]}]"
            name = f"{pair['one']} less {pair['other']}"
            rows.append((name, quantity + unit, row["n"], difference, f"{row['margin']:.{digits}f}", verdict(row)))
    return pd.DataFrame(rows, columns=columns).set_index(columns[:2])


def trial_words(trial: Mapping[str, Any] | None) -> str:
    """What a trial has shown, and what it has not, a paragraph a pair of samplers."""
    if trial is None:
        return (
            "**No such trial has been published for this profile**, so nothing is said here about one sampler being as "
            "good as another. `python benchmarks/equivalence.py` makes one from a finished run."
        )
    said = []
    for pair in trial["comparisons"]:
        names: dict[str, list[str]] = {"shown": [], "not shown": [], "differs": []}
        for quantity, row in pair["rows"].items():
            names[verdict(row)].append(quantity)
        if len(names["shown"]) == len(pair["rows"]):
            said.append(f"{pair['one']} is as good as {pair['other']} in all {len(pair['rows'])} quantities together.")
            continue
        heads = {"shown": "Inside the margin", "not shown": "Not shown", "differs": "Whole interval beyond the margin"}
        parts = [f"{heads[kind]}: {'; '.join(some)}." for kind, some in names.items() if some]
        whole = f"{pair['one']} is **not shown** to be as good as {pair['other']} in all quantities together."
        said.append(" ".join([whole, *parts]))
    if trial["missing"]:
        said.append(f"Not finished, so nothing is said of it: {'; '.join(trial['missing'])}.")
    return "\n\n".join(said)
