"""The networks of sections 2.1, 2.2 and 3 of the paper, built from a profile, and their checkpoints.

Every network of the book is built here and nowhere else. A checkpoint is one safetensors file with its
configuration (profile, covariate ranges, latent scale, training record) inside; no pickle is written.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .errors import BrainLDMError
from .mean_latent import MeanLatentUNet
from .profiles import Profile
from .records import atomic_path

COVARIATES = 4  # sex, age, ventricular volume, brain volume
FORMAT = "brainldm-1"


def build_autoencoder(profile: Profile) -> nn.Module:
    """KL autoencoder (section 2.2): volumes (B, 1, D, H, W) to latents (B, C, D/f, H/f, W/f) and back."""
    from generative.networks.nets import AutoencoderKL

    settings = profile.autoencoder
    network = AutoencoderKL(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        num_channels=settings.channels,
        latent_channels=settings.latent_channels,
        num_res_blocks=settings.residual_blocks,
        norm_num_groups=settings.norm_groups,
        norm_eps=1e-6,
        attention_levels=[False] * len(settings.channels),
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )
    if settings.log_variance_bias is not None:
        # A posterior that starts narrow gives a usable latent within minutes in short runs.
        nn.init.zeros_(network.quant_conv_log_sigma.conv.weight)
        nn.init.constant_(network.quant_conv_log_sigma.conv.bias, settings.log_variance_bias)
    return network


def build_discriminator(profile: Profile) -> nn.Module:
    """Patch discriminator of the autoencoder's adversarial loss (section 2.2)."""
    from generative.networks.nets import PatchDiscriminator

    return PatchDiscriminator(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        num_channels=profile.autoencoder.discriminator_channels,
        num_layers_d=profile.autoencoder.discriminator_layers,
        norm="INSTANCE",
    )


def conditioning_width(profile: Profile) -> int:
    """Channels of the conditioning vector: the four covariates, and four presence flags where the profile has them."""
    return COVARIATES * (2 if profile.diffusion.mask_channels else 1)


def build_unet(profile: Profile) -> nn.Module:
    """Denoising UNet with hybrid conditioning (section 2.1): (B, C + K, d, h, w) to (B, C, d, h, w)."""
    from generative.networks.nets import DiffusionModelUNet

    settings = profile.diffusion
    width = conditioning_width(profile)
    latent_channels = profile.autoencoder.latent_channels
    unet = DiffusionModelUNet(
        spatial_dims=3,
        in_channels=latent_channels * (2 if settings.mean_latent else 1) + width,
        out_channels=latent_channels,
        num_channels=settings.channels,
        num_res_blocks=settings.residual_blocks,
        attention_levels=settings.attention_levels,
        num_head_channels=settings.head_channels,
        norm_num_groups=settings.norm_groups,
        norm_eps=1e-6,
        resblock_updown=True,
        with_conditioning=True,
        transformer_num_layers=1,
        cross_attention_dim=width,
        upcast_attention=True,
    )
    return MeanLatentUNet(unet, settings, width, profile.latent_shape) if settings.mean_latent else unet


