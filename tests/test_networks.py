"""Parameter counts of the released network, the way out to MONAI core, and checkpoints."""

import json

import pytest
import torch
from safetensors.torch import save_file

from brainldm_core import networks
from brainldm_core.errors import BrainLDMError
from brainldm_core.profiles import load_profile, profile_names

SMOKE = load_profile("smoke")


def test_paper_networks_have_the_released_parameter_counts():
    paper = load_profile("paper")
    with torch.device("meta"):
        counts = [networks.parameter_count(build(paper)) for build in (networks.build_autoencoder, networks.build_unet)]
    assert counts == [13_766_248, 553_168_899]
    assert counts == [paper.expected[name].value for name in ("autoencoder_parameters", "unet_parameters")]


@pytest.mark.parametrize("name", profile_names())
def test_networks_map_the_profile_shapes(name):
    profile = load_profile(name)
    if name != "smoke":
        assert profile.latent_shape[1:] == tuple(side // profile.autoencoder.factor for side in profile.grid.shape)
        return
    volume = torch.rand(2, 1, *profile.grid.shape)
    reconstruction, mean, sigma = networks.build_autoencoder(profile)(volume)
    assert reconstruction.shape == volume.shape
    assert mean.shape == sigma.shape == (2, *profile.latent_shape)
    width = networks.conditioning_width(profile)
    inputs = torch.randn(2, profile.autoencoder.latent_channels + width, *profile.latent_shape[1:])
    output = networks.build_unet(profile)(inputs, timesteps=torch.tensor([1, 2]), context=torch.rand(2, 1, width))
    assert output.shape == (2, *profile.latent_shape)


def test_log_variance_starts_at_the_profile_bias():
    _, sigma = networks.build_autoencoder(SMOKE).encode(torch.rand(2, 1, *SMOKE.grid.shape))
    assert torch.allclose(sigma, torch.full_like(sigma, torch.e ** (SMOKE.autoencoder.log_variance_bias / 2)))


def test_same_weights_give_the_same_output_in_monai_core():
    from monai.networks.nets import AutoencoderKL

    ours = networks.build_autoencoder(SMOKE).eval()
    settings = SMOKE.autoencoder
    theirs = AutoencoderKL(
        spatial_dims=3, in_channels=1, out_channels=1, channels=settings.channels,
        latent_channels=settings.latent_channels, num_res_blocks=settings.residual_blocks,
        norm_num_groups=settings.norm_groups, attention_levels=[False] * len(settings.channels),
        with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False,
    ).eval()  # fmt: skip
    theirs.load_old_state_dict(dict(ours.state_dict()))
    volume = torch.rand(2, 1, *SMOKE.grid.shape)
    assert torch.allclose(ours.reconstruct(volume), theirs.reconstruct(volume), atol=1e-5)


def test_checkpoint_round_trip_holds_its_configuration(tmp_path):
    network = networks.build_autoencoder(SMOKE)
    path = tmp_path / "autoencoder.safetensors"
    networks.save_checkpoint(path, network.state_dict(), {"kind": "autoencoder", "profile": SMOKE.settings()})
    loaded, config = networks.load_network(path, "autoencoder")
    assert config["profile"] == json.loads(json.dumps(SMOKE.settings()))
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("content", ["pickle", "truncated", "foreign", "kind", "shape"])
def test_a_file_that_is_not_ours_says_so(tmp_path, content):
    path = tmp_path / "unet.safetensors"
    state = networks.build_unet(SMOKE).state_dict()
    if content == "pickle":
        torch.save(state, path)
    elif content == "foreign":
        save_file({"weight": torch.zeros(2)}, path)
    else:
        config = {"kind": "autoencoder" if content == "kind" else "unet", "profile": load_profile("tiny").settings()}
        networks.save_checkpoint(path, state, config)
        if content == "truncated":
            path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BrainLDMError, match=r"unet\.safetensors"):
        networks.load_network(path, "unet")


def test_missing_checkpoint_says_so(tmp_path):
    with pytest.raises(BrainLDMError, match="no such checkpoint"):
        networks.load_checkpoint(tmp_path / "none.safetensors")


@pytest.mark.parametrize("name", profile_names())
def test_baselines_and_brain_age_fit_every_grid(name):
    profile = load_profile(name)
    with torch.device("meta"):
        size = profile.baselines.latent_size
        volumes = networks.build_gan_generator(profile)(torch.empty(2, size))
        levels = networks.build_gan_discriminator(profile)(volumes)
        codes = networks.build_gan_encoder(profile)(volumes)
        ages = networks.build_brain_age(profile)(volumes)
    assert volumes.shape == (2, 1, *profile.grid.shape)
    assert codes.shape == (2, 2 * size) and ages.shape == (2, 1)
    factor = 2 ** len(profile.baselines.discriminator_channels)
    assert levels[-1].shape == (2, 1, *(side // factor for side in profile.grid.shape))
    assert [level.shape[1] for level in levels] == [*profile.baselines.discriminator_channels, 1]


def test_generator_of_the_paper_grows_from_the_grid_the_paper_names():
    paper = load_profile("paper")
    assert [side // paper.baselines.factor for side in paper.grid.shape] == [5, 7, 5]
    with torch.device("meta"):
        generator = networks.build_gan_generator(paper)
    assert tuple(generator[1].unflattened_size)[1:] == (5, 7, 5)
    assert sum(isinstance(block, torch.nn.Sequential) for block in generator) == 5


def test_doubling_starts_as_nearest_neighbour_and_a_kernel_of_three():
    torch.manual_seed(0)
    layer = networks.doubling(2, 3)
    # A kernel of 4 is a kernel of 3 spread by a box of 2; the corner gives the kernel back, entry by entry.
    wide, kernel = layer.weight.detach(), torch.zeros(2, 3, 3, 3, 3)
    for d, h, w in torch.cartesian_prod(*[torch.arange(3)] * 3).tolist():
        covered = kernel[:, :, max(0, d - 1) : d + 1, max(0, h - 1) : h + 1, max(0, w - 1) : w + 1].sum(dim=(2, 3, 4))
        kernel[:, :, d, h, w] = wide[:, :, d, h, w] - covered
    values = torch.randn(1, 2, 4, 5, 4)
    near = values.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    expected = torch.nn.functional.conv3d(near, kernel.flip(2, 3, 4).transpose(0, 1), layer.bias, padding=1)
    assert torch.allclose(layer(values), expected, atol=1e-4)


def test_brain_age_network_is_that_of_cole():
    network = networks.build_brain_age(load_profile("paper"))
    kinds = [type(part).__name__ for part in network[0]]
    assert kinds == ["Conv3d", "ReLU", "Conv3d", "BatchNorm3d", "ReLU", "MaxPool3d"]
    assert [block[0].out_channels for block in network[:5]] == [8, 16, 32, 64, 128]
    assert network[-1].in_features == 128 * 5 * 7 * 5
