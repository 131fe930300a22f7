"""The segmenter that ships: small, licensed, blind to the order of axes, and right on labelled scans."""

from __future__ import annotations

from importlib.resources import files

import nibabel as nib
import numpy as np
import pytest
import torch

import brainldm_core
from brainldm_core import morphometry, segmentation
from brainldm_core.errors import BrainLDMError
from brainldm_core.networks import build_segmenter, load_checkpoint, save_checkpoint

WEIGHTS = files(brainldm_core) / segmentation.SHIPPED
FREE = (
    "test_weights_that_do_not_fit_are_refused",
    "test_the_working_grid_keeps_amounts_and_places",
    "test_auto_goes_by_the_size_of_voxels",
    "test_without_weights_it_says_how_to_get_some",
)


@pytest.fixture(scope="module")
def template():
    """The MNI152 template, a brain alone of 2 mm, and its affine."""
    from nilearn import datasets

    image = datasets.load_mni152_template(resolution=2)
    return image.get_fdata(dtype=np.float32), image.affine


@pytest.fixture(scope="module")
def measured(template):
    return segmentation.measure(*template) if WEIGHTS.is_file() else None


@pytest.fixture(autouse=True)
def weights(request):
    """Tests of the network need its weights; those of the code around it do not."""
    if not WEIGHTS.is_file() and request.node.originalname not in FREE:
        pytest.skip("no segmenter ships yet; train one with benchmarks/segmentation.py")


def test_weights_are_small_and_say_where_they_come_from():
    assert WEIGHTS.stat().st_size < 2_000_000
    tensors, config = load_checkpoint(WEIGHTS, "segmenter")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert config["licence"].startswith("Apache-2.0") and "SynthSeg" in config["licence"]
    assert config["tissues"] == list(segmentation.TISSUES) and config["voxel_mm"] == 2
    assert len(config["training"]["people"]) == 14  # none of those that validate or test simulated cohorts
    assert config["record"]["results"]["steps"] == config["training"]["steps"]


def test_weights_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "segmenter.safetensors"
    network = build_segmenter((4, 4, 8))
    save_checkpoint(path, network.state_dict(), {"kind": "segmenter", "channels": [4, 8, 8]})
    with pytest.raises(BrainLDMError, match=r"segmenter\.safetensors: weights do not fit"):
        segmentation.load_segmenter(path)
    segmentation.load_segmenter.cache_clear()


def test_the_working_grid_keeps_amounts_and_places():
    rng = np.random.default_rng(0)
    volume = np.pad(rng.random((10, 12, 14)), 4).astype(np.float32)
    affine = np.array([[0, 0, -1, 30.0], [1.2, 0, 0, -20], [0, 1, 0, 5], [0, 0, 0, 1]])
    grid, placed = segmentation.working_grid(volume, affine)
    assert np.allclose(np.diag(placed)[:3], 2) and np.allclose(placed[:3, :3], np.diag(np.diag(placed)[:3]))
    assert grid.sum() * 8 == pytest.approx(volume.sum() * 1.2, rel=0.02)

    def centre(values, where):
        index = np.argwhere(values >= 0)
        return where[:3, :3] @ np.average(index, axis=0, weights=values.ravel()) + where[:3, 3]

    assert centre(grid, placed) == pytest.approx(centre(volume, affine), abs=0.1)
    same, _ = segmentation.working_grid(volume, np.diag([2.0, 2, 2, 1]))
    assert np.allclose(same, volume, atol=1e-6)


def test_the_template_has_a_head_of_its_size(template, measured):
    volume, affine = template
    assert measured["intracranial_ml"] == pytest.approx((volume > 0.1).sum() * 0.008, rel=0.08)
    assert 12 < measured["lateral_ventricles_ml"] < 30  # 21 in an atlas of it
    assert 0.75 < measured["brain_ml"] / measured["intracranial_ml"] < 0.98


def test_the_order_of_axes_in_the_file_does_not_matter(template, measured):
    image = nib.Nifti1Image(*template)
    codes = nib.orientations.axcodes2ornt(("P", "S", "R"))
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), codes))
    values = np.asarray(turned.dataobj)
    assert nib.aff2axcodes(turned.affine) == ("P", "S", "R")
    assert segmentation.measure(values, turned.affine) == pytest.approx(measured, rel=1e-4)
    labels = segmentation.segment(values, turned.affine)
    assert labels.shape == values.shape and labels.dtype == np.uint8 and set(np.unique(labels)) == {0, 1, 2, 3, 4}
    back = nib.as_closest_canonical(nib.Nifti1Image(labels, turned.affine))
    middle = np.linalg.inv(back.affine) @ (-12, -30, 22, 1)  # in the body of the left lateral ventricle
    near = np.asarray(back.dataobj)[tuple(slice(int(k) - 3, int(k) + 4) for k in middle[:3])]
    assert (near == 4).any()


