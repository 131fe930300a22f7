"""Losses of the autoencoder against closed forms."""

import pytest
import torch

from brainldm_core import losses
from brainldm_core.errors import BrainLDMError


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
