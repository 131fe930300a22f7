"""Train on synthetic, test on real: is a released set worth as much as scans to somebody who learns age from it?

The learner is ridge regression on features of volumes: it has one number to choose, does so inside its training set,
and needs no accelerator. What it does not learn, a network may. ``spec/metrics.md``, beyond the paper; Esteban 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .conditioning import agreement
from .errors import BrainLDMError

PENALTIES = tuple(10.0 ** np.arange(-2, 5.5, 0.5))
LEAST = 10  # people of a training set


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


def joined(*parts: People) -> People:
    """Several sets as one."""
    return People(np.concatenate([part.features for part in parts]), np.concatenate([part.years for part in parts]))


def learn_age(training: People, tested: People) -> np.ndarray:
    """Ages (M,) of ``tested`` by ridge regression: w = argmin |Xw - y|^2 + a |w|^2, X z-scored by the training set.

    The penalty a is the one of least squared error when each training person is left out in turn (Golub 1979).

    Raises:
        BrainLDMError: fewer than ten training people.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(training.years) < LEAST:
        raise BrainLDMError(f"{len(training.years)} training people: an age is learned from {LEAST} at least")
    model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES))
    return model.fit(training.features, training.years).predict(tested.features)


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
    """A row an arm: MAE (years) and r with 95 % intervals, the spread of the MAE over training draws, and the gain.

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
            "r": float(r[0]), "r low": float(r[1]), "r high": float(r[2]),
            "gain": float(gap.mean()), "gain low": gap_low, "gain high": gap_high,
        }  # fmt: skip
    return rows
