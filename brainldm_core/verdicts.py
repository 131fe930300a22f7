"""Which faults does a metric catch? The rule, set before anything is looked at, and what follows from it in words.

A metric **catches** a set where its value lies further from that of healthy people than a limit. Healthy people are
random draws of as many training people (``sensitivity``); distances are counted so that 1.96 is the edge of the middle
95 % of the draws, above and below. With many metrics some draw is always beyond one of them, so the limit is the
distance that 5 % of healthy draws pass in **any** metric (max-T, Westfall and Young 1993).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

OUTSIDE = 1.96  # the edge of the middle 95 % of healthy draws, in the unit of ``standardised``


def standardised(values: pd.DataFrame, healthy: pd.DataFrame) -> pd.DataFrame:
    """Distances from the median of healthy draws, in units in which 1.96 is the edge of their middle 95 %.

    Above and below have edges of their own. Where an edge is the median itself, as at a share of 1, a quarter of the
    standard deviation stands for its distance.
    """
    import pandas as pd

    values = values[list(healthy)]
    low, middle, high = (healthy.quantile(level) for level in (0.025, 0.5, 0.975))
    least = 0.25 * OUTSIDE * healthy.std()
    gap = values - middle
    above, below = (high - middle).clip(lower=least), (middle - low).clip(lower=least)
    edge = pd.DataFrame(np.where(gap >= 0, above, below), gap.index, gap.columns)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (OUTSIDE * gap / edge).where(gap != 0, 0.0)


def family_limit(distances: pd.DataFrame, rate: float = 0.05) -> float:
    """The distance that a share ``rate`` of healthy draws passes in any metric; never less than the edge of one."""
    return max(OUTSIDE, float(distances.abs().max(axis=1).quantile(1 - rate)))


def what_is_seen(caught: pd.DataFrame) -> str:
    """A Markdown table: for every metric the faults that it catches, and from which severity on, and the others."""
    names = list(dict.fromkeys(caught.index.get_level_values(0)))
    lines = ["| metric | catches, from | is blind to |", "|:--|:--|:--|"]
    for metric in caught:
        first: dict[str, str] = {}
        for (fault, severity), here in caught[metric].items():
            if here:
                first.setdefault(fault, severity)
        sees = "; ".join(f"{fault} ({severity})" for fault, severity in first.items()) or "nothing"
        lines.append(f"| {metric} | {sees} | {', '.join(name for name in names if name not in first) or 'nothing'} |")
    return "\n".join(lines)


def in_words(caught: pd.DataFrame) -> list[str]:
    """A sentence a fault: from which severity it is caught and by what, and what stays blind at its severest."""
    said = []
    for fault, rows in caught.groupby(level=0, sort=False):
        rows = rows.droplevel(0)
        found = [severity for severity, row in rows.iterrows() if row.any()]
        if not found:
            said.append(f"**{fault}** ({'; '.join(rows.index)}): caught by nothing.")
            continue
        by = ", ".join(rows.columns[rows.loc[found[0]]])
        worst = rows.iloc[-1]
        blind = ", ".join(rows.columns[~worst]) or "nothing"
        said.append(f"**{fault}**: caught from {found[0]} on, there by {by}. Blind even at {rows.index[-1]}: {blind}.")
    return said


def marked(values: pd.DataFrame, distances: pd.DataFrame, limit: float) -> pd.DataFrame:
    """Values as words with a mark: ● caught, ○ outside the range of its own metric only."""
    marks = distances.abs().map(lambda far: " ●" if far > limit else " ○" if far > OUTSIDE else "")
    return values.map(lambda value: f"{value:.3g}" if value == value else "–") + marks
