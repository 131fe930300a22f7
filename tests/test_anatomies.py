"""Anatomies from label maps: labels become tissue, people are split and assigned, subjects meet their request."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtr

from brainldm_core import anatomies, dataset, label_maps, registration, simulate, simulate_run
from brainldm_core.anatomy import Anatomy
from brainldm_core.errors import BrainLDMError
from brainldm_core.profiles import Grid, load_profile
from brainldm_core.records import open_run


def head(lateral_mm: float = 12.0, seed: int = 0) -> np.ndarray:
    """Label map (D, H, W) of 2 mm voxels: CSF around a cortex with sulci, white matter, two ventricles, skull."""
    x, y, z = np.meshgrid(*(np.linspace(-95, 95, 96),) * 3, indexing="ij")
    radius = np.sqrt((x / 62) ** 2 + (y / 80) ** 2 + (z / 60) ** 2)
    labels = np.zeros(radius.shape, np.int32)
    labels[radius < 1.25] = 507
    labels[radius < 1.12] = 24
    labels[radius < 0.98] = 3
    labels[radius < 0.84] = 2
    labels[(np.abs(np.sin((x + 3 * seed) / 9)) < 0.3) & (radius > 0.8) & (radius < 0.98)] = 24
    for side, label in ((-1, 4), (1, 43)):
        tube = ((x - side * 14) / lateral_mm) ** 2 + (y / 38) ** 2 + ((z - 10) / lateral_mm) ** 2
        labels[tube < 1] = label
    labels[(abs(x) < 3) & (y < -60) & (radius < 0.7)] = 899 - 500  # 399: a label that nobody knows
    return labels


AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
AFFINE[:3, 3] = np.array([-95.0, -113.0, -87.0])


@pytest.fixture
def maps(tmp_path, monkeypatch):
    """A folder of four label maps whose registration is known: they lie in MNI space already."""
    placed = registration.Registration(np.eye(4), 1.0, 1.0, 1.0, 0.8, True)
    monkeypatch.setattr(registration, "register", lambda volume, affine: placed)
    monkeypatch.setattr(label_maps, "FIELD", Grid(shape=(96, 116, 100), spacing_mm=2.0))  # as fine as these maps
    folder = tmp_path / "labels"
    folder.mkdir()
    for number, width in enumerate((8, 11, 14, 18)):
        nib.save(nib.Nifti1Image(head(width, number).astype(np.int16), AFFINE), folder / f"person_{number}.nii.gz")
    return folder


def test_labels_become_tissue_that_keeps_its_volume(maps):
    found = label_maps.find_label_maps(maps)
    assert list(found) == [f"person_{number}" for number in range(4)]
    anatomy = label_maps.label_anatomy(found["person_1"], 2.5)
    labels = head(11, 1)
    volumes = anatomy.volumes()
    assert volumes["lateral"] == pytest.approx(np.isin(labels, (4, 43)).sum() * 8e-3, rel=0.03)
    assert volumes["brain"] == pytest.approx((np.isin(labels, (2, 3)) | (labels == 399)).sum() * 8e-3, rel=0.03)
    # CSF outside the closed brain is gone, that of the sulci is not.
    assert 1.005 < volumes["intracranial"] / (volumes["brain"] + volumes["lateral"]) < 1.12
    assert anatomy.maps[:4].min() >= 0 and anatomy.maps[:4].sum(0).max() <= 1.001
    x = anatomy.origin_mm[0] + 2.5 * np.arange(anatomy.maps.shape[1])
    assert abs((anatomy.maps[3].sum((1, 2)) * x).sum() / anatomy.maps[3].sum()) < 1.5


def test_structures_have_their_share_of_white_and_unknown_labels_that_of_their_neighbours():
    labels = np.array([[[2, 3, 10, 1035, 3002, 507, 24, 4]]], np.int32)
    tissue = label_maps.tissue_maps(label_maps.only_known(labels), 40.0)[:, 0, 0]  # too coarse to blend
    white = label_maps.WHITE_SHARE[10]
    expected = {"csf": [0, 0, 0, 0, 0, 0, 1, 0], "grey": [0, 1, 1 - white, 1, 0, 0, 0, 0]}
    np.testing.assert_allclose(tissue[0], expected["csf"])
    np.testing.assert_allclose(tissue[1], expected["grey"], atol=1e-6)
    np.testing.assert_allclose(tissue[2], [1, 0, white, 0, 1, 0, 0, 0], atol=1e-6)
    assert label_maps.only_known(np.array([[[2, 136, 163, 3, 0]]]))[0, 0].tolist() == [2, 2, 3, 3, 0]


def test_nuclei_pass_into_white_matter_and_cortex_keeps_its_edge():
    labels = np.full((60, 30, 30), 2, np.int32)
    labels[30:] = 10
    labels[:8] = 3
    grey, white = label_maps.tissue_maps(labels, 1.0)[1:3, :, 15, 15]
    assert (grey[:8] == 1).all() and (grey[8:22] == 0).all(), "cortex ends where its label ends"
    step = 1 - label_maps.WHITE_SHARE[10]
    np.testing.assert_allclose(grey[[22, -1]], [0, step], atol=1e-3)
    places = (np.arange(26, 34) + 0.5 - 30) / label_maps.BLENDED_MM
    np.testing.assert_allclose(grey[26:34], step * ndtr(places), atol=0.01)
    np.testing.assert_allclose(grey + white, 1, atol=1e-6)


def test_ventricles_that_touch_get_a_septum_of_one_voxel():
    labels = np.full((12, 8, 8), 2, np.int32)
    labels[2:6, 2:6, 2:6], labels[6:10, 2:4, 2:6] = 4, 43
    found = label_maps.with_septum(labels)
    assert (found[5, 2:4, 2:6] == label_maps.CALLOSUM).all()
    changed = found != labels
    assert changed.sum() == 8 and not changed[6:].any(), "no tissue where they do not touch"


def test_a_whole_head_has_its_layers_and_the_same_brain(maps):
    path = maps / "person_1.nii.gz"
    brain, whole = (label_maps.label_anatomy(path, 4.0, whole_head=kind) for kind in (False, True))
    assert whole.volumes() == pytest.approx(brain.volumes(), rel=0.005), "grids begin elsewhere, no more"
    assert not brain.maps[4].any() and whole.maps[4].max() == pytest.approx(label_maps.FAT_SIGNAL, abs=0.1)
    row = {
        "age_years": 60.0,
        "ventricular_volume_ml": 30.0,
        "brain_volume_ml": 1180.0,
        "intracranial_volume_ml": 1400.0,
    }
    grid = load_profile("demo").grid.model_copy(update={"shape": (40, 56, 40), "spacing_mm": 4.0})
    for anatomy, cohort in ((brain, "anatomies"), (whole, "heads")):
        subject = simulate.simulate_subject(anatomy, grid, row, 1, simulate.LOOKS[cohort])
        outside = subject.image[subject.labels == 0]
        assert (outside > 0).mean() > 0.9 if cohort == "heads" else (outside == 0).mean() > 0.9
        assert (outside > 0.5).sum() > 500 if cohort == "heads" else (outside > 0.5).sum() < 20
        assert subject.measured["brain_volume_ml"] == pytest.approx(1180, rel=0.01)


def test_layers_outside_have_their_signal():
    labels = np.zeros((32, 32, 32), np.int32)
    labels[2:-2, 2:-2, 2:-2] = 511
    labels[4:-4, 4:-4, 4:-4] = label_maps.SOFT_TISSUE
    labels[10:-10, 10:-10, 10:-10] = 515
    labels[12:-12, 12:-12, 12:-12] = 24
    labels[15:17, 15:17, 15:17] = 1  # the brain: not outside
    signal = label_maps.outside_signal(labels, 2.0)[:, 16, 16]
    np.testing.assert_allclose(signal[[1, 2, 4, 9, 10, 12, 16]], [0, 0.5, 0.85, 0.42, 0.12, 0.2, 0], atol=1e-6)
    labels[:, :, :6] = 0  # the map ends inside the soft tissue
    ends = label_maps.outside_signal(labels, 2.0)
    assert ends[16, 9, 6] == pytest.approx(label_maps.MUSCLE_SIGNAL) and ends[16, 4, 6] == pytest.approx(0.85)


def test_softened_sulci_keep_sums_and_the_ratio_of_grey_and_white():
    maps = label_maps.tissue_maps(label_maps.only_known(head()), 2.0)
    soft = label_maps.soften_sulci(maps, 1.0)
    np.testing.assert_allclose(soft.sum(0), maps.sum(0), atol=1e-5)
    deep = maps[2] > 0.99
    assert (soft[1][deep] < 1e-6).all(), "white matter turns no grey"
    assert soft[0].sum() == pytest.approx(maps[0].sum(), rel=0.15)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "is no label map"),
        (np.random.default_rng(0).random((8, 8, 8)).astype(np.float32), "not one volume of whole numbers"),
        (np.zeros((8, 8, 8, 2), np.int16), "not one volume of whole numbers"),
        (np.full((8, 8, 8), 2, np.int16), "no lateral ventricles or no cortex"),
    ],
)
def test_what_is_no_label_map_of_a_brain_is_refused(content, message, tmp_path):
    path = tmp_path / "wrong.nii.gz"
    path.write_bytes(b"not a volume") if content is None else nib.save(nib.Nifti1Image(content, np.eye(4)), path)
    with pytest.raises(BrainLDMError, match=message):
        label_maps.label_anatomy(path, 2.5)


def test_folders_without_enough_label_maps_are_refused(tmp_path):
    with pytest.raises(BrainLDMError, match="holds no label maps"):
        label_maps.find_label_maps(tmp_path)
    (tmp_path / "one.nii.gz").touch()
    with pytest.raises(BrainLDMError, match="each split needs a person of its own"):
        anatomies.ensure_anatomies(tmp_path, tmp_path / "out", 2.5, 1)


def test_twenty_people_split_14_3_3_and_nobody_is_in_two_splits():
    names = [f"training_seg_{number:02d}" for number in range(1, 21)]
    splits = anatomies.split_anatomies(names)
    assert [len(splits[split]) for split in ("train", "validation", "test")] == [14, 3, 3]
    assert sorted(sum(splits.values(), [])) == names and splits == anatomies.split_anatomies(names[::-1])
    assert [len(part) for part in anatomies.split_anatomies(names[:3]).values()] == [1, 1, 1]
    assert anatomies.split_anatomies(["atlas"]) == dict.fromkeys(("train", "validation", "test"), ["atlas"])


def test_rows_go_to_people_of_their_split_who_are_near_in_shape():
    rng = np.random.default_rng(0)
    names = [f"p{number}" for number in range(20)]
    people = {
        name: anatomies.Facts("", float(np.exp(rng.normal(-3.8, 0.6))), float(rng.normal(0.87, 0.03))) for name in names
    }
    count = 600
    table = pd.DataFrame({"intracranial_volume_ml": np.full(count, 1400.0)})
    table["ventricular_volume_ml"] = 1400 * np.exp(rng.normal(-3.8, 0.5, count))
    table["brain_volume_ml"] = 1369 * rng.normal(0.87, 0.02, count)
    table["split"] = ["train"] * 400 + ["validation"] * 100 + ["test"] * 100
    chosen = anatomies.assign_anatomies(table, people, np.random.default_rng(1))
    groups = anatomies.split_anatomies(names)
    assert all(name in groups[split] for name, split in zip(chosen, table["split"], strict=True))
    assert len(set(chosen[:400])) >= 12
    asked = np.log(table["ventricular_volume_ml"] / 1400)[:400]
    own = np.log([people[name].lateral for name in chosen[:400]])
    assert np.corrcoef(asked, own)[0, 1] > 0.5
    assert chosen == anatomies.assign_anatomies(table, people, np.random.default_rng(1))


def test_an_anatomy_comes_back_from_its_file(maps, tmp_path):
    anatomy = label_maps.label_anatomy(maps / "person_2.nii.gz", 5.0)
    anatomy.save(tmp_path / "one.npz")
    again = Anatomy.load(tmp_path / "one.npz")
    assert (again.name, again.origin_mm, again.spacing_mm) == ("person_2", anatomy.origin_mm, 5.0)
    assert np.array_equal(again.maps, anatomy.maps) and np.array_equal(again.flow, anatomy.flow)
    assert (again.flow_origin_mm, again.flow_spacing_mm) == (anatomy.flow_origin_mm, 5.0)
    coarse = anatomy.coarser
    assert coarse.spacing_mm == 10.0 and coarse.volumes() == pytest.approx(anatomy.volumes(), rel=0.02)


def test_a_cohort_of_people_measures_what_it_made(maps, tmp_path, monkeypatch):
    spacing = 10.0 / simulate.working_factor(open_run("smoke", "anatomies", root=tmp_path).profile.grid)
    for name, path in label_maps.find_label_maps(maps).items():  # in this process, where registration is known
        label_maps.label_anatomy(path, spacing).save(tmp_path / f"{name}.npz")
    made = {path.stem: path for path in tmp_path.glob("*.npz")}
    monkeypatch.setattr(simulate_run, "ensure_anatomies", lambda *_: made)
    run = open_run("smoke", "anatomies", root=tmp_path)
    (run.stage("cohort") / simulate_run.ANATOMIES).mkdir(parents=True)
    record = simulate_run.simulate_cohort(run, workers=1, progress=False, labels=maps)
    cohort = dataset.load_cohort(run.stage("cohort"))
    groups = anatomies.split_anatomies(list(made))
    assert all(row.anatomy in groups[row.split] for row in cohort.table.itertuples())
    assert {f"anatomy {name}" for name in made} <= set(record["inputs"])
    sidecar = dataset.volume_path(run.stage("cohort"), "sub-0001").with_suffix("").with_suffix(".json")
    assert json.loads(sidecar.read_text())["anatomy"] == cohort.table["anatomy"].iloc[0]
    assert not (run.stage("cohort") / simulate_run.ANATOMIES).exists()
    with pytest.raises(BrainLDMError, match="needs label maps"):
        simulate_run.simulate_cohort(open_run("smoke", "anatomies", 0, tmp_path / "other"), progress=False)


def test_a_real_label_map_becomes_a_person_near_the_template(shared_data):
    anatomy = label_maps.label_anatomy(shared_data / "synthseg_labels" / "training_seg_03.nii.gz", 5.0)
    volumes = anatomy.volumes()
    assert volumes["lateral"] == pytest.approx(12, rel=0.1) and volumes["brain"] == pytest.approx(1415, rel=0.02)
    assert 0.83 < volumes["brain"] / volumes["intracranial"] < 0.92
    y, z = (
        start + 5.0 * (anatomy.maps[3].sum(others) * np.arange(side)).sum() / anatomy.maps[3].sum()
        for start, side, others in zip(anatomy.origin_mm[1:], anatomy.maps.shape[2:], ((0, 2), (0, 1)), strict=True)
    )
    assert -30 < y < 0 and 5 < z < 25, "ventricles where the template has them"
