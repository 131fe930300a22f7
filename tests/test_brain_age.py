"""Brain age learns a relation that is there, resumes after a kill, and refuses cohorts without ages."""

import numpy as np
import pandas as pd
import pytest
import torch

from brainldm_core import brain_age, loop, networks
from brainldm_core.dataset import load_cohort, save_volume, volume_path, write_tables
from brainldm_core.errors import BrainLDMError
from brainldm_core.profiles import load_profile
from brainldm_core.records import Record, open_run

pytestmark = pytest.mark.filterwarnings("ignore")


def aged_run(root, scans=48, ages=None, **training):
    """A smoke run of balls with a hollow that grows with age, as ventricles do."""
    run = open_run("smoke", "atlas", root=root)
    settings = run.profile.brain_age
    settings = settings.model_copy(update={"training": settings.training.model_copy(update=training)})
    object.__setattr__(run, "profile", run.profile.model_copy(update={"brain_age": settings}))
    folder, grid = run.stage("cohort"), run.profile.grid
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.arange(side) - (side - 1) / 2 for side in grid.shape), indexing="ij")
    distance = np.sqrt(sum(axis**2 for axis in axes))
    rows = []
    for index in range(scans):
        age = rng.uniform(45, 80)
        hollow = 2 + (age - 45) / 35 * 3
        volume = 0.8 / (1 + np.exp(2 * (distance - 7))) - 0.6 / (1 + np.exp(2 * (distance - hollow)))
        name = f"sub-{index:04d}"
        save_volume(volume_path(folder, name), volume + rng.normal(0, 0.02, volume.shape), grid.affine)
        rows.append(
            {
                "participant_id": name, "session_id": "n/a", "split": ["train", "train", "test"][index % 3],
                "age_years": age if ages is None else ages[index % len(ages)], "sex": "FM"[index % 2],
                "ventricular_volume_ml": 20.0 + index, "brain_volume_ml": 1100.0, "intracranial_volume_ml": 1400.0,
            }
        )  # fmt: skip
    write_tables(folder, pd.DataFrame(rows), "balls", {"brain_only": True})
    Record(folder, "test", {}, {}).finish([folder / "participants.tsv"])
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = aged_run(tmp_path_factory.mktemp("runs"), steps=120, batch_size=16, warmup_steps=10, learning_rate=5e-3)
    return run, brain_age.train_brain_age(run, progress=False)


def test_it_learns_a_relation_that_is_there(trained):
    ceiling = trained[1]["results"]["ceiling"]
    assert ceiling["n"] == 16 and ceiling["r"] > 0.9
    assert ceiling["mae"] < 5 and abs(ceiling["bias"]) < 2  # a constant guess misses by about nine years
    assert ceiling["low"] <= ceiling["r"] <= ceiling["high"]


def test_ages_are_predicted_in_years_and_agree_with_the_record(trained):
    run, record = trained
    cohort = load_cohort(run.stage("cohort"))
    volumes, years = cohort.volumes("test")[:, 0], cohort.rows("test")["age_years"].to_numpy()
    found = brain_age.predict_age(run, volumes.numpy())
    assert found.shape == years.shape
    assert np.abs(found - years).mean() == pytest.approx(record["results"]["ceiling"]["mae"], abs=1e-3)
    assert np.array_equal(found, brain_age.predict_age(run, volumes))  # tensors too
    alone = np.concatenate([brain_age.predict_age(run, volume[None]) for volume in volumes[:3]])
    assert np.allclose(alone, found[:3], atol=1e-6)  # no volume depends on its company
    assert brain_age.predict_age(run, volumes[:0]).shape == (0,)


def test_statistics_are_those_of_the_averaged_weights():
    torch.manual_seed(0)
    layer = torch.nn.BatchNorm3d(2)
    layer.running_mean.fill_(50.0)  # what a short training leaves behind
    layer.num_batches_tracked.fill_(30)
    volumes = torch.randn(12, 2, 4, 4, 4) * 3 + 7
    brain_age.recalibrate(torch.nn.Sequential(layer, torch.nn.Dropout(0.5)), volumes, 4)
    assert torch.allclose(layer.running_mean, volumes.mean(dim=(0, 2, 3, 4)), atol=1e-4)
    parts = torch.stack([part.var(dim=(0, 2, 3, 4)) for part in volumes.split(4)])
    assert torch.allclose(layer.running_var, parts.mean(dim=0), rtol=1e-4)
    assert not layer.training


def test_the_stage_is_done_once_and_leaves_what_others_leave(trained):
    run, record = trained
    assert set(record["outputs"]) == {"weights.safetensors", "losses.csv"}
    assert brain_age.train_brain_age(run, progress=False) == record
    assert not (run.stage("brain_age") / loop.STATE).exists()
    _, config = networks.load_checkpoint(run.stage("brain_age") / "weights.safetensors", "brain_age")
    rows = load_cohort(run.stage("cohort")).rows("train")
    assert config["mean_years"] == pytest.approx(rows["age_years"].mean())
    assert config["deviation_years"] == pytest.approx(rows["age_years"].std(ddof=0))


