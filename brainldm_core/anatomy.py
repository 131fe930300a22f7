"""Anatomies: what a simulated subject is made from (soft tissue maps, T1 texture and the ventricles' flow).

The ``atlas`` anatomy comes from the MNI152 2009a maps that ship inside nilearn, so nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BrainLDMError
from .records import atomic_path
from .warps import grid_points, look_up, potential_flow

CHANNELS = ("csf", "grey", "white", "lateral", "texture")
FLOW_MM = 2.0
TEMPLATE_MEANS = {"csf": 0.28, "grey": 0.65, "white": 0.87}  # medians of T1 where one tissue has > 0.9


@dataclass(frozen=True)
class Anatomy:
    """Source of a simulated subject on a grid in MNI mm.

    ``maps`` (5, D, H, W): CSF outside the lateral ventricles, grey, white, lateral ventricles, T1 texture (signal
    beyond that of the tissues, or outside them);
    ``flow`` (3, d, h, w): velocity in mm for one millilitre of growth of the lateral ventricles, on a grid of its own
    with voxels of 2 mm or more, as it is smooth everywhere.
    """

    name: str
    maps: np.ndarray
    origin_mm: tuple[float, float, float]
    spacing_mm: float
    flow: np.ndarray
    flow_origin_mm: tuple[float, float, float]
    flow_spacing_mm: float

    @cached_property
    def coarser(self) -> Anatomy:
        """The same anatomy, its maps on voxels twice as wide."""
        return replace(self, **_coarser(self.maps, self.origin_mm, self.spacing_mm))

    def save(self, path: Path) -> None:
        """Write to an ``.npz`` file."""
        with atomic_path(path) as partial, open(partial, "wb") as file:
            np.savez(file, **asdict(self))

    @staticmethod
    def load(path: Path) -> Anatomy:
        """Read what ``save`` wrote."""
        with np.load(path) as content:
            return Anatomy(**{key: value if value.ndim > 1 else _plain(value) for key, value in content.items()})

    def volumes(self) -> dict[str, float]:
        """Volumes of the anatomy itself."""
        return volumes_ml(self.maps, self.spacing_mm)


def lateral_ventricles(t1: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Binary lateral ventricles of the MNI152 template (197 x 233 x 189, 1 mm): dark components in a central box."""
    from scipy import ndimage

    x, y, z = np.ogrid[tuple(slice(0, side) for side in t1.shape)]
    x, y, z = (index * affine[axis, axis] + affine[axis, 3] for axis, index in enumerate((x, y, z)))
    dark = (t1 > 0) & (t1 < 0.55 * t1.max()) & (abs(x) < 42) & (y > -52) & (y < 38) & (z > -12) & (z < 36)
    # Third ventricle, septum, quadrigeminal cistern and the insula touch the ventricles at this threshold.
    dark &= ~((abs(x) <= 5) & (z < 10)) & (abs(x) >= 1) & ~((y < -24) & (abs(x) < 14) & (z < 10))
    dark &= ~((y < -40) & (abs(x) < 12)) & ~((abs(x) > 32) & (y > -30))
    components, _ = ndimage.label(dark)
    inside = [np.round(np.linalg.solve(affine, [side, -8, 22, 1]))[:3].astype(int) for side in (-12, 12)]
    chosen = {int(components[tuple(seed)]) for seed in inside} - {0}
    if not chosen:
        raise BrainLDMError("MNI152 template: no lateral ventricles found; install the pinned nilearn")
    return np.isin(components, list(chosen))


def atlas_anatomy(spacing_mm: float) -> Anatomy:
    """The MNI152 2009a template of nilearn (no download) as an anatomy on a grid of ``spacing_mm``."""
    from nilearn import datasets
    from scipy import ndimage

    image = datasets.load_mni152_template(resolution=1)
    t1, affine = image.get_fdata(dtype=np.float32), image.affine
    inside = t1 > 0
    grey = datasets.load_mni152_gm_template(resolution=1).get_fdata(dtype=np.float32) * inside
    white = datasets.load_mni152_wm_template(resolution=1).get_fdata(dtype=np.float32) * inside
    csf = np.clip(1 - grey - white, 0, 1) * inside
    near = ndimage.binary_dilation(lateral_ventricles(t1, affine), iterations=2)
    lateral, csf = csf * near, csf * ~near
    means = TEMPLATE_MEANS
    expected = means["csf"] * (csf + lateral) + means["grey"] * grey + means["white"] * white
    texture = np.clip(t1 - expected, -0.15, 0.15) * inside
    return make_anatomy("atlas", np.stack([csf, grey, white, lateral, texture]), affine, spacing_mm)


