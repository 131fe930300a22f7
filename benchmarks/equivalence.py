"""Are few steps as good as many? DDIM against DDPM, and shorter DDIM against longer, on the same requests and noises.

    OMP_NUM_THREADS=2 python benchmarks/equivalence.py runs/tiny-atlas --minutes 30

may be stopped at any time and goes on where it was (the people are simulated in one go, which takes minutes); called
again when all is done it makes ``equivalence.json`` anew.
Everything lies under ``--out`` (default ``runs/equivalence/<run>``). The chapter on DDIM shows the published file
``book/published/trials/equivalence-<profile>.json``.

**Requests.** ``--n`` new people (256: below that nothing is claimed), simulated by the law of the cohort with random
numbers of their own. No network has seen them. Each is one request with one noise, so that pairs are independent; the
noise belongs to the row, and every sampler starts from it.

**Margins, set before any sampler was run and from real volumes alone** (``margins.json`` is written first, with the
commit of this text). The rule is half of a floor between real volumes:

- *Ventricles and brain* (ml), signed and absolute error: half of the mean absolute difference between what the ruler
  reads from the new people's volumes and from the same volumes after the autoencoder. All samples pass through that
  decoder, so a gap between samplers that is smaller would be lost in what decoding does to any head. The ruler's error
  against the truth is not used: most of it is a bias that both samplers share and that leaves a difference, so half of
  it would be a margin that nobody could miss.
- *FID*: half of the FID of as many real volumes (the new people) against the same reference (training volumes), at the
  same n.
- *1 - MS-SSIM* of the two volumes of one noise: half of its mean over random pairs of new people. Inside it the two
  samplers draw the same head, in so far as two people's heads differ. DDPM adds noise at each step, so for DDPM this
  asks whether it ends where DDIM ends, which theory does not promise.

**Verdict.** Shown where the 95 % interval of the paired difference lies inside the margin. A pair of samplers is "as
good as" in all of the quantities together or not at all, so no correction for their number is needed. One trained
model is asked: what is shown holds for it, not for other trainings.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from brainldm_core.anatomy import atlas_anatomy
from brainldm_core.conditioning import ASKED_AND_MEASURED, agreement
from brainldm_core.covariates import draw_covariates
from brainldm_core.dataset import load_cohort
from brainldm_core.equivalence import Equivalence, equivalence, paired_distance
from brainldm_core.errors import BrainLDMError
from brainldm_core.features import Extractor, extract, offline_extractor
from brainldm_core.metrics import frechet_distance, ms_ssim, pair_mean
from brainldm_core.profiles import Grid
from brainldm_core.records import atomic_path, commit, hardware, read_json, write_json
from brainldm_core.sampler_results import TITLES
from brainldm_core.samples import measure_all, quantise, reconstruct
from brainldm_core.sampling import Pipeline, load_pipeline, sample
from brainldm_core.simulate import COHORT_SEED, simulate_subject, working_factor

SHARE = 0.5  # of the floor between real volumes
NEW_PEOPLE = 2  # after COHORT_SEED: random numbers that no cohort draws
FIRST_PERSON = 1_000_000  # far from the numbers of any cohort's people
PAIRS = 1000
DDPM = "DDPM"
NAMES = {name: title for name, title in TITLES.items() if name != DDPM.lower()}


def load(path: Path) -> np.ndarray:
    """Volumes (N, D, H, W) float32 in [0, 1] of a file of this trial."""
    with np.load(path, allow_pickle=False) as file:
        return file["volumes"].astype(np.float32) / 255


def keep(path: Path, volumes: np.ndarray) -> None:
    """Write volumes as uint8, whole or not at all; what is measured is what is kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, volumes=quantise(volumes))


def new_people(folder: Path, grid: Grid, n: int) -> tuple[np.ndarray, pd.DataFrame]:
    """Volumes (N, D, H, W) and measured covariates of ``n`` people of the cohort's law whom no split holds."""
    path, table = folder / "people.npz", folder / "people.tsv"
    if not table.exists():
        rows = draw_covariates(n, np.random.default_rng([COHORT_SEED, NEW_PEOPLE]))
        anatomy = atlas_anatomy(grid.spacing_mm / working_factor(grid))
        people = [
            simulate_subject(anatomy, grid, row, FIRST_PERSON + i) for i, row in enumerate(rows.to_dict("records"))
        ]
        keep(path, np.stack([person.image for person in people]))
        rows = rows.assign(**pd.DataFrame([person.measured for person in people]))
        with atomic_path(table) as partial:
            rows.to_csv(partial, sep="\t", index=False)
    return load(path), pd.read_csv(table, sep="\t")