def test_a_killed_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    runs = [aged_run(tmp_path / name, scans=12, checkpoint_seconds=1e-9) for name in ("whole", "parts")]
    brain_age.train_brain_age(runs[0], progress=False)
    real_save = loop._save

    def save_then_die(*arguments):
        real_save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_save", save_then_die)
        with pytest.raises(KeyboardInterrupt):
            brain_age.train_brain_age(runs[1], progress=False)
    brain_age.train_brain_age(runs[1], progress=False)
    ours, theirs = (networks.load_checkpoint(run.stage("brain_age") / "weights.safetensors")[0] for run in runs)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("ages", [[None], [61.0]])
def test_a_cohort_whose_ages_say_nothing_is_refused(tmp_path, ages):
    run = aged_run(tmp_path, scans=6, ages=ages)
    with pytest.raises(BrainLDMError, match="needs a cohort with ages"):
        brain_age.train_brain_age(run, progress=False)
    assert not (run.stage("brain_age") / "record.json").exists()


def test_scans_without_an_age_are_left_out(tmp_path):
    run = aged_run(tmp_path, scans=12, ages=[50.0, 60.0, 70.0, None, 75.0, 65.0])
    record = brain_age.train_brain_age(run, progress=False)
    assert record["results"]["subjects"] == 6 and record["results"]["ceiling"]["n"] == 4


def test_volumes_of_another_grid_and_untrained_runs_say_so(trained, tmp_path):
    with pytest.raises(BrainLDMError, match="needs \\(N, 16, 20, 16\\)"):
        brain_age.predict_age(trained[0], np.zeros((2, 8, 8, 8)))
    with pytest.raises(BrainLDMError, match="no such checkpoint"):
        brain_age.predict_age(open_run("smoke", "atlas", root=tmp_path), np.zeros((2, 16, 20, 16)))


def test_translation_moves_whole_voxels_and_fills_with_background():
    volume = torch.zeros(64, 1, 5, 6, 7)
    volume[:, :, 2, 3, 3] = 1
    moved = brain_age.translated(volume, 1, torch.Generator().manual_seed(0))
    assert moved.shape == volume.shape and torch.equal(moved.sum(dim=(1, 2, 3, 4)), torch.ones(64))
    places = moved.nonzero()[:, 2:]
    assert {tuple(place) for place in (places - torch.tensor([2, 3, 3])).tolist()} <= {
        (d, h, w) for d in (-1, 0, 1) for h in (-1, 0, 1) for w in (-1, 0, 1)
    }
    assert len(places.unique(dim=0)) > 10
    assert brain_age.translated(volume, 0, torch.Generator()) is volume


def test_degraded_volumes_are_blurred_scaled_and_noisy_by_no_more_than_the_profile_says():
    """A point's second moment after smoothing is the variance of its kernel; sums show the scale."""
    settings = load_profile("tiny").brain_age.model_copy(
        update={"blur_voxels": 1.2, "intensity_share": 0.0, "noise": 0.0}
    )
    batch = torch.zeros(64, 1, 11, 11, 11)
    batch[:, :, 5, 5, 5] = 1.0
    blurred = brain_age.degraded(batch, settings, torch.Generator().manual_seed(0))
    offsets = (torch.arange(11.0) - 5) ** 2
    moments = [(blurred.sum(dim=[k for k in (1, 2, 3, 4) if k != axis]) * offsets).sum(1) for axis in (2, 3, 4)]
    assert torch.allclose(moments[0], moments[1], atol=1e-5) and torch.allclose(moments[0], moments[2], atol=1e-5)
    assert 0.5 < float(moments[0].max()) < 1.2**2 and float(moments[0].min()) < 0.1
    assert torch.allclose(blurred.sum(dim=(1, 2, 3, 4)), torch.ones(64), atol=1e-4)

    scaled = brain_age.degraded(
        batch + 1, settings.model_copy(update={"blur_voxels": 0.0, "intensity_share": 0.1}), torch.Generator()
    )
    factors = scaled[:, 0, 0, 0, 0]
    assert 0.9 <= float(factors.min()) < 0.95 and 1.05 < float(factors.max()) <= 1.1
    noisy = brain_age.degraded(
        torch.zeros(64, 1, 8, 8, 8), settings.model_copy(update={"blur_voxels": 0.0, "noise": 0.1}), torch.Generator()
    )
    assert float(noisy.std(dim=(1, 2, 3, 4)).max()) < 0.12 and float(noisy.std()) > 0.03
