"""Samplers against closed forms: where the network's answer is known, so is the path it should be followed along."""

import numpy as np
import pytest
import torch

from brainldm_core import samplers, sampling
from brainldm_core.diffusion import alpha_bars
from brainldm_core.errors import BrainLDMError
from brainldm_core.profiles import load_profile

TINY = load_profile("tiny").diffusion.model_copy(update={"prediction": "epsilon"})
MEAN, DEVIATION = 2.0, 0.5


def network(inputs, timesteps, context):
    """What predicts best the noise in latents of N(2, 0.5^2)."""
    bar = alpha_bars(TINY)[timesteps].float().reshape(-1, 1, 1, 1, 1)
    return (1 - bar).sqrt() * (inputs[:, :1] - bar.sqrt() * MEAN) / (bar * DEVIATION**2 + 1 - bar)


def draw(sampler, steps, shape=(1, 8, 8, 8)):
    """A latent, and the noise it began with."""
    times = samplers.sampler_timesteps(TINY, sampler, steps)
    found = sampling.denoise(
        TINY, network, torch.zeros(1, 8), [torch.Generator().manual_seed(3)], shape, times, 0.0, sampler=sampler
    )
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    return found, noise[None], times


def exact(noise, first):
    """Where the probability flow leads from the noise: at each level, the same place in a Gaussian of that width."""
    bar = float(alpha_bars(TINY)[first])
    place = (noise - bar**0.5 * MEAN) / (bar * DEVIATION**2 + 1 - bar) ** 0.5
    return MEAN + DEVIATION * place


@pytest.mark.parametrize("sampler", ["dpmpp", "unipc"])
def test_second_order_is_nearer_to_the_exact_flow_with_fewer_steps(sampler):
    errors = {}
    for name, steps in (("ddim", 10), ("ddim", 50), (sampler, 5), (sampler, 10), (sampler, 20)):
        found, noise, times = draw(name, steps)
        errors[name, steps] = float((found - exact(noise, times[0])).abs().mean())
    assert errors[sampler, 10] < 0.35 * errors["ddim", 10]
    assert errors[sampler, 10] < errors["ddim", 50]
    assert errors[sampler, 20] < 0.5 * errors[sampler, 10] < 0.25 * errors[sampler, 5]


def test_dpm_solver_is_its_published_formula():
    """Multistep second order (algorithm 2 of the paper), recomputed in double precision."""
    times = samplers.sampler_timesteps(TINY, "dpmpp", 6)
    bars = torch.cat([alpha_bars(TINY)[times], torch.ones(1, dtype=torch.float64)])
    alpha, sigma = bars.sqrt(), (1 - bars).sqrt()
    step = samplers.stepper(TINY, "dpmpp", times, 0.0, lambda: None, torch.device("cpu"))
    clean = [torch.full((1, 1, 1, 1, 1), float(np.sin(place + 1))) for place in range(6)]
    ours = theirs = torch.full((1, 1, 1, 1, 1), 0.7)
    for place in range(6):
        ours = step(place, clean[place], torch.zeros(()), ours)
        estimate = clean[place].double()
        if 0 < place < 5:  # first and last step are of first order
            log_snr = (alpha / sigma).log()
            ratio = (log_snr[place] - log_snr[place - 1]) / (log_snr[place + 1] - log_snr[place])
            estimate = estimate + (estimate - clean[place - 1]) / (2 * ratio)
        shrink = sigma[place + 1] / sigma[place]
        theirs = shrink * theirs + (alpha[place + 1] - shrink * alpha[place]) * estimate
        assert torch.allclose(ours.double(), theirs, atol=1e-5), place
    assert torch.allclose(ours, clean[-1], atol=1e-6), "the last step goes to the clean latent"


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 20, 50, 200, 1000])
def test_time_steps_are_even_in_log_snr_as_far_as_they_are_whole(steps):
    times = samplers.sampler_timesteps(TINY, "dpmpp", steps)
    assert len(times) == steps and times[0] == TINY.timesteps - 1 and times[-1] >= 0
    assert (np.diff(times) < 0).all()
    bars = alpha_bars(TINY).numpy()[times]
    gaps = np.diff(np.log(bars / (1 - bars)))
    if 2 < steps <= 10:
        assert gaps.max() < 1.15 * gaps.min()


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_every_sampler_gives_the_law_of_the_latents(sampler):
    found, _, _ = draw(sampler, 200 if sampler == "ddim" else 20, (1, 16, 16, 16))
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.04)
    assert float(found.std()) == pytest.approx(DEVIATION, rel=0.06)


def test_each_batch_begins_anew():
    """A multistep sampler remembers; what it remembers of one batch must not reach the next."""
    one, two = (draw("unipc", 4)[0] for _ in range(2))
    assert torch.equal(one, two)


def test_unknown_samplers_and_impossible_steps_are_refused():
    with pytest.raises(BrainLDMError, match="choose one of ddim, ddpm, dpmpp, unipc"):
        samplers.sampler_timesteps(TINY, "euler", 10)
    for sampler in ("ddim", "dpmpp", "unipc"):
        for steps in (0, 1001):
            with pytest.raises(BrainLDMError, match="choose 1 to 1000"):
                samplers.sampler_timesteps(TINY, sampler, steps)


def test_the_command_offers_every_sampler():
    from brainldm_core.cli import build_parser

    for sampler in samplers.SAMPLERS:
        assert build_parser().parse_args(["sample", "--sampler", sampler]).sampler == sampler
