"""Volumes and labels by SynthSeg (Billot et al. 2023), where FreeSurfer has put ``mri_synthseg`` on the PATH."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .errors import BrainLDMError
from .label_maps import CSF, LATERAL, WHITE_SHARE
from .morphometry import volumes_of
from .rendering import WHITE_FROM

COMMAND = "mri_synthseg"
TOTAL = "total intracranial"
FLUID = ("ventricle", "csf")  # in the names of what is no parenchyma


def available() -> bool:
    """Whether the command is on the PATH."""
    return shutil.which(COMMAND) is not None


@contextmanager
def _segmented(volume: np.ndarray, affine: Any) -> Iterator[tuple[Path, Path]]:
    """Files of labels and of volumes that the command makes of a scan (D, H, W), in a folder that goes away.

    Raises:
        BrainLDMError: the command is missing, fails, or writes nothing.
    """
    import nibabel as nib

    program = shutil.which(COMMAND)
    if program is None:
        raise BrainLDMError(f"{COMMAND}: not on the PATH; install FreeSurfer 7.4 or choose another method")
    with TemporaryDirectory() as folder:
        scan, labels, table = (Path(folder, name) for name in ("scan.nii.gz", "labels.nii.gz", "volumes.csv"))
        nib.save(nib.Nifti1Image(np.asarray(volume, np.float32), np.asarray(affine, float)), scan)
        options = ["--i", str(scan), "--o", str(labels), "--vol", str(table), "--threads", "1", "--cpu"]
        done = subprocess.run([program, *options], capture_output=True, text=True, check=False)
        if done.returncode or not (labels.is_file() and table.is_file()):
            said = (done.stderr or done.stdout).strip().splitlines()
            reason = said[-1][:200] if said else "it says nothing"
            raise BrainLDMError(f"{COMMAND}: failed with code {done.returncode} ({reason}); try it on the scan by hand")
        yield labels, table


def read_volumes(table: Path) -> dict[str, float]:
    """Volumes in ml by the name of the structure, in small letters, from the table that ``--vol`` writes.

    Raises:
        BrainLDMError: the table has no names of structures or no numbers.
    """
    with open(table, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row]
    names = next((row for row in rows if any("lateral ventricle" in cell.lower() for cell in row)), None)
    try:
        if names is None:
            raise ValueError("no lateral ventricles")
        pairs = zip(names[1:], rows[-1][1:], strict=True)
        return {name.strip().lower(): float(value) / 1000 for name, value in pairs}
    except ValueError as error:
        raise BrainLDMError(f"{table.name}: is no table of {COMMAND} ({error}); install FreeSurfer 7.4") from None


def measure(volume: np.ndarray, affine: Any) -> dict[str, float]:
    """Lateral ventricles with their inferior horns, brain, intracranial volume (ml) and brain normalised of a scan."""
    with _segmented(volume, affine) as (_, table):
        found = read_volumes(table)
    lateral = sum(amount for name, amount in found.items() if "lateral ventricle" in name)
    parenchyma = {name for name in found if name != TOTAL and not any(word in name for word in FLUID)}
    brain = sum(found[name] for name in parenchyma)
    size = found.get(TOTAL) or sum(found.values())
    return volumes_of(lateral, brain, size)


def segment(volume: np.ndarray, affine: Any) -> np.ndarray:
    """Labels (D, H, W) uint8 as in simulated cohorts, on the grid of the scan."""
    import SimpleITK as sitk

    from .label_maps import read_label_map
    from .resampling import as_image

    with _segmented(volume, affine) as (path, _):
        labels, placed = read_label_map(path)
    table = np.zeros(max(256, int(labels.max()) + 1), np.float32)
    table[list(CSF)], table[list(LATERAL)] = 1, 4
    for label, share in WHITE_SHARE.items():
        table[label] = 3 if share >= WHITE_FROM else 2
    scan = as_image(np.zeros(np.shape(volume), np.float32), np.asarray(affine, float))
    known = as_image(table[labels], placed)
    moved = sitk.Resample(known, scan, sitk.Transform(), sitk.sitkNearestNeighbor, 0.0)
    return sitk.GetArrayFromImage(moved).T.round().astype(np.uint8)