def set_margins(
    folder: Path, pipeline: Pipeline, extractor: Extractor, reference: np.ndarray, people: np.ndarray
) -> dict[str, Any]:
    """The margins of this file's text, from real volumes alone; written once, before anything is drawn."""
    path = folder / "margins.json"
    if path.exists():
        return read_json(path)
    if any(folder.glob("*/piece-*.npz")):
        raise BrainLDMError(f"{folder}: holds samples but no margins; margins come first, so delete the folder")
    affine = pipeline.profile.grid.affine
    decoded = quantise(reconstruct(pipeline, torch.from_numpy(people)[:, None])) / np.float32(255)
    before, after = measure_all(people, affine), measure_all(decoded, affine)
    floors = {
        name: (float((after[found] - before[found]).abs().mean()), "ml, moved by the autoencoder")
        for name, (_, found) in ASKED_AND_MEASURED.items()
    }
    floors["fid"] = (frechet_distance(reference, extract(extractor, people)), "FID of real volumes")
    alike = pair_mean(ms_ssim, torch.from_numpy(people)[:, None], PAIRS).value
    floors["unlike"] = (1 - alike, "1 - MS-SSIM of two people")
    margins = {name: {"margin": SHARE * floor, "floor": floor, "of": words} for name, (floor, words) in floors.items()}
    write_json(path, {"commit": commit(), "share": SHARE, "margins": margins})
    return read_json(path)


def samplers(steps: list[int], also: list[str]) -> dict[str, tuple[str, int]]:
    """Name -> sampler and steps, DDPM last: it takes twenty times as long as the longest DDIM.

    Raises:
        BrainLDMError: ``also`` is not SAMPLER:STEPS.
    """
    found = {f"{NAMES['ddim']} {count}": ("ddim", count) for count in steps}
    for text in also:
        name, _, count = text.partition(":")
        if name not in NAMES or not count.isdigit():
            raise BrainLDMError(f"--also {text}: write SAMPLER:STEPS with one of {', '.join(NAMES)}")
        found[f"{NAMES[name]} {count}"] = (name, int(count))
    return found | {DDPM: ("ddpm", steps[0])}


def draw(folder: Path, name: str, how: tuple[str, int], pipeline: Pipeline, table: pd.DataFrame, stop: float) -> str:
    """Draw what is missing of a sampler, a file a batch, until ``stop`` (of the clock); in words what lacks.

    Ids are places in the table, so noise belongs to the row; sampling works in batches of the same size, so a piece is
    the same as in one long draw.
    """
    size = pipeline.profile.sampling.batch_size
    starts = range(0, len(table), size)
    place = folder / name.lower().replace(" ", "-")
    for start in starts:
        path = place / f"piece-{start:05d}.npz"
        if path.exists():
            continue
        if time.monotonic() >= stop:
            break
        rows = table.iloc[start : start + size]
        keep(path, sample(pipeline, rows, list(rows.index), *how, eta=0.0, seed=0))
        print(f"{name}: {min(start + size, len(table))} of {len(table)}", flush=True)
    done = len(list(place.glob("piece-*.npz")))
    return "" if done == len(starts) else f"{name}: {done} of {len(starts)} pieces"


def drawn(folder: Path, name: str) -> np.ndarray:
    """All volumes (N, D, H, W) of a sampler, in the order of the table."""
    return np.concatenate(
        [load(path) for path in sorted((folder / name.lower().replace(" ", "-")).glob("piece-*.npz"))]
    )


