"""Anatomies of people, from label maps: FreeSurfer labels become soft tissue maps in MNI space.

Made for the 20 training label maps of SynthSeg (manifest ``synthseg-labels``); any volumes with FreeSurfer
labels work. What lies outside the brain and its CSF is left out, unless whole heads are asked for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .anatomy import Anatomy, make_anatomy
from .errors import BrainLDMError
from .profiles import Grid

CSF = (14, 15, 24, 30, 62, 72)  # third, fourth and fifth ventricle, sulci, vessels
LATERAL = (4, 5, 31, 43, 44, 63)  # with inferior horns and choroid plexus
LEFT_VENTRICLE, RIGHT_VENTRICLE, CALLOSUM = 4, 43, 251
EXTRACEREBRAL = 500  # this label and those up to 999: skull, skin, eyes (SynthSeg)

WHITE_SHARE = {
    **dict.fromkeys((2, 41, 251, 252, 253, 254, 255), 1.0),  # cerebral white matter, corpus callosum
    **dict.fromkeys((7, 46), 0.94),  # cerebellar white matter
    **dict.fromkeys((13, 52), 0.93),  # pallidum
    **dict.fromkeys((28, 60), 0.83),  # ventral diencephalon
    **dict.fromkeys((16, 85), 0.71),  # brain stem, optic chiasm
    **dict.fromkeys((10, 49), 0.59),  # thalamus
    **dict.fromkeys((12, 51), 0.51),  # putamen
    **dict.fromkeys((11, 50), 0.26),  # caudate
    **dict.fromkeys((25, 57, 77, 78, 79, 80), 0.3),  # lesions and hypointensities of white matter
    **dict.fromkeys((26, 58), 0.16),  # accumbens
    **dict.fromkeys((8, 47), 0.14),  # cerebellar cortex
    **dict.fromkeys((18, 54), 0.07),  # amygdala
    **dict.fromkeys((17, 53), 0.06),  # hippocampus
    **dict.fromkeys((3, 42), 0.0),  # cerebral cortex
}
"""How far the T1 signal of a structure lies on the way from cortex to cerebral white matter.

From medians inside the manual labels of ten OASIS-1 scans (nine people of 18 to 83 years, relative to each scan's
white matter: cortex 0.605, thalamus 0.838, putamen 0.807, and so on; standard deviations over scans 0.015 to 0.05).
"""

BLENDED = (*range(10, 14), 16, 25, 26, 28, *range(49, 53), 57, 58, 60, *range(77, 81), 85)
"""Nuclei, brain stem and lesions: in scans they pass into white matter without an edge."""
BLENDED_MM = 2.0

OUTSIDE_SIGNAL = {502: 0.4, 506: 0.15, 508: 0.4, 509: 0.35, 511: 0.5, 514: 0.35, 515: 0.12, 516: 0.45, 530: 0.45}
"""T1 signal (white matter 0.8) of extracerebral labels. They have no names, so this was chosen by where they lie: 506
fills the eyes, 511 is the outermost layer, 515 that around the CSF, 516 lies inside it.
"""
SOFT_TISSUE, FAT_SIGNAL, MUSCLE_SIGNAL, FAT_MM = 507, 0.85, 0.42, 8.0  # fat within 8 mm of the air, deeper muscle
FLUID_SIGNAL = 0.2

CLOSING_MM = 8.0  # sulci and fissures are narrower than twice this
SULCI_MM = 1.0  # blur of the share of CSF
MARGIN = 12  # voxels around a head, so that closing has room

FIELD = Grid(shape=(192, 232, 200), spacing_mm=1.0)  # holds every head, in MNI space


def find_label_maps(folder: Path) -> dict[str, Path]:
    """Label maps of a folder, by name.

    Raises:
        BrainLDMError: there is no such folder, or no NIfTI or MGH volume in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BrainLDMError(f"{folder}: no such folder of label maps; give the one that holds the volumes")
    endings = (".nii.gz", ".nii", ".mgz", ".mgh")
    found = {}
    for path in sorted(folder.iterdir()):
        ending = next((end for end in endings if path.name.endswith(end)), None)
        if ending is not None:
            found[path.name.removesuffix(ending)] = path
    if not found:
        raise BrainLDMError(f"{folder}: holds no label maps ({', '.join(endings)})")
    return found


