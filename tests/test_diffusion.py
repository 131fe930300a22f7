"""Schedule, targets, conditioning and loss, against their formulas and the library's schedulers."""

import pytest
import torch

from brainldm_core import diffusion
from brainldm_core.errors import BrainLDMError
from brainldm_core.profiles import load_profile

PAPER = load_profile("paper").diffusion
TINY = load_profile("tiny").diffusion


def test_schedule_is_the_released_networks():
    betas = torch.linspace(0.0015**0.5, 0.0205**0.5, 1000, dtype=torch.float64) ** 2
    assert torch.allclose(diffusion.alpha_bars(PAPER), torch.cumprod(1 - betas, 0))


@pytest.mark.parametrize(("settings", "name"), [(PAPER, "epsilon"), (TINY, "v_prediction")])
def test_forward_process_and_velocity_agree_with_the_library(settings, name):
    from generative.networks.schedulers import DDPMScheduler

    scheduler = DDPMScheduler(
        1000, "scaled_linear_beta", beta_start=0.0015, beta_end=0.0205, prediction_type=name, clip_sample=False
    )
    latent, noise = torch.randn(4, 3, 2, 2, 2), torch.randn(4, 3, 2, 2, 2)
    steps = torch.tensor([0, 10, 500, 999])
    theirs = scheduler.add_noise(latent, noise, steps)
    assert torch.allclose(diffusion.add_noise(settings, latent, noise, steps), theirs, atol=1e-5)
    expected = noise if name == "epsilon" else scheduler.get_velocity(latent, noise, steps)
    assert torch.allclose(diffusion.target(settings, latent, noise, steps), expected, atol=1e-5)


@pytest.mark.parametrize("settings", [PAPER, TINY])
def test_prediction_splits_back_into_latent_and_noise(settings):
    latent, noise = torch.randn(3, 3, 2, 2, 2), torch.randn(3, 3, 2, 2, 2)
    steps = torch.tensor([1, 300, 700])
    noisy = diffusion.add_noise(settings, latent, noise, steps)
    clean, epsilon = diffusion.split_prediction(
        settings, diffusion.target(settings, latent, noise, steps), noisy, steps
    )
    assert torch.allclose(clean, latent, atol=2e-4)
    assert torch.allclose(epsilon, noise, atol=2e-4)


def test_condition_vector_has_masks_or_refuses_missing_values():
    values, present = torch.rand(2, 4), torch.tensor([[1.0, 1, 1, 1], [1, 0, 1, 1]])
    vector = diffusion.condition_vector(TINY.model_copy(update={"condition_gain": 3.0}), values, present)
    assert vector.shape == (2, 8)
    assert vector[1, 1] == 0 and vector[1, 5] == 0 and vector[0, 1] == 3 * values[0, 1]
    assert torch.equal(diffusion.condition_vector(PAPER, values, torch.ones(2, 4)), values)
    with pytest.raises(BrainLDMError, match="missing"):
        diffusion.condition_vector(PAPER, values, present)


@pytest.mark.parametrize("way", ["hybrid", "concatenation", "cross-attention"])
def test_condition_reaches_the_network_by_the_ways_of_the_profile(way):
    settings = TINY.model_copy(update={"conditioning": way})
    seen = {}

    def network(inputs, timesteps, context):
        seen.update(inputs=inputs, timesteps=timesteps, context=context)
        return inputs[:, :3]

    noisy, condition = torch.randn(2, 3, 4, 4, 4), torch.rand(2, 8)
    diffusion.predict(settings, network, noisy, torch.tensor([3, 4]), condition)
    assert seen["inputs"].shape == (2, 11, 4, 4, 4)
    assert torch.equal(seen["inputs"][:, 3:, 1, 2, 3], condition * (way != "cross-attention"))
    assert torch.equal(seen["context"][:, 0], condition * (way != "concatenation"))


def test_the_mean_latent_needs_hybrid_conditioning_and_hybrid_is_not_in_records():
    assert "conditioning" not in TINY.model_dump(mode="json")
    parts = TINY.model_dump(mode="json") | {"conditioning": "concatenation"}
    with pytest.raises(ValueError, match="mean_latent brings the request"):
        type(TINY).model_validate(parts)
    alone = type(TINY).model_validate(parts | {"mean_latent": False})
    assert alone.model_dump(mode="json")["conditioning"] == "concatenation"


def test_timesteps_are_stratified_and_shift_to_more_noise():
    uniform = TINY.model_copy(update={"timestep_shift": 1.0})
    draw = diffusion.draw_timesteps(uniform, 1000, torch.Generator().manual_seed(0))
    assert sorted(draw.tolist()) == list(range(1000))
    shifted = TINY.model_copy(update={"timestep_shift": 3.0})
    later = diffusion.draw_timesteps(shifted, 1000, torch.Generator().manual_seed(0))
    assert later.float().mean() > 600 and later.max() <= 999


def test_dropout_forgets_single_covariates_and_whole_rows():
    present = diffusion.drop_covariates(torch.ones(20_000, 4), 0.1, torch.Generator().manual_seed(0))
    assert abs(float(present.mean()) - 0.81) < 0.01
    assert abs(float((present.sum(1) == 0).float().mean()) - 0.1) < 0.01


def test_loss_is_the_mean_squared_error_of_the_replayed_draws():
    settings = TINY.model_copy(update={"covariate_dropout": 0.0})
    latent, values, present = torch.randn(4, 3, 4, 4, 4), torch.rand(4, 4), torch.ones(4, 4)
    network = lambda inputs, timesteps, context: inputs[:, :3] * 0.5  # noqa: E731
    draws = diffusion.draw_training(settings, latent, present, torch.Generator().manual_seed(5))
    loss = diffusion.diffusion_loss(settings, network, latent, values, *draws)

    replay = torch.Generator().manual_seed(5)
    steps = diffusion.draw_timesteps(settings, 4, replay)
    noise = torch.randn(latent.shape, generator=replay)
    bars = diffusion.alpha_bars(settings)[steps].float().reshape(-1, 1, 1, 1, 1)
    noisy = bars.sqrt() * latent + (1 - bars).sqrt() * noise
    velocity = bars.sqrt() * noise - (1 - bars).sqrt() * latent
    assert torch.allclose(loss, ((noisy * 0.5 - velocity) ** 2).mean(), atol=1e-6)
