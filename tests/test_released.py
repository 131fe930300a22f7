"""The released network: the same function as in MONAI core, from a server to volumes, and refused where it must be."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import test_fetch
import torch
import yaml
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler
from safetensors.torch import load_file

from brainldm_core import cli, manifests, networks, release_run, released, sampling, synthseg
from brainldm_core.errors import BrainLDMError
from brainldm_core.profiles import Profile, load_profile

pytestmark = pytest.mark.filterwarnings("ignore:`torch.cuda.amp")
server = test_fetch.server
ASKED = ("--age", 70, "--sex", "F", "--ventricles", "45ml", "--brain", "1500ml")
ROW = {"age_years": 70.0, "sex": "F", "ventricular_volume_ml": 45.0, "brain_volume_ml": 1500.0}


def standin(**diffusion) -> dict:
    """Settings with the structure of the paper's networks at widths for a test."""
    settings = load_profile("paper").settings()
    settings |= {"name": "standin", "grid": {"shape": [32, 64, 32], "spacing_mm": 5.0, "centre_mm": [0, -18, 4]}}
    settings |= {"baselines": None, "brain_age": None, "release": None, "expected": {}}
    settings["autoencoder"] |= {"channels": [4, 8, 8, 8], "norm_groups": 4}
    settings["diffusion"] |= {"channels": [8, 12, 16], "head_channels": [0, 12, 16], "norm_groups": 4} | diffusion
    settings["sampling"] |= {"batch_size": 2}
    return settings


def in_monai_core(profile: Profile) -> tuple[AutoencoderKL, DiffusionModelUNet]:
    """Both networks as the released configuration builds them."""
    one, two = profile.autoencoder, profile.diffusion
    levels = len(one.channels)
    autoencoder = AutoencoderKL(
        spatial_dims=3, in_channels=1, out_channels=1, latent_channels=3, channels=one.channels, num_res_blocks=2,
        norm_num_groups=one.norm_groups, norm_eps=1e-6, attention_levels=[False] * levels,
        with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False,
    )  # fmt: skip
    unet = DiffusionModelUNet(
        spatial_dims=3, in_channels=7, out_channels=3, channels=two.channels, num_res_blocks=2,
        attention_levels=[False, True, True], norm_num_groups=two.norm_groups, norm_eps=1e-6, resblock_updown=True,
        num_head_channels=two.head_channels, with_conditioning=True, transformer_num_layers=1, cross_attention_dim=4,
        upcast_attention=True, use_flash_attention=False,
    )  # fmt: skip
    return autoencoder.eval(), unet.eval()


@pytest.fixture(scope="module")
def states():
    """Random weights of the stand-in in the released layout, by the names of the released files."""
    torch.manual_seed(0)
    profile = Profile.model_validate(standin())
    found = {}
    for kind, name in released.FILES.items():
        network = networks.build(kind, profile)
        for parameter in network.parameters():  # the last convolution of a new UNet is zero
            torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
        found[name] = network.state_dict()
    return found


@pytest.fixture
def there(states, tmp_path, monkeypatch):
    """The stand-in's files and a manifest with their checksums; gives the folder and the profile's file."""
    monkeypatch.setattr(manifests, "FOLDER", tmp_path / "manifests")
    monkeypatch.setattr(sampling, "mixed_precision", lambda *_: "no")
    monkeypatch.setenv("BRAINLDM_DATA", str(tmp_path / "data"))
    manifests.FOLDER.mkdir()
    folder, profile = tmp_path / "copy", tmp_path / "standin.yaml"
    (folder / "models").mkdir(parents=True)
    profile.write_text(yaml.safe_dump(standin()))
    for name, state in states.items():
        torch.save(state, folder / name)
    manifest(folder, "http://127.0.0.1:9")
    return folder, profile


