"""Anatomies: what a simulated subject is made from (soft tissue maps, T1 texture and the ventricles' flow).

The ``atlas`` anatomy comes from the MNI152 2009a maps that ship inside nilearn, so nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import BrainLDMError

CHANNELS = ("csf", "grey", "white", "lateral", "texture")
TEMPLATE_MEANS = {"csf": 0.28, "grey": 0.65, "white": 0.87}  # medians of T1 where one tissue has > 0.9


@dataclass(frozen=True)
class Anatomy:
    """Source of a simulated subject on a grid in MNI mm.

    ``maps`` (5, D, H, W): CSF outside the lateral ventricles, grey, white, lateral ventricles, T1 texture;
    ``flow`` (3, D, H, W): velocity in mm for one millilitre of growth of the lateral ventricles.
    """

    name: str
    maps: np.ndarray
    flow: np.ndarray
    origin_mm: tuple[float, float, float]
    spacing_mm: float

    def coarser(self) -> Anatomy:
        """The same anatomy on voxels twice as wide."""
        import torch

        maps, flow = (
            torch.nn.functional.avg_pool3d(torch.from_numpy(field), 2).numpy() for field in (self.maps, self.flow)
        )
        origin = tuple(start + self.spacing_mm / 2 for start in self.origin_mm)
        return Anatomy(self.name, maps, flow, origin, 2 * self.spacing_mm)

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
    support = np.argwhere(maps[:4].any(0))
    first = np.maximum(support.min(0) - margin, 0)
    last = np.minimum(support.max(0) + margin + 1, maps.shape[1:])
    maps, start = maps[(slice(None), *map(slice, first, last))], start + voxel * first
    if spacing_mm > voxel:  # a Gaussian about as wide as the new voxel stands for averaging over it
        sigma = 0.42 * np.sqrt((spacing_mm / voxel) ** 2 - 1)
        maps = np.stack([ndimage.gaussian_filter(channel, sigma, truncate=3) for channel in maps])
    shape = tuple(int(side) for side in np.ceil((last - first - 1) * voxel / spacing_mm) + 1)
    points = grid_points(shape, start, spacing_mm)
    resampled = look_up(torch.from_numpy(maps)[None], points, start, voxel)[0].numpy()
    return Anatomy(name, resampled, ventricle_flow(resampled, spacing_mm), tuple(start.tolist()), float(spacing_mm))


def ventricle_flow(maps: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Velocity (3, D, H, W), mm per ml: grad psi with  div grad psi = lateral - white  (each of unit mass).

    The ventricles grow at the cost of white matter; nothing crosses the skull, so the head keeps its size.
    """
    inside = maps[:4].sum(0) > 0.5
    source, sink = maps[3] * inside, maps[2] * inside
    density = (source / source.sum() - sink / sink.sum()) * 1000 / spacing_mm**3
    return _potential_flow(density, inside, spacing_mm)


def _potential_flow(density: np.ndarray, inside: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Solve the Neumann problem  div grad psi = density  inside a mask; return grad psi (3, D, H, W)."""
    from scipy import sparse
    from scipy.sparse.linalg import cg

    number = np.full(inside.shape, -1)
    number[inside] = np.arange(inside.sum())
    size = int(inside.sum())
    laplacian, links = sparse.csr_matrix((size, size)), []
    for axis in range(3):
        first, second = (np.take(number, range(s, number.shape[axis] - 1 + s), axis).ravel() for s in (0, 1))
        both = (first >= 0) & (second >= 0)
        first, second = first[both], second[both]
        ones = np.ones(first.size)
        difference = sparse.csr_matrix(
            (np.concatenate([-ones, ones]), (np.tile(np.arange(first.size), 2), np.concatenate([first, second]))),
            shape=(first.size, size),
        )
        laplacian = laplacian + difference.T @ difference
        links.append((difference, first, second))
    right = density[inside] * spacing_mm**2
    scale = sparse.diags(1 / np.maximum(laplacian.diagonal(), 1))
    potential, failed = cg(laplacian, right.mean() - right, rtol=1e-5, maxiter=3000, M=scale)
    if failed:
        raise RuntimeError("the tissue flow did not converge")
    flow = np.zeros((3, *inside.shape), np.float32)
    for axis, (difference, first, second) in enumerate(links):
        face = difference @ potential / spacing_mm
        # A face without a neighbour is the skull: zero velocity there enters the mean of the two faces.
        flow[axis][inside] = 0.5 * (np.bincount(first, face, size) + np.bincount(second, face, size))
    return flow


def look_up(field: Any, points: Any, origin: Any, spacing: float) -> Any:
    """Linear interpolation of (1, C, D, H, W) at points (1, 3, d, h, w) in mm; the edge value outside."""
    import torch

    sides = torch.tensor(field.shape[2:], dtype=torch.float32)
    origin = torch.as_tensor(np.asarray(origin), dtype=torch.float32)
    scale, shift = 2 / (spacing * (sides - 1)), -2 * origin / (spacing * (sides - 1)) - 1
    unit = points[0] * scale.view(3, 1, 1, 1) + shift.view(3, 1, 1, 1)
    order = unit.flip(0).permute(1, 2, 3, 0)[None]  # grid_sample wants (W, H, D)
    return torch.nn.functional.grid_sample(field, order, mode="bilinear", padding_mode="border", align_corners=True)


def grid_points(shape: tuple[int, ...], origin: Any, spacing: float) -> Any:
    """Centres (1, 3, D, H, W) of a grid in mm."""
    import torch

    axes = [torch.arange(n, dtype=torch.float32) * spacing + start for n, start in zip(shape, origin, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def integrate(velocity: Any, origin: Any, spacing: float, squarings: int = 4) -> Any:
    """Displacement (1, 3, D, H, W) in mm of exp(velocity) by scaling and squaring."""
    points = grid_points(velocity.shape[2:], origin, spacing)
    displacement = velocity / 2**squarings
    for _ in range(squarings):
        displacement = displacement + look_up(displacement, points + displacement, origin, spacing)
    return displacement


def volumes_ml(maps: Any, spacing_mm: float) -> dict[str, float]:
    """Volumes in ml of soft maps (csf, grey, white, lateral, ...)."""
    csf, grey, white, lateral = (float(channel.sum(dtype=np.float64)) * spacing_mm**3 / 1000 for channel in maps[:4])
    return {"lateral": lateral, "brain": grey + white, "intracranial": csf + grey + white + lateral}
