"""What a change of a profile's settings does to reconstructions and samples: the experiments of the decisions page.

    python benchmarks/design.py runs/tiny-atlas --set diffusion.mean_latent=false --set diffusion.training.steps=600

takes the cohort of a finished run, trains what the settings concern (the autoencoder is the run's own unless a setting
of it changes), draws the held-out requests and prints one line each for reconstructions and samples: seconds of
training, PSNR, correlation and slope of the volumes asked for and measured, and FID. One run at a time: two trainings
on the same cores slow each other down many times over. Nothing is written to the run; trials lie under ``--out`` and
resume there, and leave their numbers in ``trial.json``. Those that a chapter shows lie in ``book/published/trials``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import yaml
from measures import psnr_in_mask

from brainldm_core.conditioning import ASKED_AND_MEASURED, agreement
from brainldm_core.dataset import load_cohort
from brainldm_core.features import extract, offline_extractor
from brainldm_core.metrics import frechet_distance
from brainldm_core.nulls import mean_for_requests
from brainldm_core.profiles import Profile
from brainldm_core.records import Run, commit, hardware, read_json, write_json
from brainldm_core.samples import measure_all, reconstruct
from brainldm_core.sampling import load_pipeline, sample
from brainldm_core.training import train_autoencoder, train_diffusion


def with_settings(profile: dict, changes: list[str]) -> Profile:
    """A profile with ``section.key=value`` changes, values as in YAML."""
    for change in changes:
        place, _, value = change.partition("=")
        *path, last = place.split(".")
        section = profile
        for name in path:
            section = section[name]
        section[last] = yaml.safe_load(value)
    return Profile.model_validate(profile)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="changes")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings and of the noise")
    parser.add_argument("--guidance", type=float, nargs="*", help="scales to draw with; default: the profile's")
    parser.add_argument("--steps", type=int, help="of ddim; default: the profile's")
    parser.add_argument("--out", type=Path, default=Path("runs/trials"), help="default runs/trials")
    options = parser.parse_args()

    made = read_json(options.run / "run.json")
    profile = with_settings(made["profile"], options.changes)
    trial = Run(
        profile, made["cohort"], options.seed, options.out / ("_".join(options.changes).replace("/", "-") or "as-is")
    )
    own_autoencoder = any(change.startswith("autoencoder.") for change in options.changes)
    for stage in ("cohort",) if own_autoencoder else ("cohort", "autoencoder"):
        place = trial.stage(stage)
        place.parent.mkdir(parents=True, exist_ok=True)  # the cohort lies with seed 0
        if not place.exists():
            place.symlink_to((options.run / stage).resolve())

    cohort = load_cohort(trial.stage("cohort"))
    rows = cohort.rows("test").reset_index(drop=True)
    real = cohort.volumes("test")
    extractor = offline_extractor()
    features = extract(extractor, real)

    rows_found: dict[str, dict[str, float]] = {}

    def report(name: str, volumes: np.ndarray, seconds: float, asked_for: bool = True) -> None:
        distance = frechet_distance(features, extract(extractor, volumes))
        row = rows_found[name] = {"n": len(volumes), "seconds": round(seconds, 1), "fid": round(distance, 6)}
        words = [f"{name:28s} {seconds:6.0f} s", f"FID {distance:.5f}"]
        measured = measure_all(volumes, cohort.affine)
        for title, (asked, found) in ASKED_AND_MEASURED.items() if asked_for else ():
            fit = agreement(rows[asked], measured[found])
            words.append(f"{title} r {fit.r:.3f}, slope {fit.slope:.2f}")
            row |= {f"{title}_{key}": round(getattr(fit, key), 4) for key in ("r", "low", "high", "slope")}
        print("; ".join(words), f"(n = {len(volumes)})", flush=True)

    print(f"{trial.folder}: {extractor.note}")
    report("other real volumes", cohort.volumes("train")[: len(real), 0].numpy(), 0, asked_for=False)
    coded = train_autoencoder(trial)["results"]["training_seconds"]
    seconds = train_diffusion(trial)["results"]["training_seconds"]
    pipeline = load_pipeline(trial.folder)
    rebuilt = reconstruct(pipeline, real)
    print(f"PSNR in the mask {psnr_in_mask(real[:, 0].numpy(), rebuilt).mean():.2f} dB")
    report("reconstructions", rebuilt, coded)
    if profile.diffusion.mean_latent:
        report("regression alone", mean_for_requests(pipeline, rows), 0)
    steps = options.steps or profile.sampling.steps
    for scale in options.guidance or [profile.sampling.guidance_scale]:
        begin = time.perf_counter()
        volumes = sample(pipeline, rows, list(range(len(rows))), steps=steps, seed=options.seed, guidance=scale)
        report(f"samples, guidance {scale:g}", volumes, seconds)
        print(f"  drawn in {time.perf_counter() - begin:.0f} s with {steps} steps")
    write_json(
        trial.folder / "trial.json",
        {
            "command": "benchmarks/design.py",
            "run": options.run.resolve().name,
            "changes": options.changes,
            "seed": options.seed,
            "steps": steps,
            "extractor": extractor.note,
            "commit": commit(),
            "hardware": hardware(),
            "rows": rows_found,
        },
    )


if __name__ == "__main__":
    main()
