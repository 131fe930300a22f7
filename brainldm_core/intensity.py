"""Intensities of real scans: the bias field that a coil leaves, and three ways into [0, 1]."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .errors import BrainLDMError
from .registration import WHITE_LEVEL, tissue_mask
from .resampling import as_image

if TYPE_CHECKING:
    import SimpleITK as sitk

FIELD_MM = 4  # voxels on which the field is looked for: it varies over centimetres
PERCENTILE = 99.5
WAYS = {
    "white": f"white matter to {WHITE_LEVEL}; brighter than 1 is clipped",
    "field": "darkest voxel of the cropped field to 0, brightest to 1",
    "percentile": f"0 to 0, percentile {PERCENTILE} of the tissue to 1; brighter is clipped",
}


def correct_bias(volume: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, float]:
    """Scan (D, H, W) without its bias field by N4, and by how many per cent the field varied over the tissue.

    The logarithm of the field is found on voxels of about 4 mm and taken off at full resolution; its mean over the
    tissue is 0, so that intensities keep their level. The same answer every time.
    """
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # sums in one order
    image = as_image(volume, affine)
    small = sitk.BinShrink(image, [max(1, round(FIELD_MM / side)) for side in image.GetSpacing()])
    tissue = tissue_mask(small)
    mask = sitk.GetImageFromArray(tissue.astype(np.uint8))
    mask.CopyInformation(small)
    method = sitk.N4BiasFieldCorrectionImageFilter()
    method.Execute(sitk.Clamp(small, lowerBound=0.0), mask)
    log = sitk.GetArrayFromImage(method.GetLogBiasFieldAsImage(small)).astype(np.float32)
    inside = log[tissue]
    low, high = np.percentile(inside, [5, 95])
    # Outside the tissue nothing holds the spline.
    log = np.clip(log, inside.min(), inside.max()) - inside.mean()
    field = _enlarged(log, small, image)
    return volume / np.exp(field), float(100 * np.expm1(high - low))


def _enlarged(values: np.ndarray, small: sitk.Image, image: sitk.Image) -> np.ndarray:
    """Values on the voxels of ``small`` at those of ``image``, linearly between, as (D, H, W)."""
    import SimpleITK as sitk

    field = sitk.GetImageFromArray(values)
    field.CopyInformation(small)
    method = sitk.ResampleImageFilter()
    method.SetReferenceImage(image)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetUseNearestNeighborExtrapolator(True)
    return sitk.GetArrayFromImage(method.Execute(field)).T


def window(placed: np.ndarray, way: str, white_level: float) -> tuple[float, float]:
    """Intensities of a resampled scan (D, H, W) that become 0 and 1: see ``WAYS``.

    Raises:
        BrainLDMError: the field of the profile holds nothing of this scan.
    """
    import SimpleITK as sitk

    if way == "white":
        low, high = 0.0, white_level / WHITE_LEVEL
    elif way == "field":
        low, high = float(placed.min()), float(placed.max())
    else:
        image = sitk.GetImageFromArray(np.ascontiguousarray(placed.T))
        tissue = placed.T[tissue_mask(image)]
        low, high = 0.0, float(np.percentile(tissue, PERCENTILE)) if tissue.size else 0.0
    if not high > low:
        raise BrainLDMError("nothing of it lies in the field of the profile; check orientation and content")
    return low, high
