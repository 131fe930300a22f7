"""Losses of the autoencoder against closed forms."""

import pytest
import test_features
import torch

from brainldm_core import features, foreign, losses
from brainldm_core.errors import BrainLDMError

weights, saved = test_features.weights, test_features.saved  # random, in MedicalNet's layout


def test_kl_of_the_standard_normal_is_zero_and_of_a_shift_is_half_its_square():
    zeros, ones = torch.zeros(2, 3, 2, 2, 2), torch.ones(2, 3, 2, 2, 2)
    assert losses.kl_divergence(zeros, ones) == 0
    assert losses.kl_divergence(ones * 2, ones) == pytest.approx(0.5 * 4 * 24)


def test_kl_agrees_with_torch_distributions():
    mean, sigma = torch.randn(2, 3, 2, 2, 2), torch.rand(2, 3, 2, 2, 2) + 0.1
    ours = losses.kl_divergence(mean, sigma)
    normal = torch.distributions.Normal
    theirs = torch.distributions.kl_divergence(normal(mean, sigma), normal(0.0, 1.0)).flatten(1).sum(1).mean()
    assert torch.allclose(ours, theirs, rtol=1e-5)


def test_spectral_distance_ignores_shifts_and_sees_blur():
    volume = torch.rand(1, 1, 8, 8, 8)
    shifted = volume.roll((1, 2, 3), dims=(2, 3, 4))
    blurred = torch.nn.functional.avg_pool3d(volume, 3, 1, 1)
    assert losses.spectral_distance(shifted, volume) < 1e-5
    assert losses.spectral_distance(blurred, volume) > 0.01


def test_adversarial_loss_is_least_squares():
    logits = torch.tensor([0.0, 1.0, 3.0])
    assert losses.adversarial_loss(logits, real=True) == pytest.approx((1 + 0 + 4) / 3)
    assert losses.adversarial_loss(logits, real=False) == pytest.approx((0 + 1 + 9) / 3)


def test_missing_lpips_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lpips", None)
    with pytest.raises(BrainLDMError, match="lpips extra"):
        losses.perceptual_loss("lpips")


def test_medicalnet_distance_is_that_of_monai(weights):
    """Its module, around our network of the dilated features, which MONAI would download."""
    from monai.losses.perceptual import MedicalNetPerceptualSimilarity

    network = foreign.filled(features.MedicalNet, weights, "random", "MedicalNet")
    theirs = MedicalNetPerceptualSimilarity.__new__(MedicalNetPerceptualSimilarity)
    torch.nn.Module.__init__(theirs)
    theirs.model, theirs.channel_wise = torch.nn.Module(), False
    theirs.model.forward = network.maps
    first, second = torch.rand(2, 2, 1, 16, 24, 16, generator=torch.Generator().manual_seed(0))
    second.requires_grad_()
    found = losses.feature_distance(network, second, first)
    # One by one: MONAI z-scores a batch as a whole.
    expected = [theirs(one[None], other[None]).mean() for one, other in zip(first, second, strict=True)]
    assert torch.allclose(found, sum(expected) / 2, rtol=1e-3) and found > 1e-4
    found.backward()
    assert float(second.grad.abs().sum()) > 0
    assert losses.feature_distance(network, first, first) == 0


def test_medicalnet_is_read_from_the_fetched_file_after_its_checksum(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINLDM_DATA", str(tmp_path))
    with pytest.raises(BrainLDMError, match="medicalnet/resnet_50_23dataset.pth: no such file; get it with: brainldm"):
        losses.perceptual_loss("medicalnet")
    (tmp_path / "medicalnet").mkdir()
    (tmp_path / "medicalnet" / features.MEDICALNET_FILE).write_bytes(saved[0].read_bytes())
    with pytest.raises(BrainLDMError, match="SHA-256 is"):
        losses.perceptual_loss("medicalnet")
    monkeypatch.setattr(features, "MEDICALNET_SHA256", saved[1])
    volume = torch.rand(1, 1, 16, 16, 16)
    assert losses.perceptual_loss("medicalnet")(volume, volume) == 0
