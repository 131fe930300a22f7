"""Samplers against the library's schedulers, and law 3: a sample does not depend on its company."""

import numpy as np
import pandas as pd
import pytest
import torch

from brainldm_core import networks, sampling
from brainldm_core.diffusion import alpha_bars
from brainldm_core.errors import BrainLDMError
from brainldm_core.profiles import load_profile

SMOKE = load_profile("smoke")
TINY = load_profile("tiny").diffusion
ROW = {"age_years": 70.0, "sex": "F", "ventricular_volume_ml": 45.0, "brain_volume_ml": 1150.0}
RANGES = {
    "sex": (0.0, 1.0),
    "age_years": (44.0, 82.0),
    "ventricular_volume_ml": (7.0, 171.0),
    "brain_volume_ml": (1000.0, 1400.0),
}


def untrained_pipeline(sha256=None, training=None):
    """Networks of profile smoke as they begin, which draw noise with a shape."""
    torch.manual_seed(0)
    autoencoder, unet = networks.build_autoencoder(SMOKE).eval(), networks.build_unet(SMOKE).eval()
    for parameter in unet.parameters():  # the output convolution starts at zero: give the sample a shape
        torch.nn.init.normal_(parameter, std=0.05)
    return sampling.Pipeline(SMOKE, autoencoder, unet, RANGES, 1.0, sha256 or {}, training or {})


@pytest.fixture(scope="module")
def pipeline():
    return untrained_pipeline()


def rows(count):
    return pd.DataFrame([ROW | {"age_years": 50.0 + 5 * index} for index in range(count)])


@pytest.mark.parametrize(("prediction", "name"), [("epsilon", "epsilon"), ("velocity", "v_prediction")])
def test_ddim_is_the_library_sampler(prediction, name):
    from generative.networks.schedulers import DDIMScheduler

    settings = TINY.model_copy(update={"prediction": prediction})
    scheduler = DDIMScheduler(
        1000, "scaled_linear_beta", beta_start=0.0015, beta_end=0.0205, prediction_type=name, clip_sample=False
    )
    scheduler.set_timesteps(50)
    timesteps = sampling.sampler_timesteps(settings, "ddim", 50)
    assert timesteps == scheduler.timesteps.tolist()

    def network(inputs, timesteps, context):
        return torch.sin(inputs[:, :3] + timesteps[:, None, None, None, None] / 999)

    shape, condition = (3, 2, 3, 2), torch.zeros(2, 8)
    ours = sampling.denoise(
        settings, network, condition, [torch.Generator().manual_seed(k) for k in (1, 2)], shape, timesteps, 0.0
    )
    generators = [torch.Generator().manual_seed(k) for k in (1, 2)]
    draw = lambda: torch.stack([torch.randn(shape, generator=generator) for generator in generators])  # noqa: E731
    latent = draw()
    for time in timesteps:
        output = network(latent, torch.full((2,), time), None)
        latent, _ = scheduler.step(output, time, latent)
    assert torch.allclose(ours, latent, atol=1e-4)


@pytest.mark.parametrize(("sampler", "steps", "eta"), [("ddpm", 1000, 0.0), ("ddim", 500, 0.0), ("ddim", 500, 1.0)])
def test_a_gaussian_comes_back_with_its_mean_and_deviation(sampler, steps, eta):
    """For N(2, 0.5^2) the optimal prediction has a closed form; with many steps the samples must follow that law."""
    settings = TINY.model_copy(update={"prediction": "epsilon"})
    mean, deviation = 2.0, 0.5
    bars = alpha_bars(settings)

    def network(inputs, timesteps, context):
        bar = bars[timesteps].float().reshape(-1, 1, 1, 1, 1)
        return (1 - bar).sqrt() * (inputs[:, :1] - bar.sqrt() * mean) / (bar * deviation**2 + 1 - bar)

    draws = sampling.denoise(
        settings, network, torch.zeros(1, 8), [torch.Generator().manual_seed(3)], (1, 16, 16, 16),
        sampling.sampler_timesteps(settings, sampler, steps), eta, sampler=sampler,
    )  # fmt: skip
    assert float(draws.mean()) == pytest.approx(mean, abs=0.04)
    assert float(draws.std()) == pytest.approx(deviation, abs=0.03)


def test_a_sample_is_the_same_bytes_in_any_company(pipeline):
    together = sampling.sample(pipeline, rows(3), [5, 6, 7], steps=4)
    alone = sampling.sample(pipeline, rows(3).iloc[[1]], [6], steps=4)
    other_order = sampling.sample(pipeline, rows(3).iloc[[2, 1]], [7, 6], steps=4)
    assert together.shape == (3, *SMOKE.grid.shape)
    assert np.array_equal(together[1], alone[0])
    assert np.array_equal(together[[2, 1]], other_order)


