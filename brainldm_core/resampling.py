"""Scans as SimpleITK images whose physical space is RAS mm, and their resampling in one interpolation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .errors import BrainLDMError
from .profiles import Grid

if TYPE_CHECKING:
    import SimpleITK as sitk


def as_image(volume: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """SimpleITK image of (D, H, W) whose physical space is the scan's RAS mm (no change of sign anywhere).

    Raises:
        BrainLDMError: the affine is sheared, which no scanner gives.
    """
    import SimpleITK as sitk

    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / spacing
    left, _, right = np.linalg.svd(axes)
    if np.abs(axes - left @ right).max() > 0.02:
        raise BrainLDMError("the header's affine is sheared; resample this scan to a plain grid")
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.T, dtype=np.float32))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((left @ right).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def smoothed(image: sitk.Image, target_mm: float) -> sitk.Image:
    """Blur each axis so that a voxel of ``target_mm`` sees the mean of what it covers, not one point."""
    import SimpleITK as sitk

    sigmas = [0.42 * np.sqrt(max(target_mm**2 - voxel**2, 0)) for voxel in image.GetSpacing()]
    for axis, sigma in enumerate(sigmas):
        if sigma > 0.1 * target_mm:
            image = sitk.RecursiveGaussian(image, sigma=float(sigma), direction=axis)
    return image


def resample(volume: np.ndarray, affine: np.ndarray, matrix: np.ndarray, grid: Grid) -> np.ndarray:
    """Scan (D, H, W) on a profile's grid in template space, in one interpolation.

    Points lie about 1 mm apart and are averaged over each voxel of the grid, so that nothing aliases.
    """
    import SimpleITK as sitk

    factor = max(1, round(grid.spacing_mm))
    fine = grid.spacing_mm / factor
    origin = np.array(grid.affine)[:3, 3] - grid.spacing_mm / 2 + fine / 2
    transform = sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist())
    image = smoothed(as_image(volume, affine), fine)
    # Averaging hides the blur of linear interpolation; without it a cubic spline keeps edges.
    how = sitk.sitkLinear if factor > 1 else sitk.sitkBSpline3
    size = [side * factor for side in grid.shape]
    moved = sitk.Resample(image, size, transform, how, origin.tolist(), [fine] * 3, np.eye(3).ravel().tolist(), 0.0)
    blocks = sitk.GetArrayFromImage(moved).T.reshape([n for side in grid.shape for n in (side, factor)])
    return blocks.mean(axis=(1, 3, 5), dtype=np.float32)