def test_scale_and_voxels_hardly_matter(template, measured):
    volume, affine = template
    assert segmentation.measure(300 * volume, affine) == pytest.approx(measured, rel=1e-3)
    fine = np.repeat(np.repeat(np.repeat(volume, 2, 0), 2, 1), 2, 2)
    moved = affine.copy()
    moved[:3, :3] /= 2
    moved[:3, 3] -= 0.5
    assert segmentation.measure(fine, moved) == pytest.approx(measured, rel=0.02)


def test_nothing_is_found_where_there_is_no_head():
    empty = np.zeros((20, 24, 20), np.float32)
    affine = np.diag([2.0, 2, 2, 1])
    assert segmentation.measure(empty, affine) is None
    assert morphometry.measure(empty, affine, "network") == morphometry.EMPTY
    assert not morphometry.segment(empty, affine, "network").any()
    noise = morphometry.measure(np.random.default_rng(0).random((20, 24, 20)), affine, "network")
    assert np.isfinite(list(noise.values())).all()


def test_auto_goes_by_the_size_of_voxels(monkeypatch):
    assert morphometry.choose(np.diag([5.0, 5, 5, 1])) == "intensity"
    assert morphometry.choose(np.eye(4), "network") == "network"
    monkeypatch.setattr(morphometry, "NETWORK_MM", 3.0)
    assert morphometry.choose(np.diag([1.0, 1, 3, 1])) == "network"
    assert morphometry.choose(np.diag([1.0, 1, 3.2, 1])) == "intensity"
    with pytest.raises(BrainLDMError, match="'freesurfer'"):
        morphometry.choose(np.eye(4), "freesurfer")


def test_without_weights_it_says_how_to_get_some(tmp_path):
    with pytest.raises(BrainLDMError, match="no such checkpoint"):
        segmentation.load_segmenter(tmp_path / "none.safetensors")


def read(path):
    image = nib.load(path)
    return image.get_fdata(dtype=np.float32), image.affine


def dice(first, second):
    return 2 * (first & second).sum() / (first.sum() + second.sum())


def test_follows_manual_labels_of_brains(shared_data):
    import pandas as pd

    from brainldm_core.dataset import scan_name

    folder = shared_data / "oasis"
    table = pd.read_csv(folder / "participants.tsv", sep="\t")
    found, overlaps = [], []
    for person, session, truth in table[["participant_id", "session_id", "lateral_ventricles_ml"]].itertuples(False):
        place, name = f"{person}/{session}/anat", scan_name(person, session)
        volume, affine = read(folder / place / f"{name}_T1w.nii.gz")
        shares, placed = segmentation.tissue_shares(volume, affine)
        found.append(segmentation.volumes_ml(shares))
        if truth > 10:
            labels, _ = read(folder / "derivatives/manual" / place / f"{name}_desc-neuromorphometrics_dseg.nii.gz")
            lateral = segmentation.labels_on(volume.shape, affine, shares, placed) == 4
            overlaps.append(dice(lateral, np.isin(labels, (51, 52))))
    found = pd.DataFrame(found)
    assert np.corrcoef(found["lateral_ventricles_ml"], table["lateral_ventricles_ml"])[0, 1] >= 0.98
    assert np.corrcoef(found["brain_ml"], table["brain_ml"])[0, 1] >= 0.95
    assert min(overlaps) >= 0.85


def test_follows_other_labels_of_whole_heads(shared_data):
    import pandas as pd

    folder = shared_data / "ixi_2mm"
    truth = pd.read_csv(folder / "dlmuse_volumes.csv").set_index("MRID")[["51", "52"]].sum(axis=1) / 1000
    off = []
    for name, lateral in truth.items():
        found = morphometry.measure(*read(folder / "images" / f"{name}-T1_ds.nii.gz"), method="network")
        off.append(abs(found["lateral_ventricles_ml"] - lateral))
    assert len(off) == 10 and np.mean(off) < 2
