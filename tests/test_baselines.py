"""Baselines on a cohort of blobs: the diffusion model's seconds, resumed after a kill, and samples by their ids."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from test_training import blob_run

from brainldm_core import baselines, loop, networks
from brainldm_core.errors import BrainLDMError
from brainldm_core.records import Record, open_run, read_record

pytestmark = pytest.mark.filterwarnings("ignore")


def run_with_diffusion(root, seconds):
    """A run of blobs whose diffusion record claims so many seconds of training."""
    run = blob_run(root)
    Record(run.stage("diffusion"), "test", {}, {}).finish(training_seconds=seconds)
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = run_with_diffusion(tmp_path_factory.mktemp("runs"), 1000.0)
    return run, baselines.train_baselines(run, progress=False)


def test_both_leave_weights_losses_and_records(trained):
    run, record = trained
    folder = run.stage("baselines")
    assert set(record["outputs"]) == {
        f"{name}/{file}" for name in baselines.BASELINES for file in ("weights.safetensors", "losses.csv")
    }
    assert record["results"]["budget_seconds"] == 1000.0
    for name in baselines.BASELINES:
        assert record["results"][name]["steps"] == 4  # the cap of the smoke profile, long before the budget
        losses = pd.read_csv(folder / name / "losses.csv")
        assert losses["step"].tolist() == list(range(4)) and np.isfinite(losses).all(axis=None)
        assert not (folder / name / loop.STATE).exists()
    assert {"kl", "feature"} <= set(losses)
    assert baselines.train_baselines(run, progress=False) == record


def test_each_is_given_the_seconds_of_the_diffusion_model(tmp_path, monkeypatch):
    run = run_with_diffusion(tmp_path, 37.5)
    budgets = []
    real_fit = loop.fit

    def fit(*arguments, **named):
        budgets.append((arguments[0].name, arguments[-1]))
        return real_fit(*arguments, **named)

    monkeypatch.setattr(baselines, "fit", fit)
    baselines.train_baselines(run, progress=False)
    assert budgets == [("lsgan", 37.5), ("vaegan", 37.5)]


def test_there_is_no_budget_before_the_diffusion_model_is_trained(tmp_path):
    with pytest.raises(BrainLDMError, match="diffusion: this stage is not finished"):
        baselines.train_baselines(blob_run(tmp_path), progress=False)


def test_a_profile_without_the_section_says_so(tmp_path):
    run = run_with_diffusion(tmp_path, 1.0)
    object.__setattr__(run, "profile", run.profile.model_copy(update={"baselines": None}))
    with pytest.raises(BrainLDMError, match="no section baselines"):
        baselines.train_baselines(run, progress=False)


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_a_kill_in_either_training_ends_with_the_same_weights(trained, tmp_path, monkeypatch, name):
    whole = trained[0]
    shutil.copytree(whole.folder, tmp_path / whole.name)
    run = open_run("smoke", "atlas", root=tmp_path)
    shutil.rmtree(run.stage("baselines"))
    real_save, saved = loop._save, []

    def save_then_die(folder, *rest):
        real_save(folder, *rest)
        if folder.name == name:
            saved.append(rest[4])
            raise KeyboardInterrupt

    settings = run.profile.baselines
    eager = settings.model_copy(update={"training": settings.training.model_copy(update={"checkpoint_seconds": 1e-9})})
    object.__setattr__(run, "profile", run.profile.model_copy(update={"baselines": eager}))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_save", save_then_die)
        with pytest.raises(KeyboardInterrupt):
            baselines.train_baselines(run, progress=False)
    assert saved == [1] and (run.stage("baselines") / name / loop.STATE).exists()
    if name == "vaegan":
        first = read_record(run.stage("baselines") / "lsgan")  # finished, and not trained again
    record = baselines.train_baselines(run, progress=False)
    if name == "vaegan":
        assert record["results"]["lsgan"] == first["results"]
    for each in baselines.BASELINES:
        ours, theirs = (
            networks.load_checkpoint(one.stage("baselines") / each / "weights.safetensors")[0] for one in (run, whole)
        )
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_a_sample_belongs_to_its_id_and_not_to_its_company(trained, name):
    run = trained[0]
    three, five = (baselines.sample_baseline(run, name, count, seed=3) for count in (3, 5))
    assert five.shape == (5, *run.profile.grid.shape) and five.dtype == np.float32
    assert five.min() >= 0 and five.max() <= 1
    assert np.array_equal(three, five[:3])
    assert len({volume.tobytes() for volume in five}) == 5
    assert not np.array_equal(three, baselines.sample_baseline(run, name, 3, seed=4))


def test_samples_are_what_the_generator_makes_of_the_ids_latents(trained):
    run = trained[0]
    generator, config = networks.load_network(run.stage("baselines") / "lsgan" / "weights.safetensors", "lsgan")
    size = run.profile.baselines.latent_size
    latents = torch.stack([torch.randn(size, generator=baselines.sample_generator(0, index)) for index in range(2)])
    assert np.allclose(baselines.sample_baseline(run, "lsgan", 2), generator(latents)[:, 0].numpy(), atol=0.02)
    assert config["training"]["cohort"] == "atlas"


def test_unknown_and_untrained_baselines_say_so(tmp_path, trained):
    with pytest.raises(BrainLDMError, match="choose one of lsgan, vaegan"):
        baselines.sample_baseline(trained[0], "stylegan", 1)
    with pytest.raises(BrainLDMError, match="no such checkpoint"):
        baselines.sample_baseline(open_run("smoke", "atlas", root=tmp_path), "lsgan", 1)


def test_weights_of_one_are_not_taken_for_the_other(trained, tmp_path):
    shutil.copytree(trained[0].folder, tmp_path / trained[0].name)
    run = open_run("smoke", "atlas", root=tmp_path)
    folder = run.stage("baselines")
    shutil.copy(folder / "lsgan" / "weights.safetensors", folder / "vaegan" / "weights.safetensors")
    with pytest.raises(BrainLDMError, match="holds a 'lsgan' checkpoint"):
        baselines.sample_baseline(run, "vaegan", 1)


def test_first_losses_replay_their_formulas(trained, tmp_path):
    """Step 0 by hand: least squares of both players, Kullback-Leibler and feature distance of the VAE-GAN."""
    run, settings = trained[0], trained[0].profile.baselines
    torch.manual_seed(run.seed)
    generator = networks.build_gan_generator(run.profile)
    discriminator = networks.build_gan_discriminator(run.profile)
    encoder = networks.build_gan_encoder(run.profile)
    volumes = baselines.load_cohort(run.stage("cohort")).volumes("train")
    draws = loop.step_generator(run.seed, 0)
    batch = volumes[loop.draw_rows(len(volumes), settings.training.batch_size, run.seed, 0)]
    batch = baselines.mirrored(batch, draws)
    prior, noise = torch.randn(2, len(batch), settings.latent_size, generator=draws)
    with torch.no_grad():
        mean, log_variance = encoder(batch).chunk(2, dim=1)
        fake = generator(torch.cat([mean + torch.exp(log_variance / 2) * noise, prior]))
        logits = discriminator(torch.cat([batch, fake]))[-1]
    real, made = logits[: len(batch)], logits[len(batch) :]
    expected = {
        "kl": float(0.5 * (mean**2 + log_variance.exp() - log_variance - 1).sum(dim=1).mean()),
        "discriminator": float(0.5 * ((real - 1) ** 2).mean() + 0.5 * (made**2).mean()),
    }
    first = pd.read_csv(run.stage("baselines") / "vaegan" / "losses.csv").iloc[0]
    for name, value in expected.items():
        assert first[name] == pytest.approx(value, rel=0.05), name  # bf16 where the processor has it
    a, b = torch.rand(2, 3, 2, 2, 2), torch.rand(2, 3, 2, 2, 2)
    assert float(baselines.feature_distance(a, b)) == pytest.approx(float(((a - b) ** 2).sum() / a.numel()))


def test_seconds_of_the_stage_hold_those_of_both_trainings(trained):
    run, record = trained
    folders = [run.stage("baselines") / name for name in baselines.BASELINES]
    assert record["seconds"] >= sum(read_record(folder)["seconds"] for folder in folders) - 0.2
