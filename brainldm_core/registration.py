"""Rigid registration of a T1w scan to the MNI152 template.

The paper used UniRes (Brudfors et al. 2019) for this step. Here: a similarity transform by Mattes mutual information,
of which rotation and translation are kept, so that heads keep their size. Transforms are 4 x 4 matrices that map
template points to scan points, in RAS mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import BrainLDMError
from .resampling import as_image, smoothed

if TYPE_CHECKING:
    import SimpleITK as sitk

CENTRE_MM = (0.0, -18.0, 8.0)  # heads are scaled about this point, in simulated cohorts too
WORKING_MM = 2
BRAIN_LIMIT_ML = 2200.0  # more tissue than this is a whole head
WHITE_LEVEL = 0.8  # intensity of white matter after scaling, as in simulated cohorts
ANGLES = (-20.0, 0.0, 20.0)  # degrees: starts about each axis


@dataclass(frozen=True)
class Registration:
    """How a scan lies in the template's space; ``matrix`` is rigid, ``scale`` what was left out of it."""

    matrix: np.ndarray
    scale: float
    mutual_information: float
    correlation: float
    white_level: float
    brain_only: bool

    @property
    def rotation_degrees(self) -> float:
        """Angle of the rotation."""
        return float(np.degrees(np.arccos(np.clip((np.trace(self.matrix[:3, :3]) - 1) / 2, -1, 1))))


@lru_cache(maxsize=1)
def _template() -> tuple[sitk.Image, sitk.Image, sitk.Image]:
    """MNI152 template, its dilated brain mask, and sure white matter, at the working resolution."""
    import SimpleITK as sitk
    from nilearn import datasets

    t1 = datasets.load_mni152_template(resolution=WORKING_MM)
    white = datasets.load_mni152_wm_template(resolution=WORKING_MM).get_fdata(dtype=np.float32)
    fixed = as_image(t1.get_fdata(dtype=np.float32), t1.affine)
    mask = sitk.BinaryDilate(fixed > 0.05, (3, 3, 3))
    return fixed, mask, as_image((white > 0.9).astype(np.float32), t1.affine)


def _coarse(image: sitk.Image) -> sitk.Image:
    """The scan at the working resolution, clipped at its brightest half per cent."""
    import SimpleITK as sitk

    sides = [max(4, round(n * s / WORKING_MM)) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    spacing = [n * s / m for n, s, m in zip(image.GetSize(), image.GetSpacing(), sides, strict=True)]
    shift = [(new - old) / 2 for new, old in zip(spacing, image.GetSpacing(), strict=True)]
    origin = np.array(image.GetOrigin()) + np.array(image.GetDirection()).reshape(3, 3) @ shift
    small = sitk.Resample(
        smoothed(image, WORKING_MM), sides, sitk.Transform(), sitk.sitkLinear, origin.tolist(), spacing,
        image.GetDirection(), 0.0, sitk.sitkFloat32,
    )  # fmt: skip
    values = sitk.GetArrayViewFromImage(small)
    tissue = values[values > values.mean() * 0.1]
    return sitk.Clamp(small, lowerBound=max(0.0, float(values.min())), upperBound=float(np.percentile(tissue, 99.5)))


def tissue_mask(image: sitk.Image) -> np.ndarray:
    """What is bright in a T1w image, as booleans in SimpleITK's order of axes: tissue, without air and most fluid."""
    import SimpleITK as sitk

    mask = sitk.GetArrayFromImage(sitk.OtsuThreshold(image, 0, 1, 128)) > 0
    values = sitk.GetArrayViewFromImage(image)
    # Otsu parts white from grey where there is no background; half of it is tissue in any T1w.
    return values > 0.5 * (values[mask].min() if mask.any() else values.mean())


def _is_brain(mask: np.ndarray, image: sitk.Image) -> bool:
    """Whether tissue is so little that it is a brain and no head.

    Raises:
        BrainLDMError: there is far too little or too much of it for a head.
    """
    volume = mask.sum() * np.prod(image.GetSpacing()) / 1000
    if not 300 < volume < 15000:
        raise BrainLDMError(f"holds {volume:.0f} ml of tissue, which is no head; check voxel size and content")
    return bool(volume < BRAIN_LIMIT_ML)


def is_brain_only(volume: np.ndarray, affine: np.ndarray) -> bool:
    """Whether a T1w scan (D, H, W) holds nothing but a brain."""
    scan = _coarse(as_image(volume, affine))
    return _is_brain(tissue_mask(scan), scan)


def _tissue(scan: sitk.Image) -> tuple[np.ndarray, np.ndarray, bool]:
    """Tissue points (N, 3) in mm, their intensities (N,), and whether the scan holds nothing but a brain."""
    import SimpleITK as sitk

    mask = tissue_mask(scan)
    index = np.argwhere(mask)[:, ::-1]
    direction = np.array(scan.GetDirection()).reshape(3, 3) * scan.GetSpacing()
    points = index @ direction.T + scan.GetOrigin()
    return points, sitk.GetArrayViewFromImage(scan)[mask], _is_brain(mask, scan)


def _starts(points: np.ndarray, weights: np.ndarray, brain_only: bool, scale: float) -> list[sitk.Transform]:
    """Similarity transforms to start from: the brain's centre of mass, or in a whole head a search below the vertex."""
    import SimpleITK as sitk

    fixed = _template()[0]
    brain, brain_weights, _ = _tissue(fixed)
    goal = np.average(brain, axis=0, weights=brain_weights)
    if brain_only:
        centres = [np.average(points, axis=0, weights=weights)]
    else:
        top = np.percentile(points[:, 2], 99.7)
        upper = points[points[:, 2] > top - 140]
        middle = np.array([*np.median(upper[:, :2], axis=0), top - 72])
        centres = [middle + (0, dy, dz) for dy in (-15, 0, 15) for dz in (-30, -15, 0, 15)]
    starts = []
    turns = np.radians(list(product(ANGLES, ANGLES if brain_only else (0,), ANGLES if brain_only else (0,))))
    for centre in centres:
        for pitch, roll, yaw in turns.tolist():
            euler = sitk.Euler3DTransform((0, 0, 0), pitch, roll, yaw)
            start = sitk.Similarity3DTransform()
            start.SetCenter(CENTRE_MM)
            start.SetMatrix((np.array(euler.GetMatrix()) * scale).tolist())
            moved = np.array(start.TransformPoint(goal.tolist()))
            start.SetTranslation((centre - moved).tolist())
            starts.append(start)
    return starts


def _method(levels: list[tuple[int, float]], sampling: float, iterations: int) -> Any:
    """Mattes mutual information with gradient descent over (shrink factor, smoothing mm) levels."""
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(_template()[1])
    if sampling < 1:
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentage(sampling, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 0.01, iterations, 0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([shrink for shrink, _ in levels])
    method.SetSmoothingSigmasPerLevel([sigma for _, sigma in levels])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    return method


def mutual_information(first: np.ndarray, second: np.ndarray, bins: int = 32) -> float:
    """Mutual information of paired samples (N,) from their joint histogram, in nats."""
    joint = np.histogram2d(first, second, bins)[0] / first.size
    apart = np.outer(joint.sum(1), joint.sum(0))
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / apart[seen])).sum())


