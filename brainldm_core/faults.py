"""Generators with one known fault each, made from real people: what a metric must not let pass.

A broken generator is three choices: which people it shows, for whom it was asked, and what it does to their volumes.
The first goes wrong where it copies, collapses or never shows the tail, the second where it does not listen, the third
where its pictures are not those of a scanner. All else is as it should be: what a metric says is about the fault.
``spec/metrics.md``, beyond the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from .errors import BrainLDMError
from .spectra import HEAD

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def blurred(volume: np.ndarray, rng: np.random.Generator, voxels: float) -> np.ndarray:
    """A volume (D, H, W) after a Gaussian of this standard deviation in voxels: power times exp(-(2 pi f s)^2)."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(volume, voxels, mode="constant")


def noisy(volume: np.ndarray, rng: np.random.Generator, level: float) -> np.ndarray:
    """A volume (D, H, W) with white noise of this standard deviation (grey values) inside the head."""
    noise = rng.standard_normal(volume.shape, np.float32) * np.float32(level)
    return np.clip(volume + noise * (volume > HEAD), 0, 1)


def dimmed(volume: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """A volume (D, H, W) that is darker by this share: an intensity shift."""
    return volume * np.float32(1 - share)


def checkered(volume: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """A volume (D, H, W) whose every second voxel along each axis is brighter by this share, the others darker.

    What transposed convolutions of stride 2 leave whose kernels overlap unevenly (Odena 2016).
    """
    for axis, side in enumerate(volume.shape):
        gain = 1 + share * np.where(np.arange(side) % 2, -1, 1).astype(np.float32)
        volume = volume * gain.reshape([-1 if place == axis else 1 for place in range(3)])
    return np.clip(volume, 0, 1)


def holed(volume: np.ndarray, rng: np.random.Generator, voxels: float) -> np.ndarray:
    """A volume (D, H, W) with a black ball of this radius in voxels at a random place inside the head."""
    inside = np.argwhere(volume > HEAD)
    if not len(inside):
        return volume
    centre = inside[rng.integers(len(inside))]
    grid = np.ogrid[tuple(slice(side) for side in volume.shape)]
    apart = sum((axis - place) ** 2 for axis, place in zip(grid, centre, strict=True))
    return np.where(apart <= voxels**2, np.float32(0), volume)


def varied(volume: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """A volume (D, H, W), up to this share brighter or darker: a copy that is not exact."""
    return np.clip(volume * np.float32(1 + share * rng.uniform(-1, 1)), 0, 1)


@dataclass(frozen=True)
class Fault:
    """A broken generator: row i of its output is ``change`` of person ``shown[i]``, asked for as ``asked[i]``."""

    name: str
    severity: str
    shown: np.ndarray
    asked: np.ndarray
    change: Change | None = None

    def volumes(self, people: np.ndarray, seed: int = 0) -> np.ndarray:
        """Its output (N, D, H, W), from the volumes of all people (M, D, H, W); each volume has noise of its own."""
        chosen = np.asarray(people[self.shown], np.float32)
        if self.change is None:
            return chosen
        return np.stack([self.change(each, np.random.default_rng((seed, row))) for row, each in enumerate(chosen)])


def listening(asked: np.ndarray, people: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Which of ``people`` (K,) comes nearest to each of those asked for (N,), by ``values`` (M, F), z-scored."""
    values = np.asarray(values, float)
    spread = values.std(0)
    scaled = (values - values.mean(0)) / np.where(spread > 0, spread, 1)
    apart = ((scaled[asked][:, None] - scaled[people][None]) ** 2).sum(-1)
    return people[apart.argmin(1)]


def shuffled(rows: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Rows (N,) of which a share, at least two, has changed places in a ring: none of these keeps its own."""
    rows = rows.copy()
    moved = rng.choice(len(rows), min(len(rows), max(2, round(share * len(rows)))), replace=False)
    rows[moved] = rows[np.roll(moved, 1)]
    return rows


def standard_faults(
    people: np.ndarray, seen: np.ndarray, values: np.ndarray, spacing_mm: float, seed: int = 0
) -> list[Fault]:
    """Nine faults, in two or three severities each, as a generator of len(``people``) volumes would have them.

    Args:
        people: (N,) rows of people that a faultless generator would show, as they were asked for.
        seen: rows of people that it has learned from, for the one that copies, each when asked for; none of ``people``.
        values: (M, F) what is measured in all people; the first is the one whose tail goes missing.
        spacing_mm: blur and holes are as many voxels on every grid, and named in mm.

    Raises:
        BrainLDMError: fewer than two people, or people that are also among those learned from.
    """
    people, seen, values = np.asarray(people), np.asarray(seen), np.asarray(values, float)
    if min(len(people), len(seen)) < 2 or set(people) & set(seen):
        raise BrainLDMError(f"{len(people)} people, {len(seen)} learned from: give at least 2 each, nobody twice")
    rng, n = np.random.default_rng(seed), len(people)
    found: list[Fault] = []

    def add(name: str, severity: str, shown=people, asked=people, change: Change | None = None) -> None:
        found.append(Fault(name, severity, shown, asked, change))

    for voxels in (0.3, 0.6):
        add("blurred", f"{voxels * spacing_mm:.2g} mm", change=partial(blurred, voxels=voxels))
    for level in (0.01, 0.03):
        add("noisy", f"{level:g} grey values", change=partial(noisy, level=level))
    for share in (0.02, 0.1):
        add("too dark", f"{share:.0%}", change=partial(dimmed, share=share))
    for share in (0.01, 0.03):
        add("checkerboard", f"{share:.0%}", change=partial(checkered, share=share))
    for voxels in (1.0, 2.0):
        add("hole", f"{voxels * spacing_mm:g} mm", change=partial(holed, voxels=voxels))
    for part in (4, 16):
        few = people[: max(1, n // part)]
        change = partial(varied, share=0.02)
        add(
            "mode-collapsed",
            f"{len(few)} {'people' if len(few) > 1 else 'person'}",
            listening(people, few, values),
            change=change,
        )
    others = np.setdiff1d(np.arange(len(values)), people)
    for share in (0.1, 0.3):
        low = values[:, 0] <= np.quantile(values[people, 0], 1 - share)
        spare = others[low[others]]
        shown, lost = people.copy(), np.flatnonzero(~low[people])
        if len(spare) and len(lost):
            shown[lost] = rng.choice(spare, len(lost), replace=len(spare) < len(lost))
        add("tail missing", f"{share:.0%}", shown)
    copies = rng.choice(seen, n, replace=len(seen) < n)
    for share in (0.1, 0.5):
        some = max(1, round(share * n))
        mixed = np.concatenate([copies[:some], people[some:]])
        add("memorised", f"{share:.0%} exact", mixed, mixed)
    add("memorised", "all, 5% changed", copies, copies, partial(varied, share=0.05))
    for share in (0.25, 1.0):
        add("covariate-blind", f"{share:.0%}", asked=shuffled(people, share, rng))
    return found
