"""Forward passes of a profile's UNet and decoder in many forms, and whole volumes by three recipes.

Weights are random: times do not depend on them. Layers that start at zero are given weights too, since multiplying
zeros draws less power and runs faster.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import torch
from measures import counted_tflop, full_float32, peak_gib, reset_peak, synchronise, time_calls
from torch import nn

from brainldm_core.networks import build_autoencoder, build_unet, conditioning_width
from brainldm_core.profiles import Profile
from brainldm_core.sampling import Pipeline, denoise, sample, sample_generator, sampler_timesteps

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}


@dataclass(frozen=True)
class Form:
    """One cell of the square: which network, on how many volumes, in which form."""

    network: str
    batch: int
    precision: str
    compiled: bool
    layout: str

    @property
    def name(self) -> str:
        """Name of its result."""
        mode = "compiled" if self.compiled else "eager"
        return f"forward-{self.network}-{self.batch}-{self.precision}-{mode}-{self.layout}"


def forms(precision: str, batch: int) -> list[Form]:
    """Cells of the square of a precision; those that are most likely to be used first."""
    sizes = [("unet", batch), ("decoder", 1), ("unet", 1)]
    return [
        Form(network, count, precision, compiled, layout)
        for (network, count), compiled, layout in product(sizes, (False, True), reversed(LAYOUTS))
    ]


def random_network(kind: str, profile: Profile, device: torch.device) -> nn.Module:
    """UNet or autoencoder with random weights, the same on each call; none of its layers is zero."""
    torch.manual_seed(0)
    with torch.device(device):
        network = build_unet(profile) if kind == "unet" else build_autoencoder(profile)
        for weight in network.parameters():
            if weight.dim() > 1 and device.type != "meta" and not weight.any():
                nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return network.eval().requires_grad_(False)


def example(kind: str, profile: Profile, batch: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Random inputs of a network: (B, C + K, d, h, w), time steps and context; or latents (B, C, d, h, w)."""
    channels, *sides = profile.latent_shape
    if kind == "decoder":
        return {"z": torch.randn(batch, channels, *sides, device=device)}
    width = conditioning_width(profile)
    return {
        "x": torch.randn(batch, channels + width, *sides, device=device),
        "timesteps": torch.full((batch,), profile.diffusion.timesteps // 2, device=device),
        "context": torch.rand(batch, 1, width, device=device),
    }


def in_form(network: nn.Module, precision: str, layout: str) -> nn.Module:
    """A network in another precision and layout; only weights of convolutions (five axes) have a layout."""
    network.to(DTYPES[precision])
    for weight in network.parameters():
        if weight.dim() == 5:
            weight.data = weight.data.to(memory_format=LAYOUTS[layout])
    return network


def shaped(inputs: dict[str, torch.Tensor], form: Form) -> dict[str, torch.Tensor]:
    """Inputs in a form's precision and layout; time steps stay whole numbers."""
    changed = {}
    for name, value in inputs.items():
        value = value.to(DTYPES[form.precision]) if value.is_floating_point() else value
        changed[name] = value.to(memory_format=LAYOUTS[form.layout]) if value.dim() == 5 else value
    return changed


def time_form(
    form: Form,
    profile: Profile,
    device: torch.device,
    backend: str = "inductor",
    quiet: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[str, Any]:
    """Times, peak memory, rate and error of one form; the error is relative to float32 without TF32, on one volume.

    Args:
        backend: of ``torch.compile``.
        quiet: context in which is timed; all else on the machine should rest there.
    """
    meta = torch.device("meta")
    kind = form.network

    def entry(network: nn.Module) -> Callable[..., torch.Tensor]:
        return network if kind == "unet" else network.decode

    counted, empty = random_network(kind, profile, meta), example(kind, profile, form.batch, meta)
    work = counted_tflop(lambda: entry(counted)(**empty))
    network = random_network(kind, profile, device)
    inputs = example(kind, profile, form.batch, device)
    with torch.no_grad():
        with full_float32():
            reference = entry(network)(**{name: value[:1] for name, value in inputs.items()}).float()
        in_form(network, form.precision, form.layout)
        inputs = shaped(inputs, form)
        function = entry(network)
        if form.compiled:
            torch.compiler.reset()
            function = torch.compile(function, fullgraph=True, dynamic=False, backend=backend)
        reset_peak(device)
        start = time.perf_counter()
        output = function(**inputs)
        synchronise(device)
        first = time.perf_counter() - start
        error = float((output[:1].float() - reference).norm() / reference.norm())
        function(**inputs)
        with quiet():
            times = time_calls(lambda: function(**inputs), device)
    return {
        **asdict(form),
        "profile": profile.name,
        **times,
        "first_call_s": round(first, 1),
        "peak_gib": peak_gib(device),
        "counted_tflop": round(work, 6),
        "tflops": round(1000 * work / times["median_ms"], 3),
        "relative_error": round(error, 6),
    }


class InHalf(nn.Module):
    """A bfloat16, channels-last network inside code that works in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = in_form(network, "bf16", "channels_last_3d")

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """As the network inside: float32 in and out."""
        x = x.to(DTYPES["bf16"], memory_format=torch.channels_last_3d)
        return self.network(x, timesteps=timesteps, context=context.to(DTYPES["bf16"])).float()


def bundle_parts(
    profile: Profile, device: torch.device
) -> tuple[Callable[[], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]:
    """As the released bundle draws: one volume, float32, eager, a scheduler on the host; its decoder under autocast.

    Returns what draws a latent (1, C, d, h, w), and what makes a volume (1, 1, D, H, W) of it, on the host.
    """
    from monai.networks.schedulers import DDIMScheduler

    settings = profile.diffusion
    unet, autoencoder = (random_network(kind, profile, device) for kind in ("unet", "decoder"))
    scheduler = DDIMScheduler(
        num_train_timesteps=settings.timesteps,
        schedule="scaled_linear_beta",
        beta_start=settings.beta_start,
        beta_end=settings.beta_end,
        clip_sample=False,
    )
    scheduler.set_timesteps(num_inference_steps=profile.sampling.steps)
    context = torch.rand(1, 1, conditioning_width(profile), device=device)
    maps = context[:, 0, :, None, None, None].expand(-1, -1, *profile.latent_shape[1:])

    def draw() -> torch.Tensor:
        image = torch.randn(1, *profile.latent_shape).to(device)
        for time_step in scheduler.timesteps:
            now = torch.Tensor((time_step,)).to(device).long()
            output = unet(torch.cat((image, maps), dim=1), timesteps=now, context=context)
            image, _ = scheduler.step(output, time_step, image)
        return image

    def decode(latent: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            return autoencoder.decode_stage_2_outputs(latent).float().cpu()

    return draw, decode


def bundle_recipe(profile: Profile, device: torch.device, backend: str) -> tuple[Callable[[], Any], int]:
    """``bundle_parts`` one after the other."""
    draw, decode = bundle_parts(profile, device)
    return lambda: decode(draw()), 1


def package_recipe(profile: Profile, device: torch.device, backend: str) -> tuple[Callable[[], Any], int]:
    """As ``brainldm sample`` draws a batch of the profile: float32 weights under autocast, eager."""
    import pandas as pd

    unet, autoencoder = (random_network(kind, profile, device) for kind in ("unet", "decoder"))
    row = {"sex": "F", "age_years": 60.0, "ventricular_volume_ml": 30.0, "brain_volume_ml": 1100.0}
    ranges = {name: (0.0, 1.0 if name == "sex" else 2000.0) for name in row}
    pipeline = Pipeline(profile, autoencoder, unet, ranges, 1.0, {}, {})
    count = profile.sampling.batch_size
    table = pd.DataFrame([row] * count)
    return lambda: sample(pipeline, table, list(range(count)), steps=profile.sampling.steps, guidance=1.0), count


def tuned_recipe(profile: Profile, device: torch.device, backend: str) -> tuple[Callable[[], Any], int]:
    """As it could be: bfloat16, channels-last, compiled, coefficients on the device; a batch, decoded one by one."""
    unet, autoencoder = (random_network(kind, profile, device) for kind in ("unet", "decoder"))
    in_form(autoencoder, "bf16", "channels_last_3d")
    torch.compiler.reset()
    predict = torch.compile(InHalf(unet), fullgraph=True, dynamic=False, backend=backend)
    decode = torch.compile(autoencoder.decode, fullgraph=True, dynamic=False, backend=backend)
    count, settings = profile.sampling.batch_size, profile.diffusion
    condition = torch.rand(count, conditioning_width(profile), device=device)
    visited = sampler_timesteps(settings, "ddim", profile.sampling.steps)

    def draw() -> torch.Tensor:
        generators = [sample_generator(0, number) for number in range(count)]
        latent = denoise(settings, predict, condition, generators, profile.latent_shape, visited, 0.0)
        latent = latent.to(DTYPES["bf16"], memory_format=torch.channels_last_3d)
        return torch.cat([decode(part).float().clamp(0, 1).cpu() for part in latent.split(1)])

    return draw, count


RECIPES = {"bundle": bundle_recipe, "package": package_recipe, "tuned": tuned_recipe}


def time_recipe(
    name: str,
    profile: Profile,
    device: torch.device,
    backend: str = "inductor",
    quiet: Callable[[], AbstractContextManager] = nullcontext,
    repeats: int = 3,
) -> dict[str, Any]:
    """Seconds a volume by a recipe, decoding and the way to the host included."""
    draw, count = RECIPES[name](profile, device, backend)
    with torch.no_grad():
        start = time.perf_counter()
        draw()
        first = time.perf_counter() - start
        reset_peak(device)
        seconds = []
        with quiet():
            for _ in range(repeats):
                start = time.perf_counter()
                draw()  # ends on the host, so that the device has finished
                seconds.append((time.perf_counter() - start) / count)
    return {
        "recipe": name,
        "profile": profile.name,
        "steps": profile.sampling.steps,
        "batch": count,
        "seconds_a_volume": round(statistics.median(seconds), 5),
        "range_s": [round(min(seconds), 5), round(max(seconds), 5)],
        "n": repeats,
        "first_call_s": round(first, 1),
        "peak_gib": peak_gib(device),
    }