def register(volume: np.ndarray, affine: np.ndarray) -> Registration:
    """Register a T1w scan (D, H, W), whole head or brain only, to the MNI152 template; the same answer every time."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # sums in one order
    fixed, mask, white = _template()
    scan = _coarse(as_image(volume, affine))
    points, weights, brain_only = _tissue(scan)
    scale = (len(points) * np.prod(scan.GetSpacing()) / 1.887e6) ** (1 / 3) if brain_only else 0.92
    small = sitk.Shrink(sitk.SmoothingRecursiveGaussian(fixed, 4.0), (4, 4, 4))
    blurred = sitk.SmoothingRecursiveGaussian(scan, 4.0)

    target = sitk.GetArrayViewFromImage(small)
    near = sitk.GetArrayFromImage(sitk.Resample(mask, small, sitk.Transform(), sitk.sitkNearestNeighbor)) > 0

    def cost(start: sitk.Transform) -> float:
        moved = sitk.GetArrayFromImage(sitk.Resample(blurred, small, start, sitk.sitkLinear, 0.0))
        return -mutual_information(target[near], moved[near])

    ranked = sorted(_starts(points, weights, brain_only, float(scale)), key=cost)
    tried = []
    for start in ranked[:3]:
        method = _method([(4, 4.0)], 1.0, 40)
        method.SetInitialTransform(sitk.Similarity3DTransform(start), inPlace=True)
        found = sitk.Similarity3DTransform(method.Execute(fixed, scan))
        tried.append((method.GetMetricValue(), found))
    best = min(tried, key=lambda pair: pair[0])[1]
    method = _method([(2, 2.0), (1, 1.0)], 0.2, 60)
    method.SetInitialTransform(best, inPlace=True)
    best = sitk.Similarity3DTransform(method.Execute(fixed, scan))

    moved = sitk.GetArrayFromImage(sitk.Resample(scan, fixed, best, sitk.sitkLinear, 0.0))
    template = sitk.GetArrayViewFromImage(fixed)
    inside = template > 0.05
    correlation = float(np.corrcoef(template[inside], moved[inside])[0, 1])
    level = float(np.median(moved[sitk.GetArrayViewFromImage(white) > 0]))
    if not np.isfinite(correlation) or level <= 0:
        raise BrainLDMError("does not overlap the template; check orientation and content")
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(best.GetMatrix()).reshape(3, 3) / best.GetScale()
    matrix[:3, 3] = best.GetTranslation() + np.array(CENTRE_MM) - matrix[:3, :3] @ CENTRE_MM
    return Registration(matrix, best.GetScale(), -method.GetMetricValue(), correlation, level, brain_only)