def manifest(folder, address):
    """Write the bundle's manifest as it is, but for the addresses and checksums of the files in a folder."""
    real = yaml.safe_load((Path(__file__).parents[1] / MANIFEST).read_text())
    for file in real["files"]:
        content = (folder / file["name"]).read_bytes()
        file |= {"url": f"{address}/{file['name']}", "checksum": f"md5:{hashlib.md5(content).hexdigest()}"}
    (manifests.FOLDER / f"{released.BUNDLE}.yaml").write_text(yaml.safe_dump(real))


MANIFEST = f"data_manifests/{released.BUNDLE}.yaml"


def call(capsys, *words):
    code = cli.main([str(word) for word in words])
    return code, *capsys.readouterr()


def test_names_and_shapes_of_the_full_size_are_those_of_monai_core():
    """MONAI renames the old names, takes every tensor, and finds each of the shape it needs."""
    paper = load_profile("paper")
    with torch.device("meta"):
        ours = [networks.build(kind, paper).state_dict() for kind in released.FILES]
        for theirs, state in zip(in_monai_core(paper), ours, strict=True):
            left = dict(state)
            theirs.load_old_state_dict(left)
            assert left == {} and len(state) == len(theirs.state_dict())
            assert sum(value.numel() for value in state.values()) in (13_766_248, 553_168_899)


def test_the_same_file_gives_the_same_outputs_here_and_in_monai_core(there, states):
    pipeline = released.load_released(*there, device="cpu")
    autoencoder, unet = in_monai_core(pipeline.profile)
    for theirs, state in zip((autoencoder, unet), states.values(), strict=True):
        theirs.load_old_state_dict(dict(state))
    volume, noisy = torch.rand(2, 1, 32, 64, 32), torch.randn(2, 7, 4, 8, 4)
    how = {"timesteps": torch.tensor([3, 800]), "context": torch.rand(2, 1, 4)}
    with torch.no_grad():
        for ours, wanted in zip(pipeline.autoencoder.encode(volume), autoencoder.encode(volume), strict=True):
            assert torch.allclose(ours, wanted, atol=1e-5)
        wanted = autoencoder.reconstruct(volume)
        assert torch.allclose(pipeline.autoencoder.reconstruct(volume), wanted, atol=1e-5) and wanted.std() > 0.01
        wanted = unet(noisy, **how)
        assert torch.allclose(pipeline.unet(noisy, **how), wanted, atol=1e-5) and wanted.std() > 0.01
    assert not any(value.is_meta for network in (pipeline.autoencoder, pipeline.unet) for value in network.buffers())
    assert pipeline.latent_scale == 1 and pipeline.profile.sampling.batch_size == 2


def bundle_sample(states, scaled, identity, seed, steps):
    """What the configuration of the release draws, by MONAI's own networks and scheduler, from our noise."""
    autoencoder, unet = in_monai_core(Profile.model_validate(standin()))
    for theirs, state in zip((autoencoder, unet), states.values(), strict=True):
        theirs.load_old_state_dict(dict(state))
    scheduler = DDIMScheduler(1000, "scaled_linear_beta", beta_start=0.0015, beta_end=0.0205, clip_sample=False)
    scheduler.set_timesteps(steps)
    latent = torch.randn(3, 4, 8, 4, generator=sampling.sample_generator(seed, identity))[None]
    context = torch.tensor([[scaled]])
    maps = context[:, 0, :, None, None, None].expand(1, 4, 4, 8, 4)
    with torch.no_grad():
        for time in scheduler.timesteps:
            output = unet(torch.cat([latent, maps], 1), timesteps=torch.tensor([time]), context=context)
            latent, _ = scheduler.step(output, time, latent)
        return autoencoder.decode_stage_2_outputs(latent)[0, 0].clamp(0, 1).numpy()


