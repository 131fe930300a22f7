"""Means of a similarity over random pairs of a set: how varied the set is (table 1 of the paper).

The value of the real set is the goal, a higher one is mode collapse. Volumes are read when a pair needs them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import t as student

from .errors import BrainLDMError
from .networks import default_device
from .similarity import SPLIT, Parts, check_sides
from .volume_sets import VolumeSet, grid_of, take

CACHE_BYTES, BATCH_VOXELS = 2**31, 2**18  # what may be kept of volumes, and voxels of one batch of pairs


@dataclass(frozen=True)
class PairMean:
    """Mean of a similarity over pairs of ``n`` volumes, its standard error and 95 % interval (NaN for n < 3)."""

    value: float
    error: float
    low: float
    high: float
    pairs: int
    n: int


def draw_pairs(n: int, pairs: int, seed: int = 0) -> np.ndarray:
    """Random pairs (P, 2) of different volumes, none drawn twice; all where there are not so many."""
    rng = np.random.default_rng(seed)
    total = n * (n - 1) // 2
    index = np.sort(rng.choice(total, min(pairs, total), replace=False))
    first = ((1 + np.sqrt(1 + 8.0 * index)) // 2).astype(np.int64)  # pairs numbered row by row below the diagonal
    rows = np.column_stack([first, index - first * (first - 1) // 2])
    return np.where(rng.random((len(rows), 1)) < 0.5, rows, rows[:, ::-1])  # for the metrics that are not symmetric


def pair_mean(
    metric: Callable, volumes: VolumeSet, pairs: int = 1000, seed: int = 0, device: str | torch.device | None = None
) -> PairMean:
    """Mean of ``metric`` (x, y) -> (B,) over random pairs i != j of volumes (N, D, H, W) (table 1 of the paper).

    Pairs share volumes, so the error is that of leaving out one volume at a time (jackknife), not that of ``pairs``
    independent values; it is on average not too small (Efron and Stein 1981).

    Args:
        volumes: an array, a tensor, which may be (N, 1, D, H, W), or a set that reads when it is indexed.
        device: where to compute; None: the accelerator if there is one.

    Raises:
        BrainLDMError: fewer than two volumes, or volumes that the metric refuses.
    """
    n = len(volumes)
    if n < 2 or pairs < 1:
        raise BrainLDMError(f"{pairs} pairs of {n} volumes: at least 1 pair of 2 volumes is needed; give more")
    rows = draw_pairs(n, pairs, seed)
    values = pair_values(metric, volumes, rows, device)
    error = _jackknife(values, rows, n)
    half = error * student.ppf(0.975, n - 1)
    return PairMean(float(values.mean()), error, float(values.mean() - half), float(values.mean() + half), len(rows), n)


@torch.no_grad()
def pair_values(
    metric: Callable, volumes: VolumeSet, rows: np.ndarray, device: str | torch.device | None = None
) -> np.ndarray:
    """Values (P,) of ``metric`` for pairs ``rows`` (P, 2) of volumes (N, D, H, W), float64.

    What a metric computes of one volume alone is kept for its other pairs, up to ``CACHE_BYTES``; with no room left,
    that volume goes which is needed last. Pairs, none given twice, are visited so that few volumes are read twice.

    Raises:
        BrainLDMError: volumes that the metric refuses.
    """
    prepare, compare, side = SPLIT.get(metric, (lambda x: (x,), lambda x, y: metric(x[0], y[0]), 1))
    grid = grid_of(volumes)
    check_sides(grid, side)
    device = torch.device(device or default_device())

    def read(number: int) -> Parts:
        return prepare(take(volumes, np.array([number]), device))

    first = int(rows[0, 0])
    kept = {first: read(first)}
    batch = max(1, BATCH_VOXELS // int(np.prod(grid)))
    room = max(2 * batch, CACHE_BYTES // sum(part.nbytes for part in kept[first]))
    order, values = visiting_order(rows, room), np.empty(len(rows))
    steps = np.split(order, range(batch, len(order), batch))
    uses = defaultdict(list)  # of a volume: its steps, the last one first
    for step in reversed(range(len(steps))):
        for number in np.unique(rows[steps[step]]).tolist():
            uses[number].append(step)
    for places in steps:
        for number in np.unique(rows[places]).tolist():
            if number not in kept:
                if len(kept) >= room:
                    del kept[max(kept, key=lambda one: uses[one][-1] if uses[one] else len(steps))]
                kept[number] = read(number)
        left, right = ([kept[number] for number in column] for column in rows[places].T.tolist())
        if batch > 1:
            left, right = ([tuple(map(torch.cat, zip(*column, strict=True)))] for column in (left, right))
        values[places] = compare(left[0], right[0]).double().cpu().numpy()
        for number in np.unique(rows[places]).tolist():
            uses[number].pop()
    return values


def visiting_order(rows: np.ndarray, room: int) -> np.ndarray:
    """Order (P,) in which to visit pairs ``rows`` (P, 2) when a memory holds ``room`` volumes, so that few come twice.

    As drawn, where all have room. Else greedy: next comes the volume with most pairs among those held, and of several
    the one with the fewest other pairs; with no room left, the volume goes that was used least recently.
    """
    names, ends = np.unique(rows, return_inverse=True)
    if room >= len(names):
        return np.arange(len(rows))
    partners = [dict[int, int]() for _ in names]  # of a volume: who is still to be compared with it, in which place
    for place, (one, two) in enumerate(ends.reshape(-1, 2).tolist()):
        partners[one][two] = partners[two][one] = place
    pairs, gain = np.array([len(others) for others in partners]), np.zeros(len(names), int)
    held, order = dict[int, None](), []
    while len(order) < len(rows):
        score = np.where(pairs > 0, gain * (2 * len(names)) - pairs, -np.inf)
        score[list(held)] = -np.inf  # no pair is left among them
        new = int(score.argmax())
        found = [other for other in held if other in partners[new]]
        held = {other: None for other in (*(other for other in held if other not in partners[new]), *found)}
        for old in list(held)[: max(0, len(held) - room + 1)]:
            del held[old]
            gain[list(partners[old])] -= 1
        for other in (other for other in found if other in held):
            order.append(partners[new].pop(other))
            del partners[other][new]
            pairs[[new, other]] -= 1
        gain[list(partners[new])] += 1
        gain[new] = 0
        held = {one: None for one in (*held, new) if partners[one]}
    return np.array(order)


def _jackknife(values: np.ndarray, rows: np.ndarray, n: int) -> float:
    """Standard error of the mean of values of pairs ``rows`` (P, 2) from leaving out each of ``n`` volumes."""
    counts = np.bincount(rows.ravel(), minlength=n)
    sums = np.bincount(rows.ravel(), np.repeat(values, 2), minlength=n)
    left = len(values) - counts
    if (left == 0).any():
        return float("nan")
    without = (values.sum() - sums) / left
    return float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))