def make_anatomy(name: str, maps: np.ndarray, affine: np.ndarray, spacing_mm: float) -> Anatomy:
    """Resample (5, D, H, W) maps with a diagonal affine to ``spacing_mm`` and add the ventricles' flow."""
    import torch
    from scipy import ndimage

    voxel, start = float(affine[0, 0]), np.asarray(affine)[:3, 3]
    margin = int(np.ceil(2 * spacing_mm / voxel))
    support = np.argwhere(maps.any(0))
    first = np.maximum(support.min(0) - margin, 0)
    last = np.minimum(support.max(0) + margin + 1, maps.shape[1:])
    maps, start = maps[(slice(None), *map(slice, first, last))], start + voxel * first
    if spacing_mm > voxel:  # a Gaussian about as wide as the new voxel stands for averaging over it
        sigma = 0.42 * np.sqrt((spacing_mm / voxel) ** 2 - 1)
        maps = np.stack([ndimage.gaussian_filter(channel, sigma, truncate=3) for channel in maps])
    shape = tuple(int(side) for side in np.ceil((last - first - 1) * voxel / spacing_mm) + 1)
    points = grid_points(shape, start, spacing_mm)
    resampled = look_up(torch.from_numpy(maps)[None], points, start, voxel)[0].numpy()
    fine = {"maps": resampled, "origin_mm": tuple(start.tolist()), "spacing_mm": float(spacing_mm)}
    coarse = fine
    while coarse["spacing_mm"] < FLOW_MM:
        coarse = _coarser(**coarse)
    flow = ventricle_flow(coarse["maps"], coarse["spacing_mm"])
    return Anatomy(name, **fine, flow=flow, flow_origin_mm=coarse["origin_mm"], flow_spacing_mm=coarse["spacing_mm"])


def _coarser(maps: np.ndarray, origin_mm: tuple[float, ...], spacing_mm: float) -> dict[str, Any]:
    """Maps averaged over voxels twice as wide, with their grid."""
    import torch

    pooled = torch.nn.functional.avg_pool3d(torch.from_numpy(maps), 2).numpy()
    origin = tuple(start + spacing_mm / 2 for start in origin_mm)
    return {"maps": pooled, "origin_mm": origin, "spacing_mm": 2 * spacing_mm}


def _plain(value: np.ndarray) -> Any:
    """A number, a text or a tuple of numbers from the array that ``np.savez`` made of it."""
    return tuple(value.tolist()) if value.ndim else value.item()


def ventricle_flow(maps: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Velocity (3, D, H, W), mm per ml: grad psi with  div grad psi = lateral - white  (each of unit mass).

    The ventricles grow at the cost of white matter; nothing crosses the skull, so the head keeps its size.
    """
    from scipy import ndimage

    pieces, _ = ndimage.label(maps[:4].sum(0) > 0.5)
    inside = pieces == np.bincount(pieces[pieces > 0]).argmax()  # a loose voxel would have no solution
    source, sink = maps[3] * inside, maps[2] * inside
    density = (source / source.sum() - sink / sink.sum()) * 1000 / spacing_mm**3
    return potential_flow(density, inside, spacing_mm)


def volumes_ml(maps: Any, spacing_mm: float) -> dict[str, float]:
    """Volumes in ml of soft maps (csf, grey, white, lateral, ...)."""
    csf, grey, white, lateral = (float(channel.sum(dtype=np.float64)) * spacing_mm**3 / 1000 for channel in maps[:4])
    return {"lateral": lateral, "brain": grey + white, "intracranial": csf + grey + white + lateral}