class Levels(nn.Sequential):
    """Blocks in a row that give every block's output, the last one last (as MONAI's patch discriminator does)."""

    def forward(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """Outputs of all blocks for (B, C, D, H, W)."""
        outputs = []
        for block in self:
            batch = block(batch)
            outputs.append(batch)
        return outputs


def doubling(before: int, after: int) -> nn.Module:
    """Convolution that doubles every side of (B, before, D, H, W); it starts as nearest neighbour and kernel of 3.

    A kernel of 4 with stride 2 can do all that the two do, with a third of the work; the start avoids checkerboards.
    """
    layer = nn.ConvTranspose3d(before, after, 4, 2, 1)
    kernel = nn.init.kaiming_normal_(torch.empty(after, before, 3, 3, 3)).transpose(0, 1)
    box = torch.ones(1, 1, 2, 2, 2)
    with torch.no_grad():
        spread = nn.functional.conv3d(nn.functional.pad(kernel.reshape(-1, 1, 3, 3, 3), (1,) * 6), box)
        layer.weight.copy_(spread.reshape(layer.weight.shape))
    return layer


def build_gan_generator(profile: Profile) -> nn.Module:
    """Generator of both baselines (section 3.1): (B, Z) to a small grid, x2 blocks, volumes (B, 1, D, H, W) in [0, 1].

    The paper's grid would grow from 5 x 7 x 5 in five blocks. Norms are not over the batch: a sample does not
    depend on its company.
    """
    settings = profile.baselines
    first, *widths = settings.generator_channels
    start = tuple(side // settings.factor for side in profile.grid.shape)
    blocks = [nn.Linear(settings.latent_size, first * math.prod(start)), nn.Unflatten(1, (first, *start))]
    for before, after in pairwise((first, *widths)):
        blocks.append(
            nn.Sequential(doubling(before, after), nn.GroupNorm(settings.norm_groups, after), nn.LeakyReLU(0.2))
        )
    return nn.Sequential(*blocks, nn.Conv3d(widths[-1], 1, 3, padding=1), nn.Sigmoid())


def build_gan_encoder(profile: Profile) -> nn.Module:
    """Encoder of the VAE-GAN (section 3.1): (B, 1, D, H, W) to means and log variances, (B, 2 Z)."""
    settings = profile.baselines
    blocks, shape = [], profile.grid.shape
    for before, after in pairwise((1, *settings.encoder_channels)):
        convolution = nn.Conv3d(before, after, 4, 2, 1)
        blocks.append(nn.Sequential(convolution, nn.GroupNorm(settings.norm_groups, after), nn.LeakyReLU(0.2)))
        shape = tuple(side // 2 for side in shape)
    last = nn.Linear(settings.encoder_channels[-1] * math.prod(shape), 2 * settings.latent_size)
    return nn.Sequential(*blocks, nn.Flatten(), last)


def build_gan_discriminator(profile: Profile) -> nn.Module:
    """Patch discriminator of both baselines (section 3.1): outputs of its levels, then logits (B, 1, d, h, w)."""
    from torch.nn.utils.parametrizations import spectral_norm

    channels = profile.baselines.discriminator_channels
    blocks = [
        nn.Sequential(spectral_norm(nn.Conv3d(before, after, 4, 2, 1)), nn.LeakyReLU(0.2))
        for before, after in pairwise((1, *channels))
    ]
    return Levels(*blocks, spectral_norm(nn.Conv3d(channels[-1], 1, 3, padding=1)))


def build_brain_age(profile: Profile) -> nn.Module:
    """Age network of Cole et al. 2017 (section 3.2): volumes (B, 1, D, H, W) to one number each, (B, 1)."""
    settings = profile.brain_age
    blocks, shape = [], profile.grid.shape
    for before, after in pairwise((1, *settings.channels)):
        convolutions = [nn.Conv3d(before, after, 3, padding=1), nn.ReLU(), nn.Conv3d(after, after, 3, padding=1)]
        blocks.append(nn.Sequential(*convolutions, nn.BatchNorm3d(after), nn.ReLU(), nn.MaxPool3d(2)))
        shape = tuple(side // 2 for side in shape)
    last = nn.Linear(settings.channels[-1] * math.prod(shape), 1)
    return nn.Sequential(*blocks, nn.Flatten(), nn.Dropout(settings.dropout), last)


def build_segmenter(channels: Sequence[int]) -> nn.Module:
    """UNet of the morphometry: volumes (B, 1, D, H, W) of 2 mm to logits of five tissues (B, 5, D, H, W).

    A level for each of ``channels``; sides must divide by two to the power of one less.
    """
    from monai.networks.nets import DynUNet
    from monai.networks.nets.dynunet import DynUNetSkipLayer

    strides = [1] + [2] * (len(channels) - 1)
    norm = ("INSTANCE", {"affine": True})
    network = DynUNet(3, 1, 5, [3] * len(channels), strides, strides[1:], filters=list(channels), norm_name=norm)
    layer = network.skip_layers
    while isinstance(layer, DynUNetSkipLayer):
        # It holds every block a second time, which would double a checkpoint: keep those as plain attributes.
        layer.__dict__.update({name: layer._modules.pop(name) for name in ("downsample", "next_layer", "upsample")})
        layer = layer.next_layer
    return network


def build(kind: str, profile: Profile) -> nn.Module:
    """Build a network by the kind that its checkpoint names."""
    builders = {
        "autoencoder": build_autoencoder,
        "unet": build_unet,
        "lsgan": build_gan_generator,
        "vaegan": build_gan_generator,
        "brain_age": build_brain_age,
    }
    return builders[kind](profile)


def default_device() -> str:
    """``cuda`` where there is one, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def mixed_precision(device: torch.device | None = None) -> str:
    """``bf16`` where the device multiplies it faster than float32 (a GPU, or a CPU with AMX tiles), else ``no``."""
    if device is not None and device.type == "cuda":
        return "bf16"
    if sys.platform.startswith("linux"):
        # AMX made a training step about three times faster here; without it bf16 on a CPU is slower than float32.
        cpuinfo = Path("/proc/cpuinfo")
        if cpuinfo.exists() and " amx_bf16" in cpuinfo.read_text(encoding="utf-8"):
            return "bf16"
    return "no"


def in_batches(
    function: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, batch: int, device: torch.device
) -> torch.Tensor:
    """Outputs (N, ...) of a network for inputs (N, ...), float32 on the CPU, computed in batches of one size.

    The last batch is padded with its last row, so that no output depends on what is computed beside it.
    """
    outputs = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision(device) == "bf16"):
        for part in inputs.split(batch) if len(inputs) else ():
            padded = torch.cat([part, part[-1:].expand(batch - len(part), *part.shape[1:])])
            outputs.append(function(padded.to(device))[: len(part)].float().cpu())
    return torch.cat(outputs) if outputs else torch.empty(0)


def parameter_count(network: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in network.parameters())


def save_checkpoint(path: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
    """Write tensors and their configuration into one safetensors file, atomically."""
    header = {"format": FORMAT, "config": json.dumps(config, allow_nan=False)}
    with atomic_path(path) as partial:
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial, header)
        except SafetensorError as error:  # the Rust side wraps a full disk in its own error
            raise BrainLDMError(f"{path}: cannot be written ({error}); free space or choose another folder") from None


def load_checkpoint(path: Path, kind: str | None = None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read the tensors and the configuration of one of our checkpoints.

    Raises:
        BrainLDMError: no such file, not safetensors, not ours, or another kind of checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise BrainLDMError(f"{path}: no such checkpoint; train one, or give another --weights")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise BrainLDMError(f"{path}: not a readable safetensors file ({error}); give a brainldm checkpoint") from None
    if header.get("format") != FORMAT:
        raise BrainLDMError(f"{path}: not a brainldm checkpoint (no {FORMAT!r} in its header); give another --weights")
    config = json.loads(header["config"])
    if kind is not None and config.get("kind") != kind:
        raise BrainLDMError(f"{path}: holds a {config.get('kind')!r} checkpoint, not {kind!r}; give another file")
    return tensors, config


def load_network(path: Path, kind: str) -> tuple[nn.Module, dict[str, Any]]:
    """Build the network that a checkpoint describes, in evaluation mode and float32, with its weights."""
    tensors, config = load_checkpoint(path, kind)
    network = build(kind, Profile.model_validate(config["profile"]))
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise BrainLDMError(f"{path}: weights do not fit their own configuration ({error}); fetch it again") from None
    return network.eval().requires_grad_(False), config
