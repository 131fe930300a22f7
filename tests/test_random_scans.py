"""What a scanner does to a rendered head: blur keeps amounts, masks leave nothing outside, scale does not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from brainldm_core import random_scans
from brainldm_core.loop import step_generator


def test_normalising_forgets_the_scale_of_a_scan():
    volume = torch.rand(12, 12, 12, generator=step_generator(0, 0))
    volume[:4] = 0
    assert torch.allclose(random_scans.normalise(volume), random_scans.normalise(700 * volume), atol=1e-5)
    assert random_scans.normalise(torch.zeros(4, 4, 4)).isnan().sum() == 0
    assert random_scans.normalise(torch.tensor([0.0, 1, 1, 1, 900]).view(5, 1, 1)).max() <= random_scans.BRIGHTEST


def test_blur_spreads_along_the_axis_it_is_told():
    point = torch.zeros(9, 9, 9)
    point[4, 4, 4] = 1
    out = random_scans.blurred(point, (0.0, 0.7, 0.0))
    assert out.sum() == pytest.approx(1, abs=1e-5)
    assert out[4, 3, 4] > 0.1 and out[3, 4, 4] == out[4, 4, 3] == 0


def test_stripping_keeps_the_brain_and_drops_what_is_far():
    distance = torch.linspace(-20, 30, 50).view(50, 1, 1).expand(50, 8, 8)
    for step in range(8):
        kept = random_scans.stripping(np.random.default_rng(step), distance, distance, step_generator(0, step))
        assert kept[:8].min() > 0.99 and kept[-10:].max() < 0.05


def test_degraded_images_are_finite_and_follow_their_means():
    mean = torch.full((16, 16, 16), 0.3)
    mean[:8] = 1.0
    kept = torch.zeros_like(mean)
    kept[:, :8] = 1
    for step in range(8):
        for mask in (None, kept):
            image = random_scans.degrade(
                np.random.default_rng(step), mean, 0.05 * mean, 0 * mean, mask, step_generator(1, step)
            )
            assert torch.isfinite(image).all() and image.min() >= 0
            assert image[:6, :6].mean() > image[-6:, :6].mean()
            assert mask is None or image[:, 9:].max() == 0
