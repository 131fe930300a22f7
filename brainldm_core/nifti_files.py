"""NIfTI files that anybody made: which of a folder are images, whose they are, and how their voxels lie."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from .errors import BrainLDMError

SUFFIXES = (".nii", ".nii.gz")
NO_IMAGES = ("_dseg", "_mask", "_probseg", "_label", "_seg", "_xfm")  # what BIDS keeps beside images


def subject_of(path: Path) -> str | None:
    """``sub-X`` of a BIDS file, from its name or the nearest folder that has one."""
    for part in reversed(path.parts):
        if found := re.match(r"(sub-[A-Za-z0-9]+)(?=[_./]|$)", part):
            return found.group(1)
    return None


def to_ras(volume: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Axes (D, H, W) in the order and direction nearest to right, front and up; the affine goes with them."""
    from nibabel import orientations

    turn = orientations.io_orientation(affine)
    turned = orientations.apply_orientation(volume, turn)
    return turned, affine @ orientations.inv_ornt_aff(turn, volume.shape)


def find_volumes(folder: Path) -> list[Path]:
    """NIfTI files in a folder and below it, in order of their paths; only T1w images where there are any.

    Hidden files, masks and label maps are left out.

    Raises:
        BrainLDMError: no such folder, or nothing in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BrainLDMError(f"{folder}: no such folder; give one with NIfTI volumes")
    files = sorted(path for path in folder.rglob("*.nii*") if path.is_file() and path.name.endswith(SUFFIXES))
    files = [
        path
        for path in files
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not path.name.split(".nii")[0].endswith(NO_IMAGES)
    ]
    t1w = [path for path in files if path.name.split(".nii")[0].endswith("T1w")]
    if not files:
        raise BrainLDMError(f"{folder}: holds no NIfTI volumes (.nii or .nii.gz); give the folder that does")
    return t1w or files


def find_participants(folder: Path, volume: Path) -> Path | None:
    """``participants.tsv`` of a folder, or of the data set inside it that holds a volume; None if there is none."""
    folder = Path(folder)
    inside = [parent for parent in volume.parents if parent.is_relative_to(folder)]
    return next((path for parent in inside[::-1] if (path := parent / "participants.tsv").exists()), None)


def read_grid(path: Path) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape (D, H, W) and affine of a file, turned to RAS+, from its header alone.

    Raises:
        BrainLDMError: the file is no 3-D NIfTI with a usable affine.
    """
    import nibabel as nib

    try:
        image = nib.load(path)
        shape, affine = tuple(int(side) for side in image.shape), np.asarray(image.affine, float)
    except Exception as error:  # nibabel, zlib and the system each have their own ways to report a damaged file
        reason = str(error).split("\n")[0][:120] or type(error).__name__
        raise BrainLDMError(f"{path}: cannot be read as NIfTI ({reason}); replace or remove this file") from None
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise BrainLDMError(f"{path}: has shape {image.shape}, not one 3-D volume; split it or remove this file")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise BrainLDMError(f"{path}: its header places the voxels nowhere (singular affine); mend the header")
    from nibabel import orientations

    turn = orientations.io_orientation(affine)
    turned = tuple(int(shape[int(np.flatnonzero(turn[:, 0] == axis)[0])]) for axis in range(3))
    return turned, affine @ orientations.inv_ornt_aff(turn, shape)
