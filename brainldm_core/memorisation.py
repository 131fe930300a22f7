"""Does the model copy its training brains? Nearest training neighbour against nearest held-out neighbour.

For a model that has learned the population and no single brain, training and held-out people are exchangeable as seen
from a generated volume: with as many of each, the nearest of all is a training one in half of the cases. A share above
one half means that the samples lie too near the training set. Single copies are looked for by the ratio of both
distances, below a threshold that real held-out brains pass under at a stated rate; planted copies say what share of
copies that finds.

Everything works on rows of numbers (N, F): latents, features, voxels. References are people, or the anatomies that a
cohort was simulated from: scans of one are one reference, at its nearest scan. ``spec/metrics.md``, beyond the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .errors import BrainLDMError
from .neighbours import Rows, by_subject, distances, nearest


@dataclass(frozen=True)
class Audit:
    """How near generated volumes lie to training and to held-out subjects."""

    n: int
    subjects: tuple[int, int]
    """Training and held-out subjects."""
    share: float
    """Of samples nearer to training than to held-out subjects, with as many of each: 0.5 for an innocent model.

    1 if all are copies and both sets are of one size; of a larger training set, most sources are not in the subset.
    """
    low: float
    high: float
    """95 % interval of the share: samples and subjects drawn again."""
    innocent: tuple[float, float]
    """Where the share of an innocent model lies in 95 % of cases: labels of subjects exchanged."""
    p_value: float
    """Chance that an innocent model has a mean log ratio of distances so small: labels exchanged, whole sets."""
    area: float
    """Under the curve that tells samples from real held-out subjects by the ratio: 1 if all samples are copies."""
    flagged: float
    """Share of samples called copies."""
    false_positive_rate: float
    threshold: float
    """Ratio of distances under which a sample is called a copy; 0 where held-out subjects are too few to set one."""
    ratios: np.ndarray
    """(N,) nearest training over nearest held-out distance."""

    def result(self, **more: Any) -> dict[str, Any]:
        """The row of a results file."""
        row = {"value": self.share, "low": self.low, "high": self.high}
        return {key: round(value, 4) for key, value in row.items()} | {"n": self.n, "floor": 0.5} | more


def audit(
    samples: Rows,
    training: Rows,
    held_out: Rows,
    training_subjects: Sequence[Any] | None = None,
    held_out_subjects: Sequence[Any] | None = None,
    held_out_kin: Sequence[Any] | None = None,
    false_positive_rate: float = 0.05,
    draws: int = 1000,
    seed: int = 0,
) -> Audit:
    """Hold samples (N, F) against training (M, F) and held-out (K, F) rows; one row is one subject unless named.

    For the share, reference sets have equal size: it is the mean over all subsets of the larger set, in closed form.
    The innocent range exchanges training and held-out labels among subjects, so it knows that one central subject can
    be the nearest of many samples. Single samples are judged against the whole training set.

    Args:
        held_out_kin: whose anatomy each held-out row was bent from (K,). A held-out subject stands for an innocent
            sample, which has no kin: scans of its own anatomy do not count among its strangers.

    Raises:
        BrainLDMError: rows do not fit together, or a subject is in both sets.
    """
    known, train = by_subject(distances(samples, training), training_subjects)
    unseen, test = by_subject(distances(samples, held_out), held_out_subjects)
    if training_subjects is not None and held_out_subjects is not None and (both := sorted(set(train) & set(test))):
        raise BrainLDMError(f"subject {both[0]}: is in training and held out; split by subject")
    rng = np.random.default_rng(seed)
    mixed = rng.permutation(len(train) + len(test))  # equal distances then come in no particular order
    pooled, labels = np.concatenate([known, unseen], axis=1)[:, mixed], mixed < len(train)
    order = np.argsort(pooled, axis=1, kind="stable")
    share, ratios = float(_shares(order, labels).mean()), _ratios(known.min(1), unseen.min(1))
    spread = np.array([_resampled(order, labels, rng) for _ in range(draws)])
    shares, logs = np.array([_exchanged(pooled, order, rng.permutation(labels)) for _ in range(draws)]).T
    innocents = _innocent_ratios(training, held_out, training_subjects, held_out_subjects, held_out_kin)
    threshold = _threshold(innocents, false_positive_rate)
    # Drawn again, some sources are left out and copies lose them: the spread holds, its centre does not.
    low, high = np.clip(share + np.quantile(spread - spread.mean(), [0.025, 0.975]), 0, 1)
    return Audit(
        n=len(pooled),
        subjects=(len(train), len(test)),
        share=share,
        low=float(low),
        high=float(high),
        innocent=tuple(float(edge) for edge in np.quantile(shares, [0.025, 0.975])),
        p_value=float((1 + (logs <= _mean_log(ratios) + 1e-9).sum()) / (1 + draws)),
        area=float((ratios[:, None] < innocents).mean() + 0.5 * (ratios[:, None] == innocents).mean()),
        flagged=float((ratios < threshold).mean()),
        false_positive_rate=false_positive_rate,
        threshold=threshold,
        ratios=ratios,
    )


def _mean_log(ratios: np.ndarray) -> float:
    return float(np.log(np.clip(ratios, 1e-9, 1e9)).mean())


def _exchanged(pooled: np.ndarray, order: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Share and mean log ratio with other subjects as training set."""
    ratios = _ratios(pooled[:, labels].min(1), pooled[:, ~labels].min(1))
    return float(_shares(order, labels).mean()), _mean_log(ratios)


