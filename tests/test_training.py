"""The two trainings on a cohort of blobs: ensured once, resumed after a kill, exported as a pair."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from brainldm_core import loop, networks, sampling, training
from brainldm_core.dataset import Cohort, load_cohort, save_volume, volume_path, write_tables
from brainldm_core.errors import BrainLDMError
from brainldm_core.networks import load_checkpoint
from brainldm_core.profiles import Optimisation, load_profile
from brainldm_core.records import Record, open_run, read_json, read_record

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


def trained_run(root):
    """A ``blob_run`` with both of its trainings."""
    run = blob_run(root)
    training.train_autoencoder(run, progress=False)
    training.train_diffusion(run, progress=False)
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


def test_the_latent_scale_is_that_of_all_training_volumes_and_their_mirror_images(trained):
    run, folder = trained[0], trained[0].stage("diffusion")
    mean, sigma, scale = training.cached_latents(run, folder, torch.empty(0))
    volumes = load_cohort(run.stage("cohort")).volumes("train")
    autoencoder, _ = networks.load_network(run.stage("autoencoder") / training.WEIGHTS, "autoencoder")
    alone = [
        training.encode_latents(autoencoder, volume[None]) for each in (volumes, volumes.flip(2)) for volume in each
    ]
    means, sigmas = (torch.cat(parts) for parts in zip(*alone, strict=True))
    assert torch.allclose(mean, means, atol=0.05) and torch.allclose(sigma, sigmas, atol=0.05)  # bf16 on some
    spread = ((means - means.mean()) ** 2).mean() + (sigmas**2).mean()  # of the mixture of all posteriors
    assert scale == pytest.approx(float(spread) ** -0.5, rel=0.02)


def test_latents_are_encoded_once_for_each_autoencoder(trained, tmp_path, monkeypatch):
    shutil.copytree(trained[0].folder, tmp_path / trained[0].name)
    run = open_run("smoke", "atlas", root=tmp_path)
    folder, volumes = run.stage("diffusion"), load_cohort(run.stage("cohort")).volumes("train")
    calls, encode = [], training.encode_latents

    def counted(*arguments):
        calls.append(arguments)
        return encode(*arguments)

    monkeypatch.setattr(training, "encode_latents", counted)
    before = training.cached_latents(run, folder, volumes)
    assert not calls
    weights = run.stage("autoencoder") / training.WEIGHTS
    tensors, config = training.load_checkpoint(weights)
    training.save_checkpoint(weights, {name: value * 1.5 for name, value in tensors.items()}, config)
    record = read_json(run.stage("autoencoder") / "record.json")
    Record(weights.parent, record["made_by"], record["settings"], record["inputs"], 0).finish([weights])
    after = training.cached_latents(run, folder, volumes)
    assert len(calls) == 1 and not torch.equal(after[0], before[0]) and after[2] != before[2]
    assert len(list(folder.glob("latents-*"))) == 2


def test_a_scan_that_is_not_finite_is_named_with_the_batch(trained, tmp_path, monkeypatch):
    shutil.copytree(trained[0].folder, tmp_path / trained[0].name)
    run = open_run("smoke", "atlas", root=tmp_path)
    whole = Cohort.volumes

    def hostile(cohort, split):
        volumes = whole(cohort, split)
        volumes[3, 0, 5, 5, 5] = float("nan")
        return volumes

    monkeypatch.setattr(Cohort, "volumes", hostile)
    shutil.rmtree(run.stage("diffusion"))
    with pytest.raises(BrainLDMError, match="latents of sub-0003 are not finite"):
        training.train_diffusion(run, progress=False)
    shutil.rmtree(run.stage("autoencoder"))
    step = next(step for step in range(4) if 3 in loop.draw_rows(6, 2, 0, step))
    batch = ", ".join(f"sub-{row:04d}" for row in loop.draw_rows(6, 2, 0, step))
    with pytest.raises(BrainLDMError) as error:
        training.train_autoencoder(run, progress=False)
    assert f"loss is not finite at step {step} " in str(error.value)
    assert f"its batch: {batch} (sub-0003: not finite itself)" in str(error.value)
    assert not read_record(run.stage("autoencoder"))


def test_a_batch_is_named_by_scans_and_sessions_mirror_images_included():
    rows = pd.DataFrame({"participant_id": ["sub-a", "sub-b"], "session_id": ["ses-1", "n/a"]})
    values = torch.zeros(4, 1)
    values[2] = float("inf")  # the mirror image of the first
    plan = Optimisation(steps=1, batch_size=4, learning_rate=1)
    order = loop.draw_rows(4, 4, 0, 0).tolist()
    scans = [["sub-a_ses-1", "sub-b"][row % 2] for row in order]
    expected = f"{', '.join(scans)} (sub-a_ses-1: not finite itself)"
    assert training.batch_names(rows, values, plan, 0)(0) == expected


def test_micro_batches_are_in_records_only_where_there_are_some():
    plan = load_profile("tiny").diffusion.training
    assert "accumulation" not in plan.model_dump(mode="json")
    assert plan.model_copy(update={"accumulation": 2}).model_dump(mode="json")["accumulation"] == 2


def test_exported_weights_are_a_pair_in_half_precision(trained, tmp_path):
    run = trained[0]
    training.export_weights(run.folder, tmp_path)
    pipeline = sampling.load_pipeline(tmp_path)
    original = sampling.load_pipeline(run.folder)
    for name, value in pipeline.unet.state_dict().items():
        assert torch.equal(value, original.unet.state_dict()[name].half().float())
    assert pipeline.ranges == original.ranges
    licence = load_checkpoint(tmp_path / "unet.safetensors")[1]["licence"]
    assert licence == training.LICENCES[run.cohort]
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
