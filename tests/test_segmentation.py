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


@pytest.fixture(scope="module")
def template():
    """The MNI152 template, a brain alone of 2 mm, and its affine."""
    from nilearn import datasets

    image = datasets.load_mni152_template(resolution=2)
    return image.get_fdata(dtype=np.float32), image.affine


@pytest.fixture(scope="module")
def measured(template):
    return segmentation.measure(*template)


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


def test_sharpened_shares_replay_bayes_rule_near_the_ventricles():
    """A slab of fluid between tissue: shares of 0.5 at its border are decided by the intensity of the voxel."""
    lateral = np.zeros((24, 24, 24), np.float32)
    lateral[10:14], lateral[9], lateral[14] = 1, 0.5, 0.3
    shares = np.stack([0 * lateral, 0.2 * (lateral == 0.3), 0 * lateral, 1 - lateral - 0.2 * (lateral == 0.3), lateral])
    volume = np.full((24, 24, 24), 100.0)
    volume[10:14], volume[9, :12], volume[9, 12:], volume[14] = 20, 20, 100, 60
    found = segmentation.sharpened(volume, np.ones(3), shares.astype(np.float32))
    factor = np.exp(0.5 / segmentation.DEVIATION**2)
    assert found[4, 9, 3, 3] == pytest.approx(factor / (1 + factor), abs=0.01)
    assert found[4, 9, 20, 3] == pytest.approx(1 / (1 + factor), abs=0.01)
    assert found[4, 14, 5, 5] == pytest.approx(0.3, abs=0.01)  # half way says nothing
    assert found[4, 14] / found[1, 14] == pytest.approx(1.5 * np.ones((24, 24)), rel=1e-4)  # fluid both
    assert found.sum(0) == pytest.approx(np.ones(volume.shape), abs=1e-5)
    assert np.array_equal(found[:, :9], shares.astype(np.float32)[:, :9])
    flat = segmentation.sharpened(np.full_like(volume, 50.0), np.ones(3), shares.astype(np.float32))
    assert flat == pytest.approx(shares, abs=1e-5)  # no contrast, no evidence


def test_auto_goes_by_the_size_of_voxels():
    assert morphometry.choose(np.diag([5.0, 5, 5, 1])) == "intensity"
    assert morphometry.choose(np.diag([5.0, 5, 5, 1]), "network") == "network"
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
        found.append(morphometry.measure(volume, affine))
        if truth > 10:
            labels, _ = read(folder / "derivatives/manual" / place / f"{name}_desc-neuromorphometrics_dseg.nii.gz")
            overlaps.append(dice(morphometry.segment(volume, affine) == 4, np.isin(labels, (51, 52))))
    found = pd.DataFrame(found)
    assert np.corrcoef(found["lateral_ventricles_ml"], table["lateral_ventricles_ml"])[0, 1] >= 0.98
    assert np.corrcoef(found["brain_ml"], table["brain_ml"])[0, 1] >= 0.95
    assert len(overlaps) == 9 and np.mean(overlaps) >= 0.88
    assert sorted(overlaps)[1] >= 0.85  # one, of 12 ml, has 0.82


def test_follows_other_labels_of_whole_heads(shared_data):
    import pandas as pd

    folder = shared_data / "ixi_2mm"
    truth = pd.read_csv(folder / "dlmuse_volumes.csv").set_index("MRID")[["51", "52"]].sum(axis=1) / 1000
    off = []
    for name, lateral in truth.items():
        found = morphometry.measure(*read(folder / "images" / f"{name}-T1_ds.nii.gz"))
        off.append(abs(found["lateral_ventricles_ml"] - lateral))
    assert len(off) == 10 and np.mean(off) < 2
