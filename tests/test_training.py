"""The two trainings on a cohort of blobs: ensured once, resumed after a kill, exported as a pair."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from brainldm_core import loop, sampling, training
from brainldm_core.dataset import save_volume, volume_path, write_tables
from brainldm_core.errors import BrainLDMError
from brainldm_core.records import Record, open_run

pytestmark = pytest.mark.filterwarnings("ignore")


def blob_run(root, cohort="atlas", seed=0):
    """A smoke run whose cohort stage holds balls of the volumes in its table."""
    run = open_run("smoke", cohort, seed=seed, root=root)
    folder, grid = run.stage("cohort"), run.profile.grid
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.arange(side) - (side - 1) / 2 for side in grid.shape), indexing="ij")
    distance = np.sqrt(sum(axis**2 for axis in axes))
    rows = []
    for index in range(12):
        radius = rng.uniform(4, 7)
        name = f"sub-{index:04d}"
        save_volume(volume_path(folder, name), 0.8 / (1 + np.exp(2 * (distance - radius))), grid.affine)
        rows.append(
            {
                "participant_id": name, "session_id": "n/a", "split": "train" if index < 6 else "test",
                "age_years": rng.uniform(45, 80), "sex": "FM"[index % 2], "ventricular_volume_ml": radius * 5,
                "brain_volume_ml": radius * 200, "intracranial_volume_ml": radius * 220,
            }
        )  # fmt: skip
    rows[7]["split"] = "validation"
    write_tables(folder, pd.DataFrame(rows), "blobs", {"brain_only": True})
    Record(folder, "test", {}, {}).finish([folder / "participants.tsv"])
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = blob_run(tmp_path_factory.mktemp("runs"))
    return run, training.train_autoencoder(run, progress=False), training.train_diffusion(run, progress=False)


def test_trainings_leave_weights_losses_and_records(trained):
    run, autoencoder, diffusion = trained
    for stage, record in (("autoencoder", autoencoder), ("diffusion", diffusion)):
        folder = run.stage(stage)
        losses = pd.read_csv(folder / "losses.csv")
        assert losses["step"].tolist() == list(range(4)) and np.isfinite(losses["seconds"]).all()
        assert set(record["outputs"]) == {"weights.safetensors", "losses.csv"}
        assert not (folder / loop.STATE).exists()
    assert losses["loss"].gt(0).all()
    assert diffusion["inputs"]["autoencoder"] != diffusion["inputs"]["cohort"]


def test_a_finished_training_is_not_done_again(trained):
    run, record, _ = trained
    before = (run.stage("autoencoder") / training.WEIGHTS).stat().st_mtime_ns
    assert training.train_autoencoder(run, progress=False) == record
    assert (run.stage("autoencoder") / training.WEIGHTS).stat().st_mtime_ns == before


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_a_killed_training_ends_with_the_same_weights(trained, tmp_path, monkeypatch, stage):
    whole = trained[0]
    shutil.copytree(whole.folder, tmp_path / whole.name)
    run = open_run("smoke", "atlas", root=tmp_path)
    shutil.rmtree(run.stage(stage))
    train = {"autoencoder": training.train_autoencoder, "diffusion": training.train_diffusion}[stage]
    real_save, saved = loop._save, []

    def save_then_die(folder, key, networks, optimisers, average, step, *rest):
        real_save(folder, key, networks, optimisers, average, step, *rest)
        saved.append(step)
        raise KeyboardInterrupt

    plan = "checkpoint_seconds"
    settings = getattr(run.profile, stage)
    eager = settings.model_copy(update={"training": settings.training.model_copy(update={plan: 1e-9})})
    object.__setattr__(run, "profile", run.profile.model_copy(update={stage: eager}))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_save", save_then_die)
        with pytest.raises(KeyboardInterrupt):
            train(run, progress=False)
    assert saved == [1]
    train(run, progress=False)
    ours, theirs = (
        training.load_checkpoint(each.stage(stage) / training.WEIGHTS)[0] for each in (run, whole)
    )  # fmt: skip
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_latents_are_cached_with_mean_deviation_and_unit_scale(trained):
    run, _, record = trained
    mean, sigma, scale = training.cached_latents(run, run.stage("diffusion"), torch.empty(0))
    assert mean.shape == sigma.shape == (12, *run.profile.latent_shape)  # six volumes and their mirror images
    assert scale < record["results"]["latent_scale"]  # smoke has a mean latent: what it leaves is smaller
    drawn = (mean + sigma * torch.randn(mean.shape)) * scale
    assert float(drawn.std()) == pytest.approx(1, abs=0.1)


def test_exported_weights_are_a_pair_in_half_precision(trained, tmp_path):
    run = trained[0]
    training.export_weights(run.folder, tmp_path)
    pipeline = sampling.load_pipeline(tmp_path)
    original = sampling.load_pipeline(run.folder)
    for name, value in pipeline.unet.state_dict().items():
        assert torch.equal(value, original.unet.state_dict()[name].half().float())
    assert pipeline.ranges == original.ranges
    other = tmp_path / "other"
    shutil.copytree(tmp_path, other)
    shutil.copy(run.stage("autoencoder") / training.WEIGHTS, other / "autoencoder.safetensors")
    with pytest.raises(BrainLDMError, match="another autoencoder"):
        sampling.load_pipeline(other)


def test_weights_of_a_private_cohort_are_not_exported(tmp_path):
    run = blob_run(tmp_path, cohort="hospital")
    training.train_autoencoder(run, progress=False)
    training.train_diffusion(run, progress=False)
    with pytest.raises(BrainLDMError, match="cannot be given away"):
        training.export_weights(run.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
