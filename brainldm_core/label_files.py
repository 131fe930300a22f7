"""Label maps beside generated volumes, as a BIDS derivative: what the morphometry finds, not what was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import __version__
from .dataset import LABELS, save_nifti
from .errors import BrainLDMError
from .morphometry import choose, segment
from .records import write_json, write_text

if TYPE_CHECKING:
    from .sampling import Pipeline

FOLDER = "derivatives/labels"
_MAPPED = {0: ("BG", 0), 1: ("CSF", 3), 2: ("GM", 1), 3: ("WM", 2), 4: ("LV", 3)}
"""Abbreviations, and the labels of BIDS that ours are parts of."""


def label_method(pipeline: Pipeline) -> str:
    """The method of ``morphometry`` that labels what these weights draw.

    Raises:
        BrainLDMError: it would take a skull for brain, as intensities of whole heads with large voxels are no guide.
    """
    method = choose(pipeline.profile.grid.affine)
    if method == "intensity" and not pipeline.training.get("brain_only", True):
        raise BrainLDMError(
            f"--labels: whole heads with voxels of {pipeline.profile.grid.spacing_mm:g} mm cannot be segmented; "
            "leave it out, or use weights of up to 3 mm"
        )
    return method


def write_labels(folder: Path, name: str, volume: np.ndarray, affine: Any, method: str) -> Path:
    """Label a volume (D, H, W) of a BIDS folder on its own grid; ``name`` is its ``sub-X/anat/sub-X_T1w.nii.gz``."""
    path = Path(folder) / FOLDER / name.replace("_T1w.nii.gz", "_dseg.nii.gz")
    save_nifti(path, segment(volume, np.asarray(affine), method), affine)
    return path


def describe_labels(folder: Path, method: str, title: str) -> None:
    """Write what holds for all label maps of a folder: names of labels, how they were made, the data set."""
    place = Path(folder) / FOLDER
    rows = [f"{value}\t{name}\t{_MAPPED[value][0]}\t{_MAPPED[value][1]}" for value, name in LABELS.items()]
    write_text(place / "dseg.tsv", "\n".join(["index\tname\tabbreviation\tmapping", *rows]) + "\n")
    write_json(
        place / "dseg.json",
        {
            "Description": "Tissues as measured in the synthetic volume; not what was requested of the model",
            "Manual": False,
            "Method": method,
            "PartialVolume": "A voxel has the label of its largest share. Measured volumes in participants.tsv add up "
            "shares of voxels, so volumes of labels differ from them",
            "SpaceName": "MNI152",
        },
    )
    write_json(
        place / "dataset_description.json",
        {
            "Name": f"{title}: labels",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "GeneratedBy": [
                {"Name": "brainldm", "Version": __version__, "Description": f"brainldm_core.morphometry, {method}"}
            ],
            "SourceDatasets": [{"URL": "../.."}],
        },
    )
