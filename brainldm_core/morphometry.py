"""Morphometry: ventricles, brain and head size of a T1w volume. No label of the cohort is used.

Three methods: ``network`` (module ``segmentation``), for brains and whole heads of up to 3 mm in any order of axes, the
choice of ``auto`` for these; ``intensity``, its choice for larger voxels; and ``synthseg``, FreeSurfer's, where it is
installed. The rest of this module is ``intensity``: what is looked for where comes from the MNI152 template, laid over
the head by its centre and extent along each axis; every amount comes from the volume's own intensities, partial volume
included, relative to white matter. It is made for brains alone of 1 to 5 mm near MNI orientation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .anatomy import lateral_ventricles
from .covariates import REFERENCE_ICV_ML
from .errors import BrainLDMError

METHODS = ("auto", "intensity", "network", "synthseg")
NETWORK_MM = 3.0  # voxels up to this size are the network's under auto
WHITE_PERCENTILE = 90  # of all head voxels: within 1 % of the median of white matter in ten manually labelled scans
RIM_LEVEL = 0.65  # a voxel at the rim counts whole from this part of the mean intensity of the layer beneath it
NEAR_MM, FAR_MM, SEED_MM = 18.0, 35.0, 6.0  # from the template's lateral ventricles
NEAR_RATIO, FAR_RATIO = 1.5, 5.0  # how much further than the template's other CSF a ventricle may lie
# Half way between CSF and cortex, for a measured level of mostly grey tissue: near that of ten MP-RAGE scans with
# manual labels (first column) and of the template (the rest, of tempered slope as the measured level is noisy).
GREY_LIKE, HALF_WAY = (0.66, 0.76, 0.86), (0.42, 0.588, 0.618)
EDGE = 0.2  # a voxel is all brain this part above half way, and none this part below


def volumes_of(lateral_ml: float, brain_ml: float, intracranial_ml: float) -> dict[str, float]:
    """What every method measures, in ml, and the brain normalised for head size."""
    return {
        "lateral_ventricles_ml": lateral_ml,
        "brain_ml": brain_ml,
        "intracranial_ml": intracranial_ml,
        "brain_volume_ml": brain_ml * REFERENCE_ICV_ML / intracranial_ml if intracranial_ml else 0.0,
    }


EMPTY = volumes_of(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Template:
    """What the template says where: ``maps`` (4, D, H, W) and how the head lies in it.

    Maps: distances (mm) to the lateral ventricles and to other CSF; shares of grey matter and CSF, blurred.
    """

    maps: np.ndarray
    origin_mm: np.ndarray
    spacing_mm: float
    centre_mm: np.ndarray
    extent_mm: np.ndarray


@lru_cache(maxsize=1)
def template(step: int = 2) -> Template:
    """The MNI152 2009a template of nilearn (no download), every ``step`` mm."""
    from nilearn import datasets
    from scipy import ndimage

    image = datasets.load_mni152_template(resolution=1)
    t1, affine = image.get_fdata(dtype=np.float32), image.affine
    thin = (slice(None, None, step),) * 3
    lateral = lateral_ventricles(t1, affine)[thin]
    t1 = t1[thin]
    grey = datasets.load_mni152_gm_template(resolution=1).get_fdata(dtype=np.float32)[thin]
    white = datasets.load_mni152_wm_template(resolution=1).get_fdata(dtype=np.float32)[thin]
    head = t1 > 0
    csf = np.clip(1 - grey - white, 0, 1) * head
    other = head & (t1 < 0.5) & ~ndimage.binary_dilation(lateral, iterations=2)
    other |= head & ~ndimage.binary_erosion(head)
    to_lateral, to_other = (step * ndimage.distance_transform_edt(~mask) for mask in (lateral, other))
    blurred = [ndimage.gaussian_filter(share, 3 / step) for share in (grey, csf)]
    where = np.argwhere(head) * step
    maps = np.stack([to_lateral, to_other, *blurred]).astype(np.float32)
    return Template(maps, affine[:3, 3], float(step), where.mean(0) + affine[:3, 3], where.std(0))


def choose(affine: Any, method: str = "auto") -> str:
    """The method for voxels of this affine: ``auto`` is the network up to ``NETWORK_MM``, else intensities.

    Raises:
        BrainLDMError: there is no such method.
    """
    if method not in METHODS:
        raise BrainLDMError(f"method {method!r}: is unknown; choose one of {', '.join(METHODS)}")
    if method != "auto":
        return method
    spacing = np.linalg.norm(np.asarray(affine, dtype=float)[:3, :3], axis=0)
    return "network" if spacing.max() <= NETWORK_MM + 0.01 else "intensity"


def measure(volume: np.ndarray, affine: Any, method: str = "auto") -> dict[str, float]:
    """Lateral ventricles, brain and intracranial volume (ml) of a volume (D, H, W), and brain normalised for head size.

    Lateral ventricles have their inferior horns and plexus; intracranial is the brain with the CSF in and around it. A
    volume without a head, as an untrained network gives, measures 0.
    """
    method = choose(affine, method)
    if method == "intensity":
        return _measure_intensity(volume, affine)
    if method == "synthseg":
        from . import synthseg

        return synthseg.measure(volume, affine)
    from . import segmentation

    return segmentation.measure(volume, affine) or dict(EMPTY)


def segment(volume: np.ndarray, affine: Any, method: str = "auto") -> np.ndarray:
    """Labels (D, H, W) uint8 as in simulated cohorts: 0 background, 1 CSF, 2 grey, 3 white, 4 lateral ventricles."""
    method = choose(affine, method)
    if method == "intensity":
        return _segment_intensity(volume, affine)
    if method == "synthseg":
        from . import synthseg

        return synthseg.segment(volume, affine)
    from . import segmentation

    return segmentation.segment(volume, affine)


def _measure_intensity(volume: np.ndarray, affine: Any) -> dict[str, float]:
    """What ``measure`` says, of a brain alone in [0, 1], from its intensities."""
    found = _analyse(volume, affine)
    if found is None:
        return dict(EMPTY)
    voxel_ml, head, csf_share, ventricles, brain, _ = found
    size, parenchyma = (float(part.sum()) * voxel_ml for part in (head, brain))
    return volumes_of(float((csf_share * ventricles).sum()) * voxel_ml, parenchyma, size)


def _segment_intensity(volume: np.ndarray, affine: Any) -> np.ndarray:
    """What ``segment`` says, of a brain alone in [0, 1], from its intensities."""
    found = _analyse(volume, affine)
    labels = np.zeros(np.shape(volume), np.uint8)
    if found is not None:
        _, head, csf_share, ventricles, brain, white = found
        labels[head > 0.5] = 1
        labels[(brain > 0.5) & (head > 0.5)] = 2
        labels[(labels == 2) & white] = 3
        labels[ventricles & (csf_share > 0.5)] = 4
    return labels


def _analyse(volume: np.ndarray, affine: Any) -> tuple[float, ...] | None:
    """Voxel volume (ml), head share, CSF share, where lateral ventricles are, brain share, and what is white."""
    from scipy import ndimage

    volume, affine = np.asarray(volume, dtype=np.float32), np.asarray(affine, dtype=float)
    spacing = np.abs(np.diag(affine)[:3])
    bright = volume[volume > 0.05]
    if bright.size < 100:
        return None
    level = volume / np.percentile(bright, WHITE_PERCENTILE)
    solid = _solid(level > 0.13)
    layer_voxels = max(1, round(4 / float(spacing.mean())))
    inner = ndimage.binary_erosion(solid)
    first = ndimage.binary_erosion(solid, iterations=layer_voxels)
    second = ndimage.binary_erosion(first, iterations=layer_voxels)
    if not second.any():
        return None
    to_lateral, to_other, grey_prior, csf_prior = _lay_template(solid, affine)

    # Grey level where the template is grey and sulci are few: atrophy hardly moves it.
    pure = solid & (grey_prior > 0.7) & (csf_prior < 0.08)
    grey_like = float(np.median(level[pure])) if pure.any() else 0.8

    # Head: voxels at the rim count by their intensity, against that of the layer beneath.
    rim = RIM_LEVEL * float(level[first & ~second].mean())
    outer = ndimage.binary_dilation(solid)
    head = np.where(inner, 1.0, np.clip(level / rim, 0, 1) * outer)

    # Brain: a soft threshold half way between CSF and cortex. A linear scale would take dark cortex for atrophy.
    half_way = float(np.interp(grey_like, GREY_LIKE, HALF_WAY))
    brain = np.clip((level / half_way - 1 + EDGE) / (2 * EDGE), 0, 1) * outer

    # Ventricles: CSF share against the tissue around each voxel, in the region that grows from the template's.
    grey = 0.95 * grey_like
    csf = float(np.clip(0.13 + (grey - 0.57), 0.1, 0.3))  # where grey and white differ less, CSF is brighter
    beside = (level > 0.95 * grey) & inner
    width = 3 if spacing.mean() > 3 else 5
    weight = ndimage.uniform_filter(beside.astype(np.float32), width)
    around = ndimage.uniform_filter(np.where(beside, level, 0), width) / np.maximum(weight, 1e-3)
    around = np.where(weight > 1e-3, around, grey)
    share = np.clip((around - level) / np.maximum(around - csf, 0.1), 0, 1)
    csf_share = np.where((level < 0.97 * grey) & solid, share, 0)
    ventricles = solid & (to_lateral < NEAR_MM) & (to_lateral < NEAR_RATIO * to_other)
    dark, close = csf_share > 0.5, to_lateral < FAR_RATIO * to_other
    deep = ndimage.binary_erosion(solid, iterations=max(1, round(5 / float(spacing.mean()))))
    seeds = dark & ventricles & (to_lateral < SEED_MM)
    if seeds.any():
        grown = ndimage.binary_propagation(seeds, mask=(dark & deep & close & (to_lateral < FAR_MM)) | seeds)
        ventricles |= ndimage.binary_dilation(grown) & close
    white = level > 0.5 * (grey_like + 1)
    return float(spacing.prod() / 1000), head, csf_share, ventricles, brain, white


def _solid(mask: np.ndarray) -> np.ndarray:
    """The largest component of a mask after closing, its holes filled."""
    from scipy import ndimage

    closed = ndimage.binary_closing(np.pad(mask, 2))[2:-2, 2:-2, 2:-2]
    components, count = ndimage.label(closed)
    if count > 1:
        closed = components == 1 + np.bincount(components.ravel())[1:].argmax()
    return ndimage.binary_fill_holes(closed)


def _lay_template(solid: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The template's maps on the grid of a head, matched by centre and extent along each axis."""
    from scipy import ndimage

    known = template()
    scale, start = np.diag(affine)[:3], affine[:3, 3]
    where = np.argwhere(solid) * scale + start
    centre, extent = where.mean(0), np.maximum(where.std(0), 1.0)
    axes = [
        ((np.arange(side) * scale[a] + start[a] - centre[a]) / extent[a] * known.extent_mm[a] + known.centre_mm[a])
        for a, side in enumerate(solid.shape)
    ]
    places = [(axis - known.origin_mm[a]) / known.spacing_mm for a, axis in enumerate(axes)]
    inside = ndimage.binary_dilation(solid)
    points = np.stack([places[a][index] for a, index in enumerate(np.nonzero(inside))])
    laid = np.zeros((len(known.maps), *solid.shape), np.float32)
    for field, target in zip(known.maps, laid, strict=True):
        target[inside] = ndimage.map_coordinates(field, points, order=1, mode="nearest")
    return laid