def read_label_map(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels (D, H, W), int32, nearest to RAS, and their affine in mm.

    Raises:
        BrainLDMError: the file is no volume of whole numbers.
    """
    import nibabel as nib

    try:
        image = nib.as_closest_canonical(nib.load(path))
        values = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:
        raise BrainLDMError(f"{path}: is no label map ({error}); replace the file") from None
    labels = values.astype(np.int32) if values.ndim == 3 and np.isfinite(values).all() else None
    if labels is None or labels.min() < 0 or (labels != values).any():
        raise BrainLDMError(f"{path}: is not one volume of whole numbers; give a label map, not a scan")
    return labels, image.affine


def only_known(labels: np.ndarray) -> np.ndarray:
    """Labels with those of cortical parcels made cortex, and unknown ones that of the nearest known voxel.

    Extracerebral ones (500 to 999) stay.
    """
    from scipy import ndimage

    labels = np.where((labels >= 1000) & (labels < 3000), 3, labels)
    labels = np.where((labels >= 3000) & (labels < 5000), 2, labels)
    outside = (labels >= EXTRACEREBRAL) & (labels < 1000)
    known = outside | np.isin(labels, [0, *CSF, *LATERAL, *WHITE_SHARE])
    if known.all():
        return labels
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return labels[tuple(nearest)]


def outside_signal(labels: np.ndarray, voxel_mm: float) -> np.ndarray:
    """T1 signal (D, H, W) of what is neither brain nor CSF near it: skin, fat, muscle, bone, eyes, outer fluid.

    ``labels`` hold the extracerebral ones and, of the CSF, that far from the brain alone.
    """
    from scipy import ndimage

    signal = np.zeros(labels.shape, np.float32)
    for label in np.unique(labels[(labels >= EXTRACEREBRAL) & (labels < 1000)]):
        signal[labels == label] = OUTSIDE_SIGNAL.get(int(label), MUSCLE_SIGNAL)
    signal[np.isin(labels, CSF)] = FLUID_SIGNAL
    head = ndimage.binary_fill_holes(labels > 0)
    lowest = int(np.flatnonzero(head.any((0, 1)))[0])
    head[:, :, :lowest] = head[:, :, lowest : lowest + 1]  # where the map ends there is a neck, no skin
    depth = ndimage.distance_transform_edt(np.pad(head, 1))[1:-1, 1:-1, 1:-1]
    soft = labels == SOFT_TISSUE
    signal[soft] = np.where(depth[soft] * voxel_mm < FAT_MM, FAT_SIGNAL, MUSCLE_SIGNAL)
    return signal


def near_brain(labels: np.ndarray, voxel_mm: float) -> np.ndarray:
    """Labels of the closed brain alone, 0 elsewhere: SynthSeg's CSF reaches far beyond the sulci."""
    from scipy import ndimage

    brain = np.isin(labels, [*LATERAL, *WHITE_SHARE])
    outer = ndimage.distance_transform_edt(np.pad(~brain, 1, constant_values=True)) * voxel_mm
    closed = ndimage.distance_transform_edt(outer <= CLOSING_MM) * voxel_mm > CLOSING_MM
    return np.where(closed[1:-1, 1:-1, 1:-1] & (labels < EXTRACEREBRAL), labels, 0)


def with_septum(labels: np.ndarray) -> np.ndarray:
    """Labels with a sheet of one voxel of white matter where the lateral ventricles touch: FreeSurfer has none."""
    from scipy import ndimage

    beside = ndimage.binary_dilation(labels == RIGHT_VENTRICLE)
    return np.where((labels == LEFT_VENTRICLE) & beside, CALLOSUM, labels)


def tissue_maps(labels: np.ndarray, voxel_mm: float) -> np.ndarray:
    """CSF, grey, white and lateral ventricles (4, D, H, W) in [0, 1]: a structure's share of white is its T1 signal.

    Nuclei and lesions are blended with the white matter around them.
    """
    from scipy import ndimage

    table = np.zeros((4, int(labels.max()) + 1), np.float32)
    table[0, [label for label in CSF if label <= labels.max()]] = 1
    table[3, [label for label in LATERAL if label <= labels.max()]] = 1
    for label, share in WHITE_SHARE.items():
        if label <= labels.max():
            table[1:3, label] = 1 - share, share
    maps = table[:, labels]
    deep = np.isin(labels, BLENDED)
    beneath = (deep | np.isin(labels, (2, 41))).astype(np.float32)  # cortex keeps its edge
    sigma = BLENDED_MM / voxel_mm
    around = ndimage.gaussian_filter(beneath * maps[2], sigma) / np.maximum(
        ndimage.gaussian_filter(beneath, sigma), 1e-3
    )
    near = (beneath > 0) & (ndimage.distance_transform_edt(~deep) * voxel_mm <= 2 * BLENDED_MM)
    maps[1:3, near] = 1 - around[near], around[near]
    return maps


def soften_sulci(maps: np.ndarray, sigma: float) -> np.ndarray:
    """Maps (4, D, H, W) whose share of CSF is blurred by ``sigma`` voxels; grey and white keep their sharp ratio.

    The odds of CSF then say how far a voxel is from a sulcus, which is what widening and narrowing sulci needs.
    """
    from scipy import ndimage

    csf, grey, white, lateral = maps
    tissue, total = grey + white, csf + grey + white
    blurred = [ndimage.gaussian_filter(channel, sigma, truncate=3) for channel in (csf, white, total)]
    share = np.clip(blurred[0] / np.maximum(blurred[2], 1e-3), 0, 1)
    # Deep in a sulcus there is no ratio to keep: take that of the banks.
    banks = blurred[1] / np.maximum(blurred[2] - blurred[0], 1e-3)
    ratio = np.where(tissue > 0.5 * total, white / np.maximum(tissue, 1e-3), np.clip(banks, 0, 1))
    kept = (1 - share) * total
    return np.stack([share * total, kept * (1 - ratio), kept * ratio, lateral])


def label_anatomy(path: Path, spacing_mm: float, whole_head: bool = False) -> Anatomy:
    """The person of a label map as an anatomy on a grid of ``spacing_mm``, turned and moved to MNI space.

    A T1w volume rendered from the labels is registered to the template (rigid: heads keep their size).

    Args:
        whole_head: what lies outside the brain is kept, as texture; else there is nothing.

    Raises:
        BrainLDMError: the file is no label map of a brain.
    """
    from .registration import register
    from .resampling import resample

    labels, affine = read_label_map(path)
    labels = with_septum(only_known(labels))
    if not whole_head:
        labels[labels >= EXTRACEREBRAL] = 0
    if not (np.isin(LATERAL, labels).any() and np.isin((3, 42), labels).any()):
        raise BrainLDMError(f"{path}: has no lateral ventricles or no cortex; FreeSurfer's labels are needed")
    inside = np.argwhere(labels > 0)
    first, last = np.maximum(inside.min(0) - MARGIN, 0), inside.max(0) + MARGIN + 1
    labels = labels[tuple(map(slice, first, last))]
    affine = affine @ np.block([[np.eye(3), first[:, None]], [np.zeros(3), 1]])
    voxel_mm = float(np.linalg.norm(affine[:3, 0]))
    inner = near_brain(labels, voxel_mm)
    maps = tissue_maps(inner, voxel_mm)
    place = register(np.tensordot((FLUID_SIGNAL, 0.6, 0.8, FLUID_SIGNAL), maps, 1), affine).matrix
    moved = np.stack([resample(channel, affine, place, FIELD).clip(0, 1) for channel in maps])
    moved /= np.maximum(moved.sum(0), 1)  # the spline rings at edges
    moved = soften_sulci(moved, SULCI_MM / FIELD.spacing_mm)
    texture = np.zeros_like(moved[:1])  # structures differ in their share of white
    if whole_head:
        signal = outside_signal(np.where(inner > 0, 1, labels), voxel_mm) * (inner == 0)
        texture[0] = resample(signal, affine, place, FIELD).clip(0, 1)
    return make_anatomy(path.name.split(".")[0], np.concatenate([moved, texture]), np.array(FIELD.affine), spacing_mm)
