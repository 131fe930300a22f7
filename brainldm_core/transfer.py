"""Train on synthetic, test on real: is a released set worth as much as scans to somebody who learns age from it?

The learner is ridge regression on features of volumes: it has one number to choose, does so inside its training set,
and needs no accelerator. What it does not learn, a network may. ``spec/metrics.md``, beyond the paper; Esteban 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .conditioning import agreement
from .errors import BrainLDMError
from .regression import ridge_prediction

if TYPE_CHECKING:
    import pandas as pd

    from .sensitivity import Portrait

PENALTIES = tuple(10.0 ** np.arange(-2, 5.5, 0.5))
LEAST = 3  # people of a training set


@dataclass(frozen=True)
class People:
    """Features (N, F) of volumes and the ages of those in them, in years (N,)."""

    features: np.ndarray
    years: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> People:
        return People(self.features[rows], self.years[rows])

    def known(self) -> People:
        """Those whose age and features are known."""
        return self[np.isfinite(self.years) & np.isfinite(self.features).all(1)]


def people_of(portrait: Portrait, table: pd.DataFrame) -> People:
    """Features and measured volumes of a portrait, and the ages in its table, of all whose age is known."""
    features = np.column_stack([portrait.features, portrait.measured.to_numpy(float)])
    return People(features, table["age_years"].to_numpy(float)).known()


def joined(*parts: People) -> People:
    """Several sets as one."""
    return People(np.concatenate([part.features for part in parts]), np.concatenate([part.years for part in parts]))


def learn_age(training: People, tested: People) -> np.ndarray:
    """Ages (M,) of ``tested`` by ridge regression on features z-scored by the training set.

    Raises:
        BrainLDMError: fewer than three training people.
    """
    if len(training.years) < LEAST:
        raise BrainLDMError(f"{len(training.years)} training people: an age is learned from {LEAST} at least")
    return ridge_prediction(training.features, training.years, tested.features, PENALTIES)


def read_ages(
    arms: Mapping[str, tuple[People, ...]], tested: People, size: int, draws: int = 20, seed: int = 0
) -> dict[str, np.ndarray]:
    """Ages (draws, M) read from ``tested`` by each arm: trained on ``size`` people of each of its sets, drawn anew.

    An arm without a set answers with the mean age of as many people of the first arm, and knows nothing else.
    """
    first = next(iter(arms.values()))
    found = {}
    for name, sets in arms.items():
        rng = np.random.default_rng(seed)  # arms that share a set share its draws
        rows = []
        for _ in range(draws):
            chosen = [part[rng.permutation(len(part.years))[:size]] for part in sets or first]
            mean = np.full(len(tested.years), joined(*chosen).years.mean())
            rows.append(learn_age(joined(*chosen), tested) if sets else mean)
        found[name] = np.stack(rows)
    return found


def _interval(values: np.ndarray, rng: np.random.Generator, redraws: int) -> tuple[float, float]:
    """95 % interval of the mean of values (draws, M): training sets and tested people drawn again together."""
    draws, people = values.shape
    means = [
        values[rng.integers(draws)][rng.integers(0, people, people)].mean() for _ in range(redraws)
    ]  # one training set a time: its spread counts whole, as only one would be trained on
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def compare_arms(
    found: Mapping[str, np.ndarray], years: np.ndarray, against: str, redraws: int = 2000, seed: int = 0
) -> dict[str, dict[str, float]]:
    """A row an arm: MAE, bias (years) and r with 95 % intervals, the spread of the MAE over training draws, gain.

    ``gain``: mean absolute error of arm ``against`` less that of this one, paired by tested person; below zero, this
    arm is the worse. Intervals draw tested people and training sets again.
    """
    rows = {}
    wrong = {name: np.abs(ages - years) for name, ages in found.items()}
    for name, ages in found.items():
        rng = np.random.default_rng(seed)
        fits = [agreement(years, each, draws=200, seed=seed) for each in ages]
        low, high = _interval(wrong[name], rng, redraws)
        gap = wrong[against] - wrong[name]
        gap_low, gap_high = _interval(gap, rng, redraws)
        r = np.array([(fit.r, fit.low, fit.high) for fit in fits])
        r = r.mean(0) if np.isfinite(r).all() else np.full(3, np.nan)
        rows[name] = {
            "MAE": float(wrong[name].mean()), "low": low, "high": high, "spread": float(wrong[name].mean(1).std()),
            "bias": float((ages - years).mean()), "r": float(r[0]), "r low": float(r[1]), "r high": float(r[2]),
            "gain": float(gap.mean()), "gain low": gap_low, "gain high": gap_high,
        }  # fmt: skip
    return rows


def in_words(
    rows: Mapping[str, Mapping[str, float]],
    over_null: Mapping[str, float],
    reverse: Mapping[str, float],
    size: int,
    tested: int,
    synthetic: int,
) -> str:
    """What ``compare_arms`` says of the arms real, synthetic and mean age.

    ``over_null`` is the row of synthetic against the mean age, ``reverse`` that of real scans read from synthetic ones.
    """
    real, made, null = rows["real"], rows["synthetic"], rows["mean age"]
    gap = f"{-made['gain']:+.1f} years [{-made['gain high']:+.1f}, {-made['gain low']:+.1f}]"
    taught = "less" if made["gain high"] < 0 else "more" if made["gain low"] > 0 else "no measurably different amount"
    known = (
        "beats" if over_null["gain low"] > 0 else "does worse than" if over_null["gain high"] < 0 else "is not shown"
    )
    known += " to beat the mean age" if known == "is not shown" else " the mean age"
    return (
        f"Trained on {size} volumes and tested on {tested} real people, the mean absolute error is {real['MAE']:.1f} "
        f"years after real scans and {made['MAE']:.1f} years after synthetic ones; the mean age alone has "
        f"{null['MAE']:.1f}. The synthetic set teaches {taught}, as errors differ by {gap}. It {known} (gain "
        f"{over_null['gain']:+.1f} years [{over_null['gain low']:+.1f}, {over_null['gain high']:+.1f}]). Its answers "
        f"go with age at r = {made['r']:.2f} [{made['r low']:.2f}, {made['r high']:.2f}], those after real scans at "
        f"{real['r']:.2f}, and are {made['bias']:+.1f} years off on average.\n\nThe other way round, the reader "
        f"trained on real scans reads {synthetic} synthetic brains with r = {reverse['r']:.2f} "
        f"[{reverse['r low']:.2f}, {reverse['r high']:.2f}] and an error of {reverse['MAE']:.1f} years, "
        f"{reverse['bias']:+.1f} on average."
    )