def test_from_the_server_to_volumes(there, states, server, tmp_path, monkeypatch, capsys):
    folder, profile = there
    monkeypatch.setattr(synthseg, "available", lambda: False)
    server.files = {name: (folder / name).read_bytes() for name in states}
    manifest(folder, server.address)
    out = tmp_path / "brains"
    words = ("sample", *ASKED, "--n", 1, "--seed", 5, "--steps", 4, "--out", out, "--profile", profile)
    code, _, err = call(capsys, *words, "--weights", "bundle")
    assert code == 2 and "autoencoder.pt: missing; get it with: brainldm data fetch brain-ldm-bundle" in err
    assert call(capsys, "data", "fetch", "brain-ldm-bundle")[0] == 0
    code, _, err = call(capsys, *words, "--weights", "bundle")
    assert (code, err) == (0, "")
    image = nib.load(out / "sub-000001" / "anat" / "sub-000001_T1w.nii.gz")
    scaled = [0.0, 26 / 38, (45000 - 6995.68) / (171375.0 - 6995.68), (1500000 - 1144240) / (1793910 - 1144240)]
    wanted = bundle_sample(states, scaled, identity=1, seed=5, steps=4)
    assert np.abs(image.get_fdata() - wanted).max() <= 0.5 / 255 + 1e-4 and 0.05 < wanted.std()
    sidecar = json.loads((out / "sub-000001" / "anat" / "sub-000001_T1w.json").read_text())
    hashes = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in states]
    assert list(sidecar["CheckpointSHA256"].values()) == hashes and sidecar["BatchSize"] == 2
    # A head is not measured by a rule that is made for brains.
    assert sidecar["MeasuredVolumes"] == {}
    written = pd.read_csv(out / "participants.tsv", sep="\t")
    assert list(written) == ["participant_id", "sex", "age_years", "ventricular_volume_ml", "brain_volume_ml"]


def test_voxels_lie_in_mni_space_right_anterior_superior():
    affine = np.array(load_profile("paper").grid.affine)
    assert nib.aff2axcodes(affine) == ("R", "A", "S") and np.allclose(np.diag(affine), 1)
    low, high = affine[:3, 3], (affine @ [159, 223, 159, 1])[:3]
    assert np.allclose((low + high) / 2, [0, -18, 4]) and np.allclose(high - low, [159, 223, 159])
    template = np.array([[-72, 72], [-107, 73], [-68, 82]])  # of the brain in MNI152, mm
    assert (low < template[:, 0]).all() and (high > template[:, 1]).all()


def test_a_wrong_file_is_named_and_never_opened(there, capsys, monkeypatch):
    folder, profile = there
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("opened"))
    path = folder / "models" / "model.pt"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    code, _, err = call(capsys, "sample", *ASKED, "--weights", folder, "--profile", profile)
    assert code == 2 and "models/model.pt: changed: md5 is" in err and "so it is not opened" in err
    path.unlink()
    code, _, err = call(capsys, "sample", *ASKED, "--weights", folder, "--profile", profile)
    assert code == 2 and "models/model.pt: missing" in err


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"mask_channels": True},
            "has mask channels, and the released network has not; use --profile paper",
        ),
        ({"prediction": "velocity", "beta_end": 0.02}, "has velocity prediction, another noise schedule"),
        (
            {"conditioning": "concatenation", "condition_gain": 4},
            "has conditioning by concatenation, a condition gain of 4",
        ),
        ({"channels": [8, 12, 20], "head_channels": [0, 12, 20]}, "is not the unet of profile 'standin'"),
    ],
)
def test_a_profile_that_does_not_fit_is_refused(there, changes, words):
    folder, profile = there
    profile.write_text(yaml.safe_dump(standin(**changes)))
    with pytest.raises(BrainLDMError, match=words):
        sampling.load_pipeline(folder, profile=profile)


def test_profiles_and_weights_of_ours_must_agree(there, capsys):
    folder, _ = there
    code, _, err = call(capsys, "sample", *ASKED, "--weights", folder, "--profile", "tiny")
    assert code == 2 and "profile 'tiny': has mask channels, a mean latent" in err
    code, _, err = call(capsys, "sample", *ASKED, "--weights", folder)  # of the paper's size they are not
    assert code == 2 and "is not the autoencoder of profile 'paper'" in err
    code, _, err = call(capsys, "sample", *ASKED, "--profile", "paper")
    assert code == 2 and "holds weights of profile 'tiny', not 'paper'" in err and "bundle" in err