def compare(
    one: dict[str, Any], other: dict[str, Any], table: pd.DataFrame, reference: np.ndarray, margins: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Every quantity of two samplers: its paired difference (one less other) and the mean of each."""

    def row(found: Equivalence, unit: str, values: tuple[float, float]) -> dict[str, Any]:
        return found.record() | {"unit": unit, "one": values[0], "other": values[1]}

    rows = {}
    for name, (asked, found) in ASKED_AND_MEASURED.items():
        errors = [(system["measured"][found] - table[asked]).to_numpy() for system in (one, other)]
        for kind, change in (("signed", lambda x: x), ("absolute", np.abs)):
            a, b = map(change, errors)
            rows[f"{name}, {kind} error"] = row(
                equivalence(a - b, margins[name]["margin"]), "ml", (float(a.mean()), float(b.mean()))
            )
    left, right = (torch.from_numpy(system["volumes"])[:, None] for system in (one, other))
    unlike = 1 - torch.cat([ms_ssim(*pair) for pair in zip(left.split(32), right.split(32), strict=True)]).double()
    rows["1 - MS-SSIM of the two volumes of a noise"] = row(
        equivalence(unlike.numpy(), margins["unlike"]["margin"]), "", (None, None)
    )
    distance = paired_distance(
        frechet_distance, reference, one["features"], other["features"], margins["fid"]["margin"]
    )
    values = tuple(frechet_distance(reference, system["features"]) for system in (one, other))
    rows["FID"] = row(distance, "", values)
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run of the cohort atlas")
    parser.add_argument("--n", type=int, default=256, help="people, each one request and one noise")
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 16, 10], help="of DDIM, the longest first")
    parser.add_argument(
        "--also", nargs="+", default=[], metavar="SAMPLER:STEPS", help="other samplers, for instance dpmpp:10 unipc:10"
    )
    parser.add_argument("--minutes", type=float, default=1e6, help="stop drawing after so many")
    parser.add_argument("--out", type=Path, help="default runs/equivalence/<name of the run>")
    options = parser.parse_args(arguments)

    stop, made_with = time.monotonic() + 60 * options.minutes, commit()
    made = read_json(options.run / "run.json")
    if made["cohort"] != "atlas":
        raise BrainLDMError(
            f"{options.run}: is of cohort {made['cohort']!r}; new people can be simulated for atlas only"
        )
    pipeline = load_pipeline(options.run)
    cohort = load_cohort(options.run.parent / f"{made['profile']['name']}-atlas" / "cohort")  # shared by all seeds
    real = cohort.volumes("train")[: options.n]
    if len(real) < options.n:
        raise BrainLDMError(f"--n {options.n}: there are {len(real)} training volumes as a reference; give fewer")
    folder = options.out or Path("runs") / "equivalence" / options.run.resolve().name
    about = {
        "run": options.run.resolve().name,
        "sha256": pipeline.sha256,
        "n": options.n,
        "steps": options.steps,
        "seed": 0,
        "batch_size": pipeline.profile.sampling.batch_size,
    }
    if (folder / "settings.json").exists() and read_json(folder / "settings.json") != about:
        raise BrainLDMError(f"{folder}: was begun with other settings; give another --out")
    write_json(folder / "settings.json", about)
    warnings.filterwarnings("ignore", message=".*outside the training range")

    extractor = offline_extractor()
    reference = extract(extractor, real)
    people, table = new_people(folder, pipeline.profile.grid, options.n)
    margins = set_margins(folder, pipeline, extractor, reference, people)
    systems, missing = {}, []
    for name, how in samplers(options.steps, options.also).items():
        if lacking := draw(folder, name, how, pipeline, table, stop):
            missing.append(lacking)
            continue
        volumes = drawn(folder, name)
        measured = measure_all(volumes, cohort.affine)
        systems[name] = {"volumes": volumes, "measured": measured, "features": extract(extractor, volumes)}
    long, *short = (name for name in samplers(options.steps, options.also) if name != DDPM)
    pairs = [pair for pair in [(long, DDPM), *((name, long) for name in short)] if set(pair) <= set(systems)]
    fits = {
        name: {
            quantity: agreement(table[asked], system["measured"][found]).record()
            for quantity, (asked, found) in ASKED_AND_MEASURED.items()
        }
        for name, system in systems.items()
    }
    content = {
        "command": "benchmarks/equivalence.py",
        **about,
        "noises_a_request": 1,
        "timesteps": pipeline.profile.diffusion.timesteps,
        "extractor": extractor.note,
        "commit": made_with,
        "margins": margins,
        "hardware": hardware() | {"threads": torch.get_num_threads()},
        "missing": missing,
        "samplers": fits,
        "comparisons": [
            {"one": a, "other": b, "rows": compare(systems[a], systems[b], table, reference, margins["margins"])}
            for a, b in pairs
        ],
    }
    write_json(folder / "equivalence.json", content)
    print("\n".join(missing) or "all drawn", folder / "equivalence.json", sep="\n")


if __name__ == "__main__":
    main()
