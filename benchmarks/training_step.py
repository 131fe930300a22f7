"""A training step of ours against the same step as MONAI's 3-D latent diffusion tutorial writes it, in one run.

    python benchmarks/training_step.py --profile smoke --profile tiny --steps 30 --out runs/training_step.json

times both networks of each profile: the same network, loss weights, batch and volumes in memory, adversarial term on.
Ours is the package's own training function, timed by its loss table (to 1 ms): autocast where the device gains from it,
cached latents, fused AdamW, clipping and moving average. The tutorial's is float32 and eager for the autoencoder, with
Adam; for the diffusion model it encodes each batch anew through ``LatentDiffusionInferer``, under autocast with
``GradScaler`` on a GPU. Left out of both: reading volumes, and LPIPS, whose weights are a download (both have the
offline loss). Each case has a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measures import choose_device, environment, peak_gib, reset_peak, spread
from torch import nn

from brainldm_core.covariates import draw_covariates
from brainldm_core.dataset import load_cohort, save_volume, volume_path, write_tables
from brainldm_core.networks import build_autoencoder, build_discriminator, build_unet, conditioning_width
from brainldm_core.networks import save_checkpoint as save
from brainldm_core.profiles import Profile, load_profile
from brainldm_core.records import Record, Run, write_json
from brainldm_core.training import WEIGHTS, cached_latents, train_autoencoder, train_diffusion

STAGES = ("autoencoder", "diffusion")
SKIP = 3  # first steps, in which libraries choose their algorithms
BATCHES = {("paper", "autoencoder"): 1, ("paper", "diffusion"): 4}  # what fits one GPU; else the profile's


def for_timing(profile: Profile, stage: str, steps: int) -> Profile:
    """A profile whose training is a few steps with every term of its loss."""
    batch = BATCHES.get((profile.name, stage), getattr(profile, stage).training.batch_size)
    plain = {"perceptual": "spectral", "adversarial_start_step": 0}
    changed = {}
    for name in STAGES:
        settings = getattr(profile, name)
        plan = settings.training.model_copy(update={"steps": SKIP + steps, "batch_size": batch, "warmup_steps": 0})
        changed[name] = settings.model_copy(update={"training": plan} | (plain if name == "autoencoder" else {}))
    return profile.model_copy(update=changed)


def random_run(profile: Profile, root: Path, subjects: int = 2) -> Run:
    """A run with a cohort of noise and an untrained autoencoder, both marked as finished."""
    run = Run(profile, "noise", 0, root)
    folder = run.stage("cohort")
    rng = np.random.default_rng(0)
    table = draw_covariates(subjects, rng)
    table.insert(0, "participant_id", [f"sub-{number:04d}" for number in range(subjects)])
    table.insert(1, "session_id", "n/a")
    table.insert(2, "split", "train")
    for name in table["participant_id"]:
        save_volume(volume_path(folder, name), rng.random(profile.grid.shape, np.float32), profile.grid.affine)
    write_tables(folder, table)
    Record(folder, "benchmarks/training_step.py", {}, {}).finish([folder / "participants.tsv"])
    if not (run.stage("autoencoder") / "record.json").exists():
        place = run.stage("autoencoder")
        config = {"kind": "autoencoder", "profile": profile.settings()}
        save(place / WEIGHTS, build_autoencoder(profile).state_dict(), config)
        Record(place, "benchmarks/training_step.py", {}, {}).finish([place / WEIGHTS])
    return run


def time_ours(stage: str, profile: Profile, device: torch.device, root: Path) -> list[float]:
    """Milliseconds of each step of the package's own training."""
    run = random_run(profile, root)
    if stage == "autoencoder":
        (run.stage(stage) / "record.json").unlink()
        reset_peak(device)
        train_autoencoder(run, progress=False)
    else:  # latents are made once: neither their time nor their memory is that of a step
        cached_latents(run, run.stage(stage), load_cohort(run.stage("cohort")).volumes("train"))
        reset_peak(device)
        train_diffusion(run, progress=False)
    with open(run.stage(stage) / "losses.csv", newline="", encoding="utf-8") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return [1000 * (after - before) for before, after in zip(seconds[SKIP - 1 :], seconds[SKIP:], strict=False)]


class Hybrid(nn.Module):
    """A UNet that reads its context from the maps that MONAI's inferer joins to the latent (mode ``concat``)."""

    def __init__(self, unet: nn.Module, latent_channels: int) -> None:
        super().__init__()
        self.unet, self.channels = unet, latent_channels

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: Any = None) -> torch.Tensor:
        """Noise (B, C, d, h, w) from latent and maps (B, C + K, d, h, w)."""
        return self.unet(x, timesteps=timesteps, context=x[:, None, self.channels :, 0, 0, 0])


def time_tutorial(stage: str, profile: Profile, device: torch.device, root: Path) -> list[float]:
    """Milliseconds of each step as the tutorial writes it."""
    plan = getattr(profile, stage).training
    volumes = torch.rand(max(4, plan.batch_size), 1, *profile.grid.shape)
    torch.manual_seed(0)
    step = (tutorial_autoencoder if stage == "autoencoder" else tutorial_diffusion)(profile, device)
    reset_peak(device)
    times = []
    for index in range(plan.steps):
        start = time.perf_counter()
        rows = torch.randint(len(volumes), (plan.batch_size,))
        step(volumes[rows].to(device))  # ends with .item(), as the tutorial's progress bar asks
        if index >= SKIP:
            times.append(1000 * (time.perf_counter() - start))
    return times