def test_noise_comes_from_seed_and_id_and_the_request_matters(pipeline):
    base, other_id, other_seed = (
        sampling.sample(pipeline, rows(1), [identity], steps=4, seed=seed)
        for identity, seed in ((1, 0), (2, 0), (1, 1))
    )
    assert not np.array_equal(base, other_id)
    assert not np.array_equal(base, other_seed)
    request = pd.DataFrame([ROW | {"ventricular_volume_ml": 100.0, "age_years": 50.0}])
    assert not np.array_equal(base, sampling.sample(pipeline, request, [1], steps=4))


def test_missing_covariates_are_sampled_and_out_of_range_warns(pipeline):
    partly = pd.DataFrame([ROW | {"age_years": None}])
    assert np.isfinite(sampling.sample(pipeline, partly, [1], steps=2)).all()
    with pytest.warns(UserWarning, match="range"):
        sampling.sample(pipeline, pd.DataFrame([ROW | {"ventricular_volume_ml": 250.0}]), [1], steps=2)


def test_unknown_sampler_and_impossible_steps_are_refused():
    with pytest.raises(BrainLDMError, match="choose one of ddim, ddpm"):
        sampling.sampler_timesteps(TINY, "euler", 10)
    with pytest.raises(BrainLDMError, match="choose 1 to 1000"):
        sampling.sampler_timesteps(TINY, "ddim", 2000)


def test_trajectory_returns_the_clean_estimates_asked_for(pipeline):
    strip = sampling.sample(pipeline, rows(2), [1, 2], steps=4, trajectory=[0, 3])
    assert strip.shape == (2, 2, *SMOKE.grid.shape)
    final = sampling.sample(pipeline, rows(2), [1, 2], steps=4)
    assert np.allclose(strip[:, 1], final, atol=2e-2)


def test_folder_without_weights_says_so(tmp_path):
    with pytest.raises(BrainLDMError, match="no trained weights"):
        sampling.load_pipeline(tmp_path)


def test_guidance_multiplies_what_the_guided_covariates_add():
    """The network answers a linear function of its context, so each part of the guided answer is known."""
    weights = torch.tensor([1.0, 10.0, 100.0, 1000.0, 0, 0, 0, 0])

    def network(inputs, timesteps, context):
        return (context[:, 0] @ weights).reshape(-1, 1, 1, 1, 1).expand(-1, 1, 2, 2, 2)

    values, present = torch.tensor([[0.5, 0.25, 0.75, 0.125]]), torch.ones(1, 4)
    gain = SMOKE.diffusion.condition_gain
    asked = sampling.condition_vector(SMOKE.diffusion, values, present)
    without = sampling.condition_vector(SMOKE.diffusion, values, present * sampling.unguided(SMOKE))
    noisy, times = torch.zeros(1, 3, 2, 2, 2), torch.zeros(1, dtype=torch.long)
    answer = sampling.guided_prediction(SMOKE.diffusion, network, noisy, times, asked, without, 3.0)
    wanted = gain * (0.5 + 2.5 + 75 + 3 * 125)  # SMOKE guides the brain volume alone
    assert torch.allclose(answer, torch.full_like(answer, wanted))
    assert SMOKE.sampling.guided == ("brain_volume_ml",)


def test_guidance_acts_between_two_shares_of_the_schedule_only():
    widths = []

    def network(inputs, timesteps, context):
        widths.append(len(inputs))
        return inputs[:, :3]

    settings, condition = SMOKE.diffusion, torch.ones(2, 8)
    times = sampling.sampler_timesteps(settings, "ddim", 10)
    sampling.denoise(
        settings, network, condition, [torch.Generator().manual_seed(k) for k in (1, 2)], (3, 2, 2, 2), times, 0.0,
        without=torch.zeros(2, 8), guidance=2.0, interval=(0.2, 0.5),
    )  # fmt: skip
    assert widths == [4 if 0.2 <= time / settings.timesteps <= 0.5 else 2 for time in times]
    assert 2 in widths and 4 in widths


def test_guidance_changes_a_sample_and_one_is_none(pipeline):
    plain, guided = (sampling.sample(pipeline, rows(1), [1], steps=4, guidance=scale) for scale in (1.0, 5.0))
    assert not np.array_equal(plain, guided)
    assert np.array_equal(sampling.sample(pipeline, rows(1), [1], steps=4), sampling.sample(
        pipeline, rows(1), [1], steps=4, guidance=SMOKE.sampling.guidance_scale))  # fmt: skip
    unasked = pd.DataFrame([ROW | {"brain_volume_ml": None}])  # nothing to guide: the scale must not matter
    less, more = (sampling.sample(pipeline, unasked, [1], steps=4, guidance=scale) for scale in (1.5, 5.0))
    assert np.allclose(less, more, atol=1e-4)


def test_guidance_needs_mask_channels(pipeline):
    paper = load_profile("paper")
    with pytest.raises(BrainLDMError, match="mask channels"):
        sampling.unguided(paper)
    with pytest.raises(ValueError, match="mask_channels"):
        guided = paper.settings()["sampling"] | {"guidance_scale": 2}
        type(paper).model_validate(paper.settings() | {"sampling": guided})
