"""The mean latent of a request by linear regression, and a UNet that learns what the regression leaves.

Not in the paper. Least squares over the training latents finds at once how the average brain moves with each covariate;
the diffusion model is left with everything else (residual diffusion, Mardani et al. 2023). A profile has it with
``diffusion.mean_latent``.
"""

from __future__ import annotations

import torch
from torch import nn

from .diffusion import condition_vector, signal_and_noise
from .profiles import Diffusion


def regress_latents(
    settings: Diffusion, latents: torch.Tensor, values: torch.Tensor, present: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Intercept (C, d, h, w) and slopes (K, C, d, h, w) of latents (N, C, d, h, w) on their conditioning vectors.

    Ridge regression on standardised covariates, with a penalty of one subject a covariate so that small cohorts do not
    run wild; a missing covariate counts as average. ``values`` and ``present`` are (N, 4).
    """
    known = present.sum(0).clamp(min=1)
    centre = (values * present).sum(0) / known
    spread = (((values - centre) ** 2 * present).sum(0) / known).sqrt().clamp(min=1e-6)
    design = (values - centre) / spread * present
    mean = latents.mean(0)
    penalty = values.shape[1] * torch.eye(values.shape[1])
    solution = torch.linalg.solve(design.T @ design + penalty, design.T @ (latents - mean).flatten(1))
    rates = solution / spread[:, None]
    # In the units of ``condition_vector``: of gain x value, then of the flags, which take the centre off.
    slopes = torch.cat([rates / settings.condition_gain, -centre[:, None] * rates])
    return mean, slopes.unflatten(1, mean.shape)


class MeanLatentUNet(nn.Module):
    """A UNet inside, whose input and output have the mean latent of the request taken off: equation eq-residual.

    To the outside it predicts noise or velocity of the latent itself, like any other UNet.
    """

    def __init__(self, unet: nn.Module, settings: Diffusion, width: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.unet, self.settings = unet, settings
        # Buffers: they travel in the checkpoint and are not trained.
        self.register_buffer("intercept", torch.zeros(shape))
        self.register_buffer("slopes", torch.zeros(width, *shape))

    def fit(self, latents: torch.Tensor, sigma: torch.Tensor, values: torch.Tensor, present: torch.Tensor) -> float:
        """Regress posterior means (N, C, d, h, w) on covariates (N, 4); return the latent scale, 1 / std(rest).

        The scale makes what the UNet has to draw as large as the noise; the regression is kept in scaled latents.
        """
        intercept, slopes = regress_latents(self.settings, latents, values, present)
        vectors = condition_vector(self.settings, values, present)
        rest = latents - intercept - (vectors @ slopes.flatten(1)).unflatten(1, intercept.shape)
        scale = 1 / float((rest.square().mean() + sigma.square().mean()).sqrt())
        self.intercept, self.slopes = intercept * scale, slopes * scale
        return scale

    def mean_latent(self, condition: torch.Tensor) -> torch.Tensor:
        """Mean latents (B, C, d, h, w) for conditioning vectors (B, K); float32 also under autocast."""
        moved = (condition.float()[:, :, None] * self.slopes.flatten(1)).sum(1)
        return self.intercept + moved.unflatten(1, self.intercept.shape)

    def noisy_mean(self, condition: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Mean (B, C, d, h, w) of the noisy latents of requests at time steps (B,): what sampling has to start around.

        The last time step of the schedule still holds one hundredth of the mean latent.
        """
        return signal_and_noise(self.settings, timesteps)[0] * self.mean_latent(condition)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """As the UNet inside, which sees (rest, maps of the condition, mean latent) and predicts for the rest."""
        mean = self.mean_latent(context[:, 0])
        signal, noise = signal_and_noise(self.settings, timesteps)
        latent, maps = x[:, : mean.shape[1]], x[:, mean.shape[1] :]
        rest = latent - signal * mean
        output = self.unet(
            torch.cat([rest.to(x.dtype), maps, mean.to(x.dtype)], dim=1), timesteps=timesteps, context=context
        )
        # Noise is the same for the latent and its rest; the velocity of the latent has that of the mean besides.
        return output if self.settings.prediction == "epsilon" else output.float() - noise * mean