def tutorial_autoencoder(profile: Profile, device: torch.device):
    """The tutorial's step of the autoencoder and its discriminator, float32."""
    from monai.losses import PatchAdversarialLoss

    from brainldm_core.losses import perceptual_loss

    settings = profile.autoencoder
    autoencoder, discriminator = build_autoencoder(profile).to(device), build_discriminator(profile).to(device)
    optimiser_g = torch.optim.Adam(autoencoder.parameters(), lr=1e-4)
    optimiser_d = torch.optim.Adam(discriminator.parameters(), lr=1e-4)
    perceptual = perceptual_loss(settings.perceptual)
    adversarial = PatchAdversarialLoss(criterion="least_squares")

    def step(images: torch.Tensor) -> None:
        optimiser_g.zero_grad(set_to_none=True)
        reconstruction, mean, sigma = autoencoder(images)
        kl = 0.5 * torch.sum(mean.pow(2) + sigma.pow(2) - torch.log(sigma.pow(2)) - 1, dim=[1, 2, 3, 4])
        l1 = nn.functional.l1_loss(reconstruction.float(), images.float())
        loss = l1 + settings.kl_weight * kl.mean() + settings.perceptual_weight * perceptual(reconstruction, images)
        logits = discriminator(reconstruction.contiguous().float())[-1]
        generated = adversarial(logits, target_is_real=True, for_discriminator=False)
        (loss + settings.adversarial_weight * generated).backward()
        optimiser_g.step()
        optimiser_d.zero_grad(set_to_none=True)
        fake = adversarial(
            discriminator(reconstruction.contiguous().detach())[-1], target_is_real=False, for_discriminator=True
        )
        real = adversarial(discriminator(images.contiguous())[-1], target_is_real=True, for_discriminator=True)
        (settings.adversarial_weight * 0.5 * (fake + real)).backward()
        optimiser_d.step()
        l1.item(), generated.item(), fake.item()

    return step


def tutorial_diffusion(profile: Profile, device: torch.device):
    """The tutorial's step of the diffusion model: the batch is encoded, then its noise is predicted."""
    from generative.inferers import LatentDiffusionInferer
    from monai.networks.schedulers import DDPMScheduler

    settings = profile.diffusion
    autoencoder = build_autoencoder(profile).to(device).eval()
    unet = Hybrid(build_unet(profile), profile.autoencoder.latent_channels).to(device)
    scheduler = DDPMScheduler(
        num_train_timesteps=settings.timesteps,
        schedule="scaled_linear_beta",
        beta_start=settings.beta_start,
        beta_end=settings.beta_end,
    )
    inferer = LatentDiffusionInferer(scheduler)
    optimiser = torch.optim.Adam(unet.parameters(), lr=1e-4)
    half = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=half)

    def step(images: torch.Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.float16, enabled=half):
            noise = torch.randn(len(images), *profile.latent_shape, device=device)
            timesteps = torch.randint(0, settings.timesteps, (len(images),), device=device).long()
            maps = torch.rand(len(images), conditioning_width(profile), 1, 1, 1, device=device)
            maps = maps.expand(-1, -1, *profile.latent_shape[1:])
            predicted = inferer(images, autoencoder, unet, noise, timesteps, condition=maps, mode="concat")
            loss = nn.functional.mse_loss(predicted.float(), noise.float())
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        loss.item()

    return step


def time_case(profile: Profile, stage: str, recipe: str, device: torch.device, steps: int = 20) -> dict[str, Any]:
    """Time and peak memory of a step of ``ours`` or the ``tutorial``."""
    timed = for_timing(profile, stage, steps)
    plan = getattr(timed, stage).training
    with tempfile.TemporaryDirectory() as root:
        times = {"ours": time_ours, "tutorial": time_tutorial}[recipe](stage, timed, device, Path(root))
    case = {"profile": profile.name, "stage": stage, "recipe": recipe, "batch": plan.batch_size}
    return case | spread(times) | {"peak_gib": peak_gib(device), "load_average": os.getloadavg()[0]}


def compare(ours: dict[str, Any], tutorial: dict[str, Any]) -> dict[str, Any]:
    """Tutorial over ours: above 1, ours is faster or smaller."""
    ratios = {name: round(tutorial[name] / ours[name], 3) for name in ("median_ms", "peak_gib")}
    return {"profile": ours["profile"], "stage": ours["stage"], "tutorial_over_ours": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", action="append", help="may be given several times; default: smoke and tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--steps", type=int, default=20, help=f"timed steps, after {SKIP} others")
    parser.add_argument("--out", type=Path, help="JSON file of all results")
    parser.add_argument("--case", nargs=2, metavar=("STAGE", "RECIPE"), help="one case, printed as JSON")
    options = parser.parse_args()
    device, names = choose_device(options.device), options.profile or ["smoke", "tiny"]
    if options.case:
        print(json.dumps(time_case(load_profile(names[0]), *options.case, device, options.steps)))
        return
    content = {"environment": environment(device), "cases": [], "ratios": []}
    for name in names:
        for stage in STAGES:
            pair = []
            for recipe in ("ours", "tutorial"):
                words = [sys.executable, "-W", "ignore", __file__, "--profile", name, "--device", device.type]
                words += ["--steps", str(options.steps), "--case", stage, recipe]
                done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
                pair.append(json.loads(done.stdout.splitlines()[-1]))
                print(json.dumps(pair[-1]), flush=True)
            content["cases"] += pair
            content["ratios"].append(compare(*pair))
            print(json.dumps(content["ratios"][-1]), flush=True)
            if options.out:
                write_json(options.out, content)


if __name__ == "__main__":
    main()
