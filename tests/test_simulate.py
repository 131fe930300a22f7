"""Simulated cohorts: the atlas, its flow, subjects that meet their request, and the cohort on disk."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from brainldm_core import anatomy, dataset, simulate, simulate_run, warps
from brainldm_core.errors import BrainLDMError
from brainldm_core.profiles import Grid, load_profile
from brainldm_core.records import open_run

TINY = load_profile("tiny").grid
ROW = {"age_years": 60.0, "sex": "F", "ventricular_volume_ml": 30.0, "brain_volume_ml": 1180.0}
ROW["intracranial_volume_ml"] = 1400.0


@pytest.fixture(scope="module")
def atlas():
    return anatomy.atlas_anatomy(2.5)


@pytest.fixture(scope="module")
def subjects(atlas):
    """One person with ventricles of 10, 30 and 80 ml."""
    return {ml: simulate.simulate_subject(atlas, TINY, ROW | {"ventricular_volume_ml": ml}, 1) for ml in (10, 30, 80)}


def test_atlas_has_known_volumes(atlas):
    volumes = atlas.volumes()
    assert 15 < volumes["lateral"] < 21  # an atlas of the same template has 21 ml with its temporal horns
    assert volumes["intracranial"] == pytest.approx(1887, rel=0.005)
    assert 0.86 < volumes["brain"] / volumes["intracranial"] < 0.91


def test_atlas_is_symmetric_and_lies_in_mni_space(atlas):
    lateral = atlas.maps[3]
    x, y, z = (
        start + atlas.spacing_mm * (lateral.sum(others) * np.arange(side)).sum() / lateral.sum()
        for start, side, others in zip(atlas.origin_mm, lateral.shape, ((1, 2), (0, 2), (0, 1)), strict=True)
    )
    assert abs(x) < 0.5
    assert -25 < y < -5
    assert 10 < z < 22


def test_ventricles_grow_and_the_head_does_not(atlas):
    place = (atlas.origin_mm, atlas.spacing_mm)
    points = warps.grid_points(atlas.maps.shape[1:], *place)
    volumes = [simulate.volumes_ml(simulate.pull_back(atlas, points, t), 2.5) for t in (-8.0, 0.0, 30.0, 90.0)]
    lateral = [volume["lateral"] for volume in volumes]
    assert lateral == sorted(lateral)
    assert lateral[0] < 14 and 30 < lateral[2] < 50 and lateral[3] > 70
    for volume in volumes:
        assert volume["intracranial"] == pytest.approx(volumes[1]["intracranial"], rel=0.003)


@pytest.mark.parametrize("growth_ml", [-10.0, 30.0, 90.0])
def test_growth_keeps_topology(atlas, growth_ml):
    place = (atlas.flow_origin_mm, atlas.flow_spacing_mm)
    displacement = warps.integrate(-growth_ml * torch.from_numpy(atlas.flow)[None], *place)
    assert warps.jacobian_determinant(displacement, place[1]).min() > 0


@pytest.mark.parametrize("fraction", [0.80, 0.87, 0.94])
def test_sulci_meet_the_brain_fraction(atlas, fraction):
    widened = simulate.widen_sulci(atlas.maps, fraction, 1.6)
    volumes, own = simulate.volumes_ml(widened, 2.5), atlas.volumes()
    assert volumes["brain"] / volumes["intracranial"] == pytest.approx(fraction, abs=0.001)
    assert volumes["lateral"] == pytest.approx(own["lateral"])
    assert volumes["intracranial"] == pytest.approx(own["intracranial"])


def test_subjects_meet_their_request(subjects):
    for wanted, subject in subjects.items():
        assert subject.measured["ventricular_volume_ml"] == pytest.approx(wanted, rel=0.1)
        assert subject.measured["brain_volume_ml"] == pytest.approx(1180, rel=0.003)
        assert subject.measured["intracranial_volume_ml"] == pytest.approx(1400, rel=0.01)


def test_labels_agree_with_what_was_measured(subjects):
    voxel_ml = TINY.spacing_mm**3 / 1000
    for subject in subjects.values():
        counts = np.bincount(subject.labels.ravel(), minlength=5) * voxel_ml
        assert counts[1:].sum() == pytest.approx(subject.measured["intracranial_volume_ml"], rel=0.02)
        assert counts[4] == pytest.approx(subject.measured["ventricular_volume_ml"], rel=0.35)


def test_intensities_are_on_the_scale_of_the_cohort(subjects):
    for subject in subjects.values():
        image, labels = subject.image, subject.labels
        assert image.dtype == np.float32 and image.min() == 0 and image.max() <= 1
        assert (image[labels == 0] == 0).mean() > 0.9
        medians = [np.median(image[labels == label]) for label in (2, 3)]
        assert medians[0] == pytest.approx(0.63, abs=0.06)
        assert medians[1] == pytest.approx(0.77, abs=0.04)
    assert np.median(subjects[80].image[subjects[80].labels == 4]) < 0.35


def test_a_subject_follows_from_its_seed_alone(atlas, subjects):
    again = simulate.simulate_subject(atlas, TINY, ROW, 1)
    other = simulate.simulate_subject(atlas, TINY, ROW, 2)
    assert np.array_equal(again.image, subjects[30].image)
    assert again.measured == subjects[30].measured
    assert not np.array_equal(other.labels, again.labels)


def test_one_covariate_changes_and_the_person_stays(monkeypatch, atlas):
    monkeypatch.setattr(simulate, "atlas_anatomy", lambda spacing_mm: atlas)
    requests = pd.DataFrame([ROW, ROW | {"age_years": 80.0}, ROW | {"ventricular_volume_ml": 60.0}])
    volumes, table = simulate.simulate_requests(requests, TINY, seed=1)
    assert volumes.shape == (3, *TINY.shape) and table["age_years"].tolist() == [60, 80, 60]
    assert table["measured_ventricular_volume_ml"].iloc[1] == table["measured_ventricular_volume_ml"].iloc[0]
    assert table["measured_ventricular_volume_ml"].iloc[2] == pytest.approx(60, rel=0.1)
    assert 0 < np.abs(volumes[1] - volumes[0]).max() < 0.1, "age changes the contrast alone"


def test_working_voxels_are_half_as_wide_but_not_below_1_mm():
    assert simulate.working_factor(TINY) == 2
    assert simulate.working_factor(Grid(shape=(8, 8, 8), spacing_mm=1.0)) == 1
    shape, origin, spacing = simulate.working_grid(TINY, 2)
    assert shape == tuple(2 * side for side in TINY.shape) and spacing == 2.5
    # The field of view begins half a voxel before the first centre on either grid.
    np.testing.assert_allclose(origin - 1.25, np.array(TINY.affine)[:3, 3] - 2.5)


@pytest.fixture(scope="module")
def cohort_run(tmp_path_factory):
    run = open_run("smoke", "atlas", root=tmp_path_factory.mktemp("runs"))
    simulate_run.simulate_cohort(run, workers=2, progress=False)
    return run


def test_cohort_has_its_layout(cohort_run):
    folder = cohort_run.stage("cohort")
    cohort = dataset.load_cohort(folder)
    size = cohort_run.profile.cohort
    assert cohort.table["split"].value_counts().to_dict() == size.model_dump()
    np.testing.assert_allclose(cohort.affine, cohort_run.profile.grid.affine)
    assert cohort.volumes("train").shape == (size.train, 1, *cohort_run.profile.grid.shape)
    labels = cohort.labels("test")
    assert set(np.unique(labels)) <= set(dataset.LABELS) and labels.max() == 4
    assert cohort.table[["age_years", "ventricular_volume_ml", "brain_volume_ml"]].std().min() > 1
    assert not list(folder.rglob(".partial-*"))


def test_table_holds_measured_volumes(cohort_run):
    folder = cohort_run.stage("cohort")
    row = dataset.load_cohort(folder).table.iloc[0]
    sidecar = dataset.volume_path(folder, row["participant_id"]).with_suffix("").with_suffix(".json")
    content = json.loads(sidecar.read_text())
    assert row["ventricular_volume_ml"] == content["measured"]["ventricular_volume_ml"]
    assert content["measured"]["ventricular_volume_ml"] != content["requested"]["ventricular_volume_ml"]


def test_an_interrupted_cohort_is_completed(cohort_run):
    folder = cohort_run.stage("cohort")
    files = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*.nii.gz")}
    table = (folder / "participants.tsv").read_bytes()
    first = simulate_run.simulate_cohort(cohort_run)
    assert first == json.loads((folder / "record.json").read_text())
    (folder / "record.json").unlink()
    (folder / "participants.tsv").unlink()
    gone = dataset.volume_path(folder, "sub-0003")
    gone.with_suffix("").with_suffix(".json").unlink()
    gone.unlink()
    second = simulate_run.simulate_cohort(cohort_run, workers=1, progress=False)
    assert (folder / "participants.tsv").read_bytes() == table
    for path, (changed, content) in files.items():
        assert path.read_bytes() == content
        assert (path.stat().st_mtime_ns == changed) == ("sub-0003" not in path.name)
    assert second["outputs"] == first["outputs"]


def test_splits_depend_on_ids_only():
    size = load_profile("smoke").cohort
    ids = [f"sub-{number}" for number in range(12)]
    splits = dataset.cut_splits(ids, size.model_dump())
    assert splits == dataset.cut_splits(ids[::-1], size.model_dump())
    assert list(splits.values()).count("train") == size.train


def test_another_cohort_is_refused(tmp_path):
    with pytest.raises(BrainLDMError, match="not simulated"):
        simulate_run.simulate_cohort(open_run("smoke", "mine", root=tmp_path))
