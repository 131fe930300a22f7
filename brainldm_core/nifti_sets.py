"""Sets of volumes in folders of NIfTI, anybody's: found, checked, read on demand, so that no set must fit in memory.

A set of volumes is anything with a length, a ``shape`` (N, D, H, W), and volumes (n, D, H, W) float32 in [0, 1] for a
slice or an array of numbers: a numpy array is one, and so is ``NiftiSet``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .dataset import read_nifti
from .errors import BrainLDMError
from .nifti_files import find_participants, find_volumes, read_grid, subject_of, to_ras
from .records import settings_hash
from .volume_sets import VolumeSet

if TYPE_CHECKING:
    import pandas as pd

SAME_MM = 1e-2  # affines that differ by less place voxels alike
INTENSITIES = {
    "as-is": "values are in [0, 1] already",
    "field": "darkest voxel of each volume to 0, brightest to 1, as in the paper",
    "percentile": "0 to 0, percentile 99.5 of the tissue of each volume to 1; brighter is clipped",
}
TOLERANCE = 1e-3  # beyond [0, 1], for rounding in files


@dataclass(frozen=True)
class NiftiSet:
    """Volumes of one grid in files; ``affine`` (4, 4) places voxels (RAS+, mm).

    What is read is turned to RAS+, scaled as ``intensity`` says, changed by ``change`` if given, and rounded to the 256
    grey values in which samples are kept, so that nothing is told by its rounding.
    """

    paths: tuple[Path, ...]
    grid: tuple[int, int, int]
    affine: np.ndarray = field(compare=False)
    intensity: str = "as-is"
    change: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, D, H, W)."""
        return (len(self.paths), *self.grid)

    @property
    def names(self) -> list[str]:
        """File names without suffix."""
        return [path.name.split(".nii")[0] for path in self.paths]

    @property
    def subjects(self) -> list[str]:
        """``sub-X`` of each file, by its name or its folder; a file that names none is its own subject."""
        return [subject_of(path) or str(path) for path in self.paths]

    @property
    def key(self) -> str:
        """Changes when a file, the scaling or what is done to volumes changes."""
        stats = [path.stat() for path in self.paths]
        files = [[str(p), s.st_size, s.st_mtime_ns] for p, s in zip(self.paths, stats, strict=True)]
        return settings_hash([files, self.intensity, repr(self.change)])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """Volumes (n, D, H, W) float32 in [0, 1] of a slice or of an array of numbers."""
        paths = self.take(index).paths
        volumes = np.empty((len(paths), *self.grid), np.float32)
        for place, path in enumerate(paths):
            volumes[place] = self._read(path)
        return volumes

    def take(self, index: slice | Sequence[int] | np.ndarray) -> NiftiSet:
        """A set of some of these files, in that order; nothing is read."""
        chosen = range(len(self))[index] if isinstance(index, slice) else [int(place) for place in index]
        return replace(self, paths=tuple(self.paths[number] for number in chosen))

    def changed(self, change: Callable[[np.ndarray], np.ndarray]) -> NiftiSet:
        """The same files with ``change`` (D, H, W) -> (D, H, W) done to each volume when it is read."""
        return replace(self, change=change)

    def _read(self, path: Path) -> np.ndarray:
        volume, affine = read_nifti(path)
        volume, _ = to_ras(volume, affine)
        if volume.shape != self.grid:
            raise BrainLDMError(f"{path}: changed while it was read, {volume.shape} voxels; start again")
        volume = _scaled(volume, self.intensity, path)
        if self.change is not None:
            volume = self.change(volume)
        return np.round(np.clip(volume, 0, 1) * 255).astype(np.float32) / 255


def _scaled(volume: np.ndarray, intensity: str, path: Path) -> np.ndarray:
    """Intensities (D, H, W) in [0, 1]; see ``INTENSITIES``."""
    if intensity == "as-is":
        low, high = float(volume.min()), float(volume.max())
        if low < -TOLERANCE or high > 1 + TOLERANCE:
            raise BrainLDMError(
                f"{path}: intensities go from {low:.4g} to {high:.4g}, not within [0, 1]; scale both sets alike, for "
                "instance with --intensity field"
            )
        return volume
    from .intensity import window

    try:
        low, high = window(volume, intensity, 0.0)
    except BrainLDMError as error:
        raise BrainLDMError(f"{path}: {error}") from None
    return (volume - low) / (high - low)


def open_set(folder: Path, intensity: str = "as-is", ignore_affines: bool = False) -> NiftiSet:
    """The volumes of a folder as a set, once all headers are seen to be of one grid.

    Args:
        ignore_affines: compare arrays voxel by voxel as they lie in the files, whatever their headers say.

    Raises:
        BrainLDMError: no volumes, one that is damaged, or more than one grid.
    """
    if intensity not in INTENSITIES:
        raise BrainLDMError(f"--intensity {intensity}: is unknown; choose one of {', '.join(INTENSITIES)}")
    paths = find_volumes(folder)
    grids = [read_grid(path) for path in paths]
    first, affine = grids[0]
    for path, (shape, other) in zip(paths, grids, strict=True):
        if shape != first or not (ignore_affines or np.allclose(other, affine, atol=SAME_MM)):
            raise BrainLDMError(f"{path}: {_differs(shape, other, first, affine)} as {paths[0]}; {MEND}")
    return NiftiSet(tuple(paths), first, affine, intensity)


