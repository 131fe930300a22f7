"""Morphometry: measured from intensities, held against labels of simulated brains and of real scans."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from brainldm_core import anatomy, dataset, morphometry, simulate
from brainldm_core.covariates import draw_covariates
from brainldm_core.profiles import load_profile

GRID = load_profile("tiny").grid


@pytest.fixture(scope="module")
def people():
    """Simulated people: volumes, labels and measured covariates."""
    atlas = anatomy.atlas_anatomy(2.5)
    rows = draw_covariates(24, np.random.default_rng(3)).to_dict("records")
    subjects = [simulate.simulate_subject(atlas, GRID, row, seed) for seed, row in enumerate(rows, start=500)]
    table = pd.DataFrame([subject.measured for subject in subjects])
    return [subject.image for subject in subjects], [subject.labels for subject in subjects], table


def measured(volumes):
    return pd.DataFrame([morphometry.measure(volume, GRID.affine) for volume in volumes])


def test_follows_the_labels_of_simulated_brains(people):
    volumes, _, truth = people
    found = measured(volumes)
    pairs = {"lateral_ventricles_ml": "ventricular_volume_ml", "brain_volume_ml": "brain_volume_ml"}
    pairs["intracranial_ml"] = "intracranial_volume_ml"
    r = {name: np.corrcoef(found[name], truth[column])[0, 1] for name, column in pairs.items()}
    assert r["lateral_ventricles_ml"] > 0.99
    assert r["intracranial_ml"] > 0.99
    assert r["brain_volume_ml"] > 0.94
    bias = (found["lateral_ventricles_ml"] - truth["ventricular_volume_ml"]).mean()
    assert abs(bias) < 3
    assert (found["intracranial_ml"] / truth["intracranial_volume_ml"] - 1).abs().max() < 0.06


def test_withstands_noise_blur_and_another_scale(people):
    from scipy import ndimage

    volumes, _, truth = people
    rng = np.random.default_rng(0)
    worse = [ndimage.gaussian_filter(volume, 0.4) + 0.02 * rng.standard_normal(GRID.shape) for volume in volumes]
    found = measured(np.clip(worse, 0, 1))
    assert np.corrcoef(found["lateral_ventricles_ml"], truth["ventricular_volume_ml"])[0, 1] > 0.98
    assert np.corrcoef(found["intracranial_ml"], truth["intracranial_volume_ml"])[0, 1] > 0.98
    dim = morphometry.measure(0.8 * volumes[0], GRID.affine)
    assert dim["lateral_ventricles_ml"] == pytest.approx(
        morphometry.measure(volumes[0], GRID.affine)["lateral_ventricles_ml"], rel=0.1
    )


def test_segments_as_the_labels_do(people):
    volumes, labels, _ = people
    for volume, truth in zip(volumes[:6], labels[:6], strict=True):
        found = morphometry.segment(volume, GRID.affine)
        assert found.dtype == np.uint8 and found.max() == 4
        for mask, floor in ((lambda x: x == 4, 0.5), (lambda x: x > 0, 0.95), (lambda x: (x == 2) | (x == 3), 0.93)):
            both = (mask(found) & mask(truth)).sum()
            assert 2 * both / (mask(found).sum() + mask(truth).sum()) > floor


def test_a_volume_without_a_head_measures_nothing():
    assert morphometry.measure(np.zeros(GRID.shape), GRID.affine) == morphometry.EMPTY
    noise = np.random.default_rng(0).random((16, 20, 16))
    values = morphometry.measure(noise, load_profile("smoke").grid.affine)
    assert np.isfinite(list(values.values())).all()


def test_follows_manual_labels_of_real_scans(shared_data):
    import nibabel as nib

    folder = shared_data / "oasis"
    table = pd.read_csv(folder / "participants.tsv", sep="\t")
    found = []
    for person, session in table[["participant_id", "session_id"]].itertuples(index=False):
        image = nib.load(folder / person / session / "anat" / f"{dataset.scan_name(person, session)}_T1w.nii.gz")
        image = nib.as_closest_canonical(image)
        volume = image.get_fdata(dtype=np.float32)
        volume = np.clip(0.8 * volume / np.percentile(volume[volume > 0], 90), 0, 1)
        volume = np.pad(volume, [(0, -side % 2) for side in volume.shape])
        blocks = [n for side in volume.shape for n in (side // 2, 2)]
        found.append(
            morphometry.measure(
                volume.reshape(blocks).mean((1, 3, 5)), image.affine @ np.diag([2, 2, 2, 1]), "intensity"
            )
        )
    found = pd.DataFrame(found)
    assert np.corrcoef(found["lateral_ventricles_ml"], table["lateral_ventricles_ml"])[0, 1] > 0.95
    assert np.corrcoef(found["brain_ml"], table["brain_ml"])[0, 1] > 0.95
    assert (found["lateral_ventricles_ml"] - table["lateral_ventricles_ml"]).abs().mean() < 6
    assert found["intracranial_ml"].to_numpy() == pytest.approx(table["brain_mask_ml"].to_numpy(), rel=0.05)
