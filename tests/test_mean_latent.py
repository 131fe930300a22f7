"""The regression of latents on covariates, and the UNet that learns what it leaves."""

from __future__ import annotations

import pytest
import torch

from brainldm_core import diffusion, mean_latent, sampling
from brainldm_core.profiles import load_profile

TINY = load_profile("tiny").diffusion
SHAPE = (3, 2, 2, 2)


def test_regression_finds_linear_latents_and_takes_missing_covariates_as_average():
    draw = torch.Generator().manual_seed(0)
    settings = TINY.model_copy(update={"condition_gain": 3.0, "mask_channels": True})
    values = torch.rand(4000, 4, generator=draw)
    rates, offset = torch.randn(4, 3, 2, 2, 2, generator=draw), torch.randn(3, 2, 2, 2, generator=draw)
    latents = offset + torch.einsum("nk,kcdhw->ncdhw", values, rates)
    noisy = latents + 0.01 * torch.randn(latents.shape, generator=draw)
    intercept, slopes = mean_latent.regress_latents(settings, noisy, values, torch.ones(4000, 4))

    def foretold(present):
        vectors = diffusion.condition_vector(settings, values, present)
        return intercept + torch.einsum("nk,kcdhw->ncdhw", vectors, slopes)

    assert torch.allclose(foretold(torch.ones(4000, 4)), latents, atol=0.02)
    assert torch.allclose(foretold(torch.zeros(4000, 4)), latents.mean(0), atol=0.02)
    without_age = values.clone()
    without_age[:, 1] = values[:, 1].mean()
    expected = offset + torch.einsum("nk,kcdhw->ncdhw", without_age, rates)
    assert torch.allclose(foretold(torch.tensor([[1.0, 0, 1, 1]]).expand(4000, -1)), expected, atol=0.02)


def test_regression_of_a_few_subjects_stays_near_their_mean():
    draw = torch.Generator().manual_seed(1)
    values, latents = torch.rand(3, 4, generator=draw), torch.randn(3, 1, 2, 2, 2, generator=draw)
    values[:, 0] = 1.0  # all of one sex: nothing can be learned from it
    intercept, slopes = mean_latent.regress_latents(TINY, latents, values, torch.ones(3, 4))
    assert torch.allclose(intercept, latents.mean(0)) and not slopes[0].any()
    foretold = torch.einsum("nk,kcdhw->ncdhw", diffusion.condition_vector(TINY, values, torch.ones(3, 4)), slopes)
    assert foretold.abs().max() < (latents - latents.mean(0)).abs().max()


class Inner(torch.nn.Module):
    """Keeps what it sees, and answers with a part of it."""

    def forward(self, x, timesteps, context):
        self.seen = {"x": x, "timesteps": timesteps, "context": context}
        return 0.5 * x[:, :3]


def wrapped(**changes) -> mean_latent.MeanLatentUNet:
    """A network with a random regression, its latents of shape SHAPE."""
    draw = torch.Generator().manual_seed(2)
    network = mean_latent.MeanLatentUNet(Inner(), TINY.model_copy(update=changes), 8, SHAPE)
    network.intercept, network.slopes = torch.randn(SHAPE, generator=draw), torch.randn(8, *SHAPE, generator=draw)
    return network


def test_the_inner_network_sees_and_predicts_what_the_regression_leaves():
    network, times = wrapped(), torch.tensor([10, 700])
    rest, noise, context = torch.randn(2, *SHAPE), torch.randn(2, *SHAPE), torch.rand(2, 1, 8)
    maps = torch.randn(2, 8, 2, 2, 2)
    mean = network.intercept + torch.einsum("bk,kcdhw->bcdhw", context[:, 0], network.slopes)
    noisy_rest = diffusion.add_noise(TINY, rest, noise, times)
    noisy = diffusion.add_noise(TINY, rest + mean, noise, times)
    output = network(torch.cat([noisy, maps], dim=1), timesteps=times, context=context)
    seen = network.unet.seen
    assert torch.allclose(seen["x"][:, :3], noisy_rest, atol=1e-5) and torch.equal(seen["x"][:, 3:11], maps)
    assert torch.allclose(seen["x"][:, 11:], mean, atol=1e-5)
    assert torch.equal(seen["timesteps"], times) and torch.equal(seen["context"], context)
    assert set(network.state_dict()) == {"intercept", "slopes"}
    # A prediction of the rest is a prediction of the latent: the clean estimates differ by the mean, noise agrees.
    clean, epsilon = diffusion.split_prediction(TINY, output, noisy, times)
    rest_clean, rest_epsilon = diffusion.split_prediction(TINY, 0.5 * noisy_rest, noisy_rest, times)
    assert torch.allclose(clean, rest_clean + mean, atol=1e-4) and torch.allclose(epsilon, rest_epsilon, atol=1e-4)


def test_a_network_that_predicts_noise_keeps_its_prediction():
    network = wrapped(prediction="epsilon")
    inputs, times = torch.randn(2, 11, 2, 2, 2), torch.tensor([10, 700])
    output = network(inputs, timesteps=times, context=torch.rand(2, 1, 8))
    assert torch.equal(output, 0.5 * network.unet.seen["x"][:, :3])


def test_the_scale_makes_what_the_regression_leaves_as_large_as_the_noise():
    draw = torch.Generator().manual_seed(3)
    values, present = torch.rand(500, 4, generator=draw), torch.ones(500, 4)
    rest, sigma = 0.3 * torch.randn(500, *SHAPE, generator=draw), torch.full((500, *SHAPE), 0.4)
    latents = 7 + 5 * values[:, :1, None, None, None] + rest
    network = wrapped()
    scale = network.fit(latents, sigma, values, present)
    assert scale == pytest.approx(1 / 0.5, rel=0.02)
    vectors = diffusion.condition_vector(TINY, values, present)
    assert torch.allclose(network.mean_latent(vectors) / scale, latents - rest, atol=0.2)


def test_sampling_starts_around_the_noisy_mean_latent_of_the_request():
    """With an exact network for people who are just their mean, every start gives that mean; so does its trace."""

    class Exact(Inner):
        def forward(self, x, timesteps, context):  # nothing is left: all of the input is noise, its velocity known
            signal, noise = diffusion.signal_and_noise(TINY, timesteps)
            self.first = getattr(self, "first", x[:, :3])
            return signal / noise * x[:, :3]

    network = wrapped()
    network.unet = Exact()
    condition, steps = torch.rand(2, 8), sampling.sampler_timesteps(TINY, "ddim", 10)
    draws = [sampling.sample_generator(0, number) for number in (1, 2)]
    with torch.no_grad():
        latent = sampling.denoise(TINY, network, condition, draws, SHAPE, steps, eta=0.0)
    assert torch.allclose(latent, network.mean_latent(condition), atol=1e-3)
    noise = torch.stack([torch.randn(SHAPE, generator=sampling.sample_generator(0, number)) for number in (1, 2)])
    assert torch.allclose(network.unet.first, noise, atol=1e-4), "the inner network starts from noise alone"
