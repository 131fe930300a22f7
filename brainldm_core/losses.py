"""Losses of the autoencoder (section 2.2): L1, Kullback-Leibler, perceptual or spectral, patch-adversarial."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .errors import BrainLDMError


def kl_divergence(mean: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of N(mean, sigma^2) from N(0, 1), summed over a latent and averaged over the batch.

    ``mean`` and ``sigma`` have shape (B, C, d, h, w).
    """
    terms = 0.5 * (mean**2 + sigma**2 - 2 * torch.log(sigma) - 1)
    return terms.sum(dim=(1, 2, 3, 4)).mean()


def spectral_distance(reconstruction: torch.Tensor, volume: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of Fourier amplitudes, (B, 1, D, H, W): asks for texture where L1 only asks for means.

    Stands in for the perceptual loss where no pretrained network can be had.
    """
    return (amplitudes(reconstruction) - amplitudes(volume)).abs().mean()


def amplitudes(volume: torch.Tensor) -> torch.Tensor:
    """Amplitudes of the orthonormal 3-D Fourier transform of (B, 1, D, H, W)."""
    return torch.fft.rfftn(volume.float(), dim=(2, 3, 4), norm="ortho").abs()


def feature_distance(network: nn.Module, reconstruction: torch.Tensor, volume: torch.Tensor) -> torch.Tensor:
    """Squared difference of MedicalNet's unit feature vectors, averaged over places and batch; (B, 1, D, H, W).

    As MONAI's 3-D perceptual loss, but each volume is z-scored by itself: its loss does not depend on its company.
    """
    from .features import z_score

    ours, theirs = (
        nn.functional.normalize(network.maps(z_score(part.float())), dim=1) for part in (reconstruction, volume)
    )
    return ((ours - theirs) ** 2).sum(dim=1).mean()


def perceptual_loss(name: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | nn.Module:
    """The perceptual term of a profile: ``spectral`` works offline, ``lpips`` is the 2.5-D LPIPS of the paper's code.

    ``medicalnet`` compares in 3-D by features of MedicalNet, whose weights are fetched.

    Raises:
        BrainLDMError: ``lpips`` is not installed, or the file of ``medicalnet`` is missing or another one.
    """
    if name == "spectral":
        return spectral_distance
    if name == "medicalnet":
        from .features import MEDICALNET_FILE, find_medicalnet, load_medicalnet
        from .fetch import data_folder

        network, _ = load_medicalnet(find_medicalnet() or data_folder() / "medicalnet" / MEDICALNET_FILE)
        return lambda reconstruction, volume: feature_distance(network.to(volume.device), reconstruction, volume)
    try:
        import lpips  # noqa: F401 - only to name what is missing
    except ImportError:
        raise BrainLDMError(
            "perceptual: lpips needs the lpips extra and a torchvision that fits torch; "
            "pip install 'brainldm-core[lpips]', or set perceptual: spectral in the profile"
        ) from None
    from monai.losses import PerceptualLoss

    return PerceptualLoss(spatial_dims=3, network_type="squeeze", is_fake_3d=True, fake_3d_ratio=0.25)


def adversarial_loss(logits: torch.Tensor, real: bool) -> torch.Tensor:
    """Least-squares adversarial loss: the mean squared distance of patch logits from 1 (real) or 0 (generated)."""
    return ((logits.float() - float(real)) ** 2).mean()
