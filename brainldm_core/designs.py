"""Designs: what each of many volumes is asked for, from values, ranges, quantiles and tables.

A design is a table with a row a volume, covariates in years and ml, unknown where nothing is asked. What is drawn by
chance comes from the seed and the volume's own id, so that the first k of many volumes are those of a smaller design.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .covariates import COLUMNS, numeric, parse_quantity
from .errors import BrainLDMError

if TYPE_CHECKING:
    import pandas as pd

    from .sampling import Pipeline

UNITS = {"age_years": "years", "ventricular_volume_ml": "ml", "brain_volume_ml": "ml"}
BOTH = "both"
PEOPLE = 20_000  # drawn from the population where quantiles are asked of weights without a cohort
_UNIT = re.compile(r"\s*[-+]?[\d.]+(?:e[-+]?\d+)?\s*(.*)", re.I)  # what follows a number


@dataclass(frozen=True)
class End:
    """An end of a range: a number of years or ml, or a quantile of the training cohort in per cent."""

    value: float
    quantile: bool = False

    def __str__(self) -> str:
        return f"q{self.value:g}" if self.quantile else f"{self.value:g}"


Range = tuple[End, End]
"""From the smaller to the larger; twice the same end is one value."""


def parse_range(text: str, unit: str) -> Range:
    """What ``70``, ``44:82``, ``10:60ml``, ``q90`` or ``q10:q90`` ask for, in ``years`` or ``ml``.

    A unit that stands at one end only holds for both.

    Raises:
        BrainLDMError: not a number or a quantile, another unit, or the larger end comes first.
    """
    parts = text.split(":")
    if len(parts) > 2:
        raise BrainLDMError(f"{text!r}: not a range; write its two ends, for instance 44:82")
    units = [found.group(1) for part in parts if (found := _UNIT.fullmatch(part)) and found.group(1)]
    ends = []
    for part in parts:
        if re.match(r"\s*q", part, re.I):
            ends.append(End(_per_cent(part.strip()), True))
        else:
            found = _UNIT.fullmatch(part)
            unitless = found is not None and not found.group(1)
            ends.append(End(parse_quantity(part + units[0] if unitless and units else part, unit)))
    first, last = ends[0], ends[-1]
    if first.quantile == last.quantile and first.value > last.value:
        raise BrainLDMError(f"{text!r}: the larger end comes first; write {parts[1]}:{parts[0]}")
    return first, last


def _per_cent(text: str) -> float:
    """Per cent of a quantile such as ``q10``."""
    if not re.fullmatch(r"q(\d+\.?\d*|\.\d+)", text, re.I) or not 0 <= float(text[1:]) <= 100:
        raise BrainLDMError(f"{text!r}: not a quantile; write q0 to q100, for instance q90")
    if 0 < float(text[1:]) < 1:
        raise BrainLDMError(f"{text!r}: quantiles are in per cent; write q{100 * float(text[1:]):g}")
    return float(text[1:])


def training_rows(pipeline: Pipeline, weights: Path | str | None, seed: int = 0) -> tuple[pd.DataFrame, str]:
    """Rows (years, ml) whose quantiles are meant, and in words whose they are.

    A run's folder has its training cohort. Weights alone do not: these are people of the population that a release
    draws from, inside the training ranges.
    """
    from .dataset import load_cohort
    from .records import run_in
    from .release_run import draw_population

    run = run_in(weights)
    if run is not None and (run.stage("cohort") / "participants.tsv").is_file():
        rows = load_cohort(run.stage("cohort")).rows("train")
        return rows, f"the {len(rows)} training rows of cohort {run.cohort}"
    return draw_population(pipeline, PEOPLE, seed), (
        "the population that 291 people of the IXI data set stand for, inside the ranges of the training, as these "
        "weights come without their cohort"
    )


def quantile(rows: pd.DataFrame, column: str, per_cent: float) -> float:
    """Quantile of a covariate over the rows that have it, to three decimals.

    Raises:
        BrainLDMError: no row has it.
    """
    values = numeric(rows, column)
    values = values[np.isfinite(values)]
    if not len(values):
        raise BrainLDMError(f"{column}: the training cohort has no values, so no quantiles; ask in {UNITS[column]}")
    return round(float(np.quantile(values, per_cent / 100)), 3)


def resolve(ends: Range, column: str, per_cent_of: Callable[[str, float], float]) -> tuple[float, float]:
    """Both ends in years or ml; ``per_cent_of(column, per cent)`` says what a quantile is.

    Raises:
        BrainLDMError: the quantile at one end lies beyond the number at the other.
    """
    low, high = (per_cent_of(column, end.value) if end.quantile else end.value for end in ends)
    if low > high:
        raise BrainLDMError(
            f"{column} {ends[0]}:{ends[1]}: is {low:g} to {high:g} {UNITS[column]}, the larger end first; swap them"
        )
    return low, high


def draws(column: str, ids: Sequence[int], seed: int) -> np.ndarray:
    """Uniform draws (N,) in [0, 1) for a covariate of volumes with these ids, each by seed and id alone."""
    rng = np.random.default_rng([seed, COLUMNS.index(column)])
    return rng.random(max(ids))[np.asarray(ids) - 1]


def fill(
    table: pd.DataFrame,
    asked: Mapping[str, Range | str],
    ids: Sequence[int],
    seed: int,
    per_cent_of: Callable[[str, float], float],
) -> tuple[pd.DataFrame, list[str]]:
    """A design (N rows) with what is asked for all of it in place of its own values, and that in words.

    Ranges are drawn from evenly, each covariate by itself; ``both`` is F and M in turn.
    """
    table, words = table.reset_index(drop=True), []
    for column, wish in asked.items():
        if column == "sex":
            table[column] = ["FM"[(identity - 1) % 2] for identity in ids] if wish == BOTH else wish
            words.append("sex F and M in turn" if wish == BOTH else f"sex {wish}")
            continue
        low, high = resolve(wish, column, per_cent_of)
        unit = UNITS[column]
        spread = low + (high - low) * draws(column, ids, seed)
        table[column] = spread.round(3).clip(low, high) if high > low else low
        name = column.rpartition("_")[0].replace("_", " ")
        said = f"{name} {low:g} to {high:g} {unit}, drawn evenly" if high > low else f"{name} {low:g} {unit}"
        given = ":".join(str(end) for end in dict.fromkeys(wish))
        words.append(said + (f" ({given})" if any(end.quantile for end in wish) else ""))
    return table, words
