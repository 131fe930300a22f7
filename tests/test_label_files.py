"""Label maps beside volumes: on the same grid, as the morphometry says, described for BIDS."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from brainldm_core import label_files, samples, sampling
from brainldm_core.dataset import LABELS, read_nifti
from brainldm_core.errors import BrainLDMError
from brainldm_core.morphometry import segment

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two volumes of the weights that ship, drawn in a few steps, with labels."""
    pipeline = sampling.load_pipeline()
    small = pipeline.profile.sampling.model_copy(update={"batch_size": 2})
    pipeline = replace(pipeline, profile=pipeline.profile.model_copy(update={"sampling": small}))
    table = pd.DataFrame({"ventricular_volume_ml": [15.0, 60.0], "brain_volume_ml": 1150.0, "age_years": 65.0})
    how = {"sampler": "ddim", "steps": 6, "seed": 0, "guidance": 1.0}
    volumes = sampling.sample(pipeline, table, [1, 2], **how)
    out = tmp_path_factory.mktemp("labels") / "brains"
    return samples.write_samples(pipeline, table, volumes, [1, 2], out, **how, labels=True)


def test_labels_lie_on_their_volume_and_are_the_measurement(folder):
    table = pd.read_csv(folder / "participants.tsv", sep="\t")
    for place, name in enumerate(table["participant_id"]):
        image = nib.load(folder / name / "anat" / f"{name}_T1w.nii.gz")
        labels = nib.load(folder / "derivatives" / "labels" / name / "anat" / f"{name}_dseg.nii.gz")
        assert labels.shape == image.shape and (labels.affine == image.affine).all()
        assert labels.get_data_dtype() == np.uint8 and labels.header["sform_code"] == image.header["sform_code"]
        found = np.asarray(labels.dataobj)
        assert (found == segment(*read_nifti(folder / name / "anat" / f"{name}_T1w.nii.gz"))).all()
        assert set(np.unique(found)) <= set(LABELS)
        voxel_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
        counted = {
            "measured_lateral_ventricles_ml": (found == 4).sum() * voxel_ml,
            "measured_brain_ml": np.isin(found, (2, 3)).sum() * voxel_ml,
            "measured_intracranial_ml": (found > 0).sum() * voxel_ml,
        }
        for column, volume in counted.items():  # shares of voxels against whole voxels
            assert volume == pytest.approx(table[column][place], rel=0.35 if "ventricles" in column else 0.12), column
    ventricles = table["measured_lateral_ventricles_ml"]
    assert ventricles[1] > 1.5 * ventricles[0]


def test_labels_are_a_bids_derivative_that_says_what_they_are(folder):
    place = folder / "derivatives" / "labels"
    names = pd.read_csv(place / "dseg.tsv", sep="\t")
    assert dict(zip(names["index"], names["name"], strict=True)) == LABELS
    said = json.loads((place / "dseg.json").read_text())
    assert said["Manual"] is False and said["Method"] == "intensity" and "not what was requested" in said["Description"]
    description = json.loads((place / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["SourceDatasets"] == [{"URL": "../.."}]
    assert not list(folder.glob("sub-*/anat/*dseg*")), "raw BIDS has no place for label maps"
    assert (folder / ".bidsignore").read_text() == "montage.png\n"


def test_heads_that_cannot_be_segmented_are_refused():
    pipeline = sampling.load_pipeline()
    heads = replace(pipeline, training={"brain_only": False})
    assert label_files.label_method(pipeline) == "intensity"
    with pytest.raises(BrainLDMError, match="--labels: whole heads with voxels of 5 mm cannot be segmented"):
        label_files.label_method(heads)
