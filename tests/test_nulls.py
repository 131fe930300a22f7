"""Null systems: a Gaussian with the latents' mean and covariance, and a resampler that copies."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from test_sampling import RANGES, pipeline, rows  # noqa: F401

from brainldm_core import diffusion, nulls, sampling
from brainldm_core.covariates import encode
from brainldm_core.errors import BrainLDMError
from brainldm_core.samples import reconstruct
from brainldm_core.training import encode_latents


def test_the_gaussian_has_the_mean_and_the_covariance_of_the_latents():
    latents = torch.randn(40, 2, 1, 1, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0]) + 5
    latents[..., 0] += latents[..., 1]  # correlated
    drawn = nulls.draw_gaussian(latents, 40000, seed=1)
    assert drawn.shape == (40000, 2, 1, 1, 2)
    known, found = (np.cov(part.flatten(1).numpy().T) for part in (latents, drawn))
    assert np.allclose(found, known, atol=0.03 * np.abs(known).max())
    assert torch.allclose(drawn.mean(0), latents.mean(0), atol=0.1)
    assert torch.equal(nulls.draw_gaussian(latents, 3, 1), nulls.draw_gaussian(latents, 3, 1))
    assert not torch.equal(nulls.draw_gaussian(latents, 3, 1), nulls.draw_gaussian(latents, 3, 2))
    for wrong in ((latents[:1], 3), (latents, 0)):
        with pytest.raises(BrainLDMError, match="at least 2 and 1"):
            nulls.draw_gaussian(*wrong)


def test_decoded_latents_are_the_reconstructions(pipeline):  # noqa: F811
    volumes = torch.rand(5, 1, *pipeline.profile.grid.shape, generator=torch.Generator().manual_seed(0))
    latents, _ = encode_latents(pipeline.autoencoder, volumes)
    gap = np.abs(nulls.decode_all(pipeline, latents) - reconstruct(pipeline, volumes))
    assert gap.mean() < 0.004  # half precision
    assert nulls.decode_all(pipeline, latents).shape == (5, *pipeline.profile.grid.shape)
    assert nulls.latent_gaussian(pipeline, latents, 3).shape == (3, *pipeline.profile.grid.shape)


def test_the_resampler_takes_the_nearest_row_and_missing_values_do_not_count():
    training = rows(6)  # ages 50 to 75
    asked = rows(6).iloc[[4, 1]].assign(age_years=[71.0, 54.0])
    assert nulls.nearest_by_covariates(training, asked, RANGES).tolist() == [4, 1]
    asked = pd.DataFrame(asked).assign(ventricular_volume_ml=[None, 45.0])
    assert nulls.nearest_by_covariates(training, asked, RANGES).tolist() == [4, 1]
    other = training.assign(sex=["M"] * 5 + ["F"])
    assert nulls.nearest_by_covariates(other, asked, RANGES).tolist() == [5, 5]


def test_mean_for_requests_is_the_regression_decoded(pipeline, monkeypatch):  # noqa: F811
    shape, unet = pipeline.profile.latent_shape, pipeline.unet
    draw = torch.Generator().manual_seed(0)
    monkeypatch.setattr(unet, "intercept", torch.randn(shape, generator=draw))
    monkeypatch.setattr(unet, "slopes", torch.randn(8, *shape, generator=draw))
    asked = rows(2)
    asked.loc[1, "age_years"] = np.nan
    values, present = (torch.from_numpy(part) for part in encode(asked, pipeline.ranges))
    vectors = diffusion.condition_vector(pipeline.profile.diffusion, values, present)
    mean = unet.intercept + torch.einsum("bk,kcdhw->bcdhw", vectors, unet.slopes)
    with torch.inference_mode():
        expected = sampling.decode(pipeline, mean)[:, 0].numpy()
    found = nulls.mean_for_requests(pipeline, asked)
    assert found.std() > 0.01 and np.abs(found - expected).mean() < 0.004  # half precision
    plain = pipeline.profile.model_copy(
        update={"diffusion": pipeline.profile.diffusion.model_copy(update={"mean_latent": False})}
    )
    with pytest.raises(BrainLDMError, match="no mean_latent"):
        nulls.mean_for_requests(dataclasses.replace(pipeline, profile=plain), asked)