def test_a_release_of_whole_heads_is_refused_as_it_cannot_be_measured(there, monkeypatch, tmp_path):
    monkeypatch.setattr(release_run, "load_pipeline", lambda *_: released.load_released(*there, device="cpu"))
    with pytest.raises(BrainLDMError, match="draws whole heads, which a release cannot measure"):
        release_run.draw_release(tmp_path / "set", there[0], 2)


def test_covariates_are_all_needed_and_out_of_range_warns(there):
    pipeline = released.load_released(*there, device="cpu")
    for name in ROW:
        with pytest.raises(BrainLDMError, match="a covariate is missing.*give age, sex, ventricular and brain volume"):
            sampling.sample(pipeline, pd.DataFrame([ROW | {name: None}]), [1], steps=1)
    with pytest.warns(UserWarning) as said:
        sampling.sample(pipeline, pd.DataFrame([ROW | {"age_years": 90, "brain_volume_ml": 1000}]), [1], steps=1)
    assert [str(one.message).split(" is outside")[0] for one in said] == ["age_years 90", "brain_volume_ml 1000"]


def test_our_weights_in_the_released_layout(states, tmp_path, capsys):
    """MONAI core reads what is written; so do we, with ranges and scale; what the layout cannot hold is refused."""
    pair, out = tmp_path / "pair", tmp_path / "out"
    config = {"profile": standin(), "training": {"cohort": "atlas"}, "latent_scale": 0.7, "ranges": released.RANGES}
    for kind, state in zip(released.FILES, states.values(), strict=True):
        if kind == "unet":
            config["autoencoder_sha256"] = hashlib.sha256((pair / "autoencoder.safetensors").read_bytes()).hexdigest()
        half = {key: value.half() for key, value in state.items()}
        networks.save_checkpoint(pair / f"{kind}.safetensors", half, config | {"kind": kind})
    code, said, _ = call(capsys, "export", pair, "--released", "--out", out)
    paths = [Path(line) for line in said.splitlines()]
    assert code == 0 and paths == [out / "models" / f"{name}.safetensors" for name in ("autoencoder", "model")]
    for theirs, path in zip(in_monai_core(Profile.model_validate(standin())), paths, strict=True):
        theirs.load_old_state_dict(load_file(path))
    noisy, context = torch.randn(1, 7, 4, 8, 4), torch.rand(1, 1, 4)
    read = sampling.load_pipeline(out, "cpu")
    with torch.no_grad():
        outputs = [unet(noisy, timesteps=torch.tensor([9]), context=context) for unet in (theirs, read.unet)]
    assert torch.allclose(*outputs, atol=1e-5)
    assert (read.latent_scale, read.ranges) == (0.7, released.RANGES)
    config["training"] = {"cohort": "ukbiobank"}
    networks.save_checkpoint(pair / "autoencoder.safetensors", half, config | {"kind": "autoencoder"})
    with pytest.raises(BrainLDMError, match="cannot be given away"):
        released.save_released(pair, tmp_path / "other")
    with pytest.raises(BrainLDMError, match="has mask channels.*without --released"):
        released.save_released(sampling.weight_files()[0].parent, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_large_volumes_are_decoded_in_equal_parts(there, monkeypatch):
    pipeline = released.load_released(*there, device="cpu")
    latent, voxels, sizes = torch.randn(6, 3, 2, 1, 1), 32 * 64 * 32, []
    whole = sampling.decode(pipeline, latent)
    network = pipeline.autoencoder.decode
    monkeypatch.setattr(pipeline.autoencoder, "decode", lambda part: sizes.append(len(part)) or network(part))
    for volumes in (6, 4.9, 0.5):  # at once
        monkeypatch.setattr(sampling, "DECODED_AT_ONCE", int(volumes * voxels))
        assert torch.allclose(sampling.decode(pipeline, latent), whole, atol=1e-5)
    assert sizes == [6, 3, 3, 1, 1, 1, 1, 1, 1]