MEND = "resample all volumes to one grid (brainldm prepare bids does), or, if only headers differ, add --ignore-affines"


def check_same_grid(one: NiftiSet, two: NiftiSet, ignore_affines: bool = False) -> None:
    """Refuse two sets that are not on one grid.

    Raises:
        BrainLDMError: another number of voxels, another size of voxels, or another place in space.
    """
    if one.grid != two.grid or not (ignore_affines or np.allclose(one.affine, two.affine, atol=SAME_MM)):
        words = _differs(one.grid, one.affine, two.grid, two.affine)
        raise BrainLDMError(f"{one.paths[0]}: {words} as {two.paths[0]}; {MEND}")


def _differs(shape: tuple, affine: np.ndarray, wanted: tuple, other: np.ndarray) -> str:
    """In words, how a grid is not another one."""
    if shape != wanted:
        return f"has {'x'.join(map(str, shape))} voxels, not {'x'.join(map(str, wanted))}"
    sizes = [np.linalg.norm(matrix[:3, :3], axis=0) for matrix in (affine, other)]
    if not np.allclose(*sizes, atol=SAME_MM):
        words = ["x".join(f"{side:.4g}" for side in size) for size in sizes]
        return f"has voxels of {words[0]} mm, not of {words[1]} mm"
    gap = float(np.abs(affine - other).max())
    return f"does not place its voxels (up to {gap:.3g} mm or a turn apart)"


def first(volumes: VolumeSet, n: int) -> VolumeSet:
    """The first n of a set; nothing is read."""
    return volumes.take(slice(n)) if isinstance(volumes, NiftiSet) else volumes[:n]


def shuffled(volumes: NiftiSet, seed: int = 0) -> NiftiSet:
    """The same files in random order, so that the first n are any n: names often go by age, or by what was asked."""
    return volumes.take(np.random.default_rng(seed).permutation(len(volumes)))


def halves(volumes: NiftiSet, seed: int = 0) -> tuple[NiftiSet, NiftiSet]:
    """Two halves of a set with no subject in both, drawn at random.

    Raises:
        BrainLDMError: fewer than four subjects.
    """
    names = np.unique(volumes.subjects)
    if len(names) < 4:
        raise BrainLDMError(
            f"{len(names)} real subjects: at least 4 are needed, two for the reference and two for the floor; give "
            "more, or other real volumes by --other-real"
        )
    chosen = set(np.random.default_rng(seed).permutation(names)[: len(names) // 2].tolist())
    inside = np.array([subject in chosen for subject in volumes.subjects])
    return volumes.take(np.flatnonzero(inside)), volumes.take(np.flatnonzero(~inside))


def splits(folder: Path, volumes: NiftiSet) -> dict[str, NiftiSet]:
    """Parts of a set by the column ``split`` of ``participants.tsv`` in its folder; none without such a column."""
    from .covariates import read_table

    if (path := find_participants(folder, volumes.paths[0])) is None:
        return {}
    table = read_table(path)
    if not {"participant_id", "split"} <= set(table):
        return {}
    split = dict(zip(table["participant_id"], table["split"], strict=True))
    parts = np.array([split.get(subject, "") for subject in volumes.subjects])
    return {name: volumes.take(np.flatnonzero(parts == name)) for name in sorted(set(parts) - {""})}


def requests(folder: Path, volumes: NiftiSet) -> tuple[pd.DataFrame | None, str]:
    """Covariates of each volume from ``participants.tsv`` of its folder, in the order of the set; or None, and why."""
    from .covariates import COLUMNS, KEYS, MISSING, check_table, read_table

    if (path := find_participants(folder, volumes.paths[0])) is None:
        return None, "there is no participants.tsv with covariates"
    try:
        table = read_table(path)
        for column in COLUMNS:
            if column not in table:
                table[column] = MISSING
        table = check_table(table, Path(path.name))
    except BrainLDMError as error:
        return None, str(error)
    rows = {person: place for place, person in reversed(list(enumerate(table[KEYS[0]])))}
    places = [rows.get(subject, -1) for subject in volumes.subjects]
    if -1 in places:
        return None, f"{path.name} has no row for {volumes.subjects[places.index(-1)]}"
    return table.iloc[places].reset_index(drop=True), ""


def intensity_facts(volumes: NiftiSet, most: int = 32) -> dict[str, Any]:
    """What intensities of a set are like: medians over up to ``most`` of its volumes, evenly spread over the set."""
    chosen = np.unique(np.linspace(0, len(volumes) - 1, min(most, len(volumes))).astype(int))
    rows = []
    for number in chosen:
        volume = volumes[[number]][0]
        head = volume[volume > 0.05]
        bright = np.percentile(head, [50, 99]) if head.size else [0.0, 0.0]
        rows.append([float((volume <= 0.05).mean()), float((volume == 0).mean()), *map(float, bright)])
    names = ("dark_share", "zero_share", "median_of_head", "percentile_99_of_head")
    return {"volumes": len(chosen)} | dict(zip(names, np.median(rows, axis=0).round(4).tolist(), strict=True))