def _shares(order: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """(N,) chance that the nearest of equally many training (True) and held-out subjects is a training one.

    With k of M training subjects nearer than the nearest of h held-out ones, a random subset of h has none of them with
    chance C(M - k, h) / C(M, h); if h > M the other way round.
    """
    weights = np.ones(len(labels)) if weights is None else weights
    size, subset = (int(round(weights[side].sum())) for side in (labels, ~labels))
    if size < subset:
        return 1 - _shares(order, ~labels, weights)
    mine, others = (labels * weights)[order], (~labels * weights)[order]
    nearer = np.cumsum(mine, axis=1)[np.arange(len(order)), (others > 0).argmax(1)]
    return 1 - _none_chosen(size, subset)[np.round(nearer).astype(int)]


def _none_chosen(size: int, subset: int) -> np.ndarray:
    """(size + 1,) chance that a random ``subset`` of ``size`` misses k given ones, for k = 0 .. size."""
    steps = np.arange(size)
    factors = np.clip((size - steps - subset) / np.maximum(size - steps, 1), 0, 1)
    return np.concatenate([[1.0], np.cumprod(factors)])


def _resampled(order: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> float:
    """The share with samples, training subjects and held-out subjects drawn again with replacement."""
    weights = np.zeros(len(labels))
    for side in (np.flatnonzero(labels), np.flatnonzero(~labels)):
        np.add.at(weights, rng.choice(side, len(side)), 1)
    shares = _shares(order, labels, weights)
    return float(shares[rng.integers(0, len(shares), len(shares))].mean())


def _ratios(known: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """Training over held-out distance (N,); 1 where both are 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((known == 0) & (unseen == 0), 1.0, known / unseen)


def _innocent_ratios(
    training: Rows, held_out: Rows, train: Sequence | None, test: Sequence | None, kin: Sequence | None = None
) -> np.ndarray:
    """(S,) ratios of real held-out subjects, each held against training and against the other held-out ones."""
    known, _ = by_subject(distances(held_out, training), train)
    names = list(range(len(known))) if test is None else list(test)
    kin = names if kin is None or len(set(kin)) < 2 else list(kin)
    same = np.array([[one == two for two in kin] for one in kin])
    among = np.where(same, np.inf, distances(held_out, held_out))
    return by_subject(_ratios(known.min(1), among.min(1))[None], names)[0][0]


def _threshold(innocents: np.ndarray, rate: float) -> float:
    """The ratio that a held-out subject falls below at ``rate`` at most; 0 if there are too few to tell."""
    allowed = int(rate * (len(innocents) + 1))
    return float(np.sort(innocents)[allowed - 1]) if allowed else 0.0


def plant_duplicates(
    training: Rows, count: int, noise: float = 0.0, shift: int = 0, gain: float = 0.0, seed: int = 0
) -> tuple[torch.Tensor, np.ndarray]:
    """Near-copies of ``count`` training rows (M, ...), and which rows they are.

    Args:
        noise: standard deviation of Gaussian noise, as a share of that of all training values.
        shift: voxels along each of the last three axes, in a random direction; needs rows that are volumes or latents.
        gain: largest relative change of intensity.

    Raises:
        BrainLDMError: more copies than rows, or a shift of rows without three axes.
    """
    values = torch.as_tensor(training).float()
    if not 1 <= count <= len(values):
        raise BrainLDMError(f"{count} planted copies of {len(values)} rows: choose 1 to {len(values)}")
    if shift and values.dim() < 4:
        raise BrainLDMError(f"shift {shift}: rows of shape {tuple(values.shape[1:])} have no three axes to shift along")
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(values), count, replace=False)
    spread, copies = float(values.std()), []
    for row in rows:
        copy = values[row] * (1 + gain * rng.uniform(-1, 1))
        if shift:
            copy = torch.roll(copy, [int(step) for step in shift * rng.choice([-1, 1], 3)], dims=(-3, -2, -1))
        copies.append(copy + noise * spread * torch.from_numpy(rng.standard_normal(copy.shape)).float())
    return torch.stack(copies), rows


def power(
    training: Rows,
    held_out: Rows,
    levels: Sequence[dict[str, float]],
    count: int = 32,
    embed: Callable[[torch.Tensor], Rows] | None = None,
    training_subjects: Sequence[Any] | None = None,
    held_out_subjects: Sequence[Any] | None = None,
    false_positive_rate: float = 0.05,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """What share of planted near-copies is found, and traced to its source, at each of ``levels``.

    Args:
        levels: settings of ``plant_duplicates``, for instance ``[{"noise": 0.1}, {"noise": 0.1, "shift": 1}]``.
        embed: makes rows (N, F) of volumes or latents (N, ...); None: their values as they are.
    """
    embed = embed or (lambda rows: rows)
    known, unseen = embed(torch.as_tensor(training)), embed(torch.as_tensor(held_out))
    innocents = _innocent_ratios(known, unseen, training_subjects, held_out_subjects)
    threshold = _threshold(innocents, false_positive_rate)
    table = []
    for level in levels:
        copies, sources = plant_duplicates(training, min(count, len(training)), seed=seed, **level)
        rows = embed(copies)
        distance, index = nearest(rows, known)
        found = _ratios(distance, nearest(rows, unseen)[0]) < threshold
        shares = {"found": float(found.mean()), "traced": float((index == sources).mean())}
        table.append(dict(level) | shares | {"n": len(rows), "false_positive_rate": false_positive_rate})
    return table
