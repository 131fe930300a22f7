"""Simulated cohorts: T1w volumes, their labels and *measured* covariates from an anatomy.

One generator serves every simulated cohort. A point x of the subject looks up its anatomy at  F(R(S x)):
S scales the head, R is a smooth random diffeomorphism, and F = exp(-t v) lets the lateral ventricles grow by about
t ml along the anatomy's flow v. Sulci then widen where CSF is likely: its odds are raised by one factor everywhere.
t and that factor are solved so that ventricles and brain come out near the request; what goes to the table is
measured on the result.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from .anatomies import assign_anatomies, ensure_anatomies, shape_of
from .anatomy import Anatomy, volumes_ml
from .covariates import COLUMNS, MISSING, REFERENCE_ICV_ML, draw_covariates
from .dataset import labels_path, save_nifti, save_volume, volume_path, write_tables
from .errors import BrainLDMError
from .profiles import CohortSize, Grid
from .records import Record, Run, read_json, read_record, settings_hash, write_json
from .warps import grid_points, integrate, look_up, random_warp

CENTRE_MM = (0.0, -18.0, 8.0)  # the point that head scaling leaves in place
ANATOMIES = "anatomies"  # folder of a cohort in the making
REQUESTED = (*COLUMNS, "intracranial_volume_ml")
COHORT_SEED = 0  # a cohort is shared by all training seeds


@dataclass(frozen=True)
class Look:
    """How a simulated subject varies beyond its covariates. Intensities: white matter is 0.8."""

    anisotropy: float = 0.03
    warp_mm: float = 3.0
    warp_wavelength_mm: float = 28.0
    sharpness: float = 1.6
    csf: float = 0.20
    grey_at_60: float = 0.60
    grey_per_year: float = 0.0008
    grey_sd: float = 0.004
    white: float = 0.80
    texture: float = 0.9
    bias: float = 0.02
    noise: float = 0.012
    grain: float = 0.0  # standard deviation of the signal inside tissue, where an anatomy brings no texture of its own


LOOKS = {"atlas": Look(), "anatomies": Look(sharpness=2.5, grain=0.02)}
"""How each simulated cohort varies; the sulci of label maps were softened more than those of the template."""


@dataclass(frozen=True)
class Subject:
    """One simulated person: volumes on the profile's grid and what was measured on the working grid."""

    image: np.ndarray
    labels: np.ndarray
    measured: dict[str, float]


def working_factor(grid: Grid) -> int:
    """How many working voxels lie along a voxel of the profile: two, but never finer than 1 mm."""
    return 2 if grid.spacing_mm >= 2 else 1


def working_grid(grid: Grid, factor: int) -> tuple[tuple[int, ...], np.ndarray, float]:
    """Shape, centre of the first voxel (mm) and spacing of a profile's grid with ``factor`` voxels to a side."""
    spacing = grid.spacing_mm / factor
    origin = np.array(grid.affine)[:3, 3] + (spacing - grid.spacing_mm) / 2
    return tuple(side * factor for side in grid.shape), origin, spacing


def pull_back(anatomy: Anatomy, points: Any, growth_ml: float) -> np.ndarray:
    """Maps (C, d, h, w) of an anatomy whose ventricles have grown, at points (1, 3, d, h, w)."""
    import torch

    place = (anatomy.origin_mm, anatomy.spacing_mm)
    moved = integrate(-growth_ml * torch.from_numpy(anatomy.flow)[None], *place)
    return look_up(torch.from_numpy(anatomy.maps)[None], points + look_up(moved, points, *place), *place)[0].numpy()


def widen_sulci(warped: np.ndarray, brain_fraction: float, sharpness: float) -> np.ndarray:
    """Maps whose brain is ``brain_fraction`` of the head: odds of CSF become  exp(shift) odds^sharpness.

    Sharpening undoes part of the blur of an averaged template. Lateral ventricles and head stay as they are.
    """
    csf, grey, white, lateral, texture = warped
    tissue = csf + grey + white
    share = np.clip(csf / np.maximum(tissue, 1e-6), 1e-4, 1 - 1e-4)
    logit = sharpness * (np.log(share) - np.log1p(-share))
    # The shift is found by bisection on a histogram of the logit: the brain shrinks as it grows.
    weight, edges = np.histogram(logit, bins=1000, weights=tissue)
    middle = (edges[:-1] + edges[1:]) / 2
    wanted = brain_fraction * (tissue.sum() + lateral.sum())
    low, high = -12.0, 12.0
    for _ in range(30):
        shift = (low + high) / 2
        low, high = (shift, high) if (weight / (1 + np.exp(middle + shift))).sum() > wanted else (low, shift)
    new = 1 / (1 + np.exp(-logit - shift))
    keep = (1 - new) / (1 - share)
    return np.stack([new * tissue, keep * grey, keep * white, lateral, texture])


def warp_subject(
    anatomy: Anatomy, grid: Grid, wanted: dict[str, float], rng: np.random.Generator, look: Look
) -> np.ndarray:
    """Maps (5, D, H, W) on the working grid, near the ``wanted`` volumes (ml): secant steps on the growth.

    Most steps are taken on a coarse grid. What is left of the request is no error: covariates are measured.
    """
    import torch

    stretch = np.exp(look.anisotropy * rng.standard_normal(3))
    own = anatomy.volumes()
    scale = (own["intracranial"] / wanted["intracranial"]) ** (1 / 3) * stretch / stretch.prod() ** (1 / 3)
    extent = 1.4 * np.array(grid.shape) * grid.spacing_mm
    warp, *warp_place = random_warp(rng, extent, CENTRE_MM, look.warp_mm, look.warp_wavelength_mm)
    centre = torch.tensor(CENTRE_MM).view(1, 3, 1, 1, 1)
    target = wanted["lateral"] / wanted["intracranial"]
    start = own["lateral"] / own["intracranial"]
    slope = 1 / own["intracranial"]  # of the lateral fraction on growth, first order
    growth = target * own["intracranial"] - own["lateral"]
    for source, factor, attempts in ((anatomy.coarser(), 1, 3), (anatomy, working_factor(grid), 2)):
        points = grid_points(*working_grid(grid, factor)) - centre
        before = 0.0, start  # growth and lateral fraction of the step before
        for attempt in range(attempts):
            head = points * torch.tensor(scale, dtype=torch.float32).view(1, 3, 1, 1, 1) + centre
            warped = pull_back(source, head + look_up(warp, head, *warp_place), growth)
            found = volumes_ml(warped, grid.spacing_mm / factor)
            reached, ratio = found["lateral"] / found["intracranial"], found["intracranial"] / wanted["intracranial"]
            near = abs(reached - target) <= 0.03 * target and abs(ratio - 1) < 0.005
            if near or (source is anatomy and attempt == attempts - 1):
                break
            if abs(growth - before[0]) > 1:
                slope = max((reached - before[1]) / (growth - before[0]), 0.2 / own["intracranial"])
            before = growth, reached
            growth, scale = growth + (target - reached) / slope, scale * ratio ** (1 / 3)
    return warped


def render(warped: np.ndarray, age_years: float, factor: int, rng: np.random.Generator, look: Look) -> tuple[Any, Any]:
    """T1w volume in [0, 1] and labels on the profile's grid from warped maps: tissue means, bias, averaging, noise."""
    csf, grey, white, lateral, texture = warped
    grey_mean = look.grey_at_60 + look.grey_per_year * (age_years - 60) + look.grey_sd * rng.standard_normal()
    image = look.csf * (csf + lateral) + grey_mean * grey + look.white * white + look.texture * texture
    if look.grain:
        image = image + look.grain * (grey + white) * _speckle(image.shape, rng)
    tissue = np.stack([csf, grey, white, lateral])
    tissue, image = (_average(field, factor) for field in (tissue, image[None]))
    inside = tissue.sum(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in inside.shape), indexing="ij")
    terms = [*axes, *(a * b for i, a in enumerate(axes) for b in axes[i:])]
    bias = np.exp(look.bias * sum(c * term for c, term in zip(rng.standard_normal(len(terms)), terms, strict=True)))
    real, imaginary = look.noise * rng.standard_normal((2, *inside.shape))
    image = np.hypot(image[0] * bias + real, imaginary)  # Rician: the magnitude of a complex signal
    image = np.clip(image, 0, 1) * (inside > 0.1)
    labels = np.where(inside > 0.5, 1 + tissue.argmax(0), 0).astype(np.uint8)
    return image.astype(np.float32), labels


def _speckle(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Random field (D, H, W) of unit deviation: half of it varies from voxel to voxel, half over about four."""
    from scipy import ndimage

    parts = [ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), width) for width in (0.6, 2.0)]
    return sum(part / (part.std() * 2**0.5) for part in parts)


def _average(field: np.ndarray, factor: int) -> np.ndarray:
    """Mean over blocks of ``factor`` voxels a side of (C, D, H, W): the partial volume of a larger voxel."""
    channels, *sides = field.shape
    blocks = [n for side in sides for n in (side // factor, factor)]
    return field.reshape(channels, *blocks).mean((2, 4, 6))


def simulate_subject(
    anatomy: Anatomy, grid: Grid, row: dict[str, Any], seed: int, look: Look = LOOKS["atlas"]
) -> Subject:
    """One person from requested covariates; every random choice follows from ``seed``."""
    rng = np.random.default_rng([COHORT_SEED, seed])
    size = float(row["intracranial_volume_ml"])
    lateral = float(row["ventricular_volume_ml"])
    # Sulci and cisterns never vanish: at least 3 % of the head is theirs.
    brain = min(float(row["brain_volume_ml"]) / REFERENCE_ICV_ML * size, 0.97 * size - lateral)
    wanted = {"lateral": lateral, "brain": brain, "intracranial": size}
    maps = widen_sulci(warp_subject(anatomy, grid, wanted, rng, look), brain / size, look.sharpness)
    found = volumes_ml(maps, grid.spacing_mm / working_factor(grid))
    image, labels = render(maps, float(row["age_years"]), working_factor(grid), rng, look)
    measured = {
        "ventricular_volume_ml": round(found["lateral"], 3),
        "brain_volume_ml": round(found["brain"] * REFERENCE_ICV_ML / found["intracranial"], 2),
        "intracranial_volume_ml": round(found["intracranial"], 2),
    }
    return Subject(image, labels, measured)


def cut_splits(ids: list[str], size: CohortSize) -> dict[str, str]:
    """Split of each participant: ids ordered by their hash, then cut into training, validation and test."""
    order = sorted(ids, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    names = ["train"] * size.train + ["validation"] * size.validation + ["test"] * size.test
    return dict(zip(order, names, strict=True))


def simulate_cohort(run: Run, workers: int = 2, progress: bool = True, labels: Path | None = None) -> dict[str, Any]:
    """Ensure the ``cohort`` stage of a simulated run: volumes, labels and a table of measured covariates.

    Subjects that an earlier, interrupted call finished are kept.

    Args:
        labels: folder of label maps, for the cohort ``anatomies``.

    Raises:
        BrainLDMError: another cohort than ``atlas`` or ``anatomies``, or label maps are missing or no label maps.
    """
    from tqdm import tqdm

    folder = run.stage("cohort")
    if (done := read_record(folder)) is not None:
        return done
    if run.cohort not in LOOKS:
        raise BrainLDMError(f"cohort {run.cohort!r}: is not simulated; choose atlas, or prepare a BIDS folder")
    if (run.cohort == "atlas") != (labels is None):
        raise BrainLDMError(f"cohort {run.cohort!r}: " + ("takes no label maps" if labels else "needs label maps"))
    look, size, grid = LOOKS[run.cohort], run.profile.cohort, run.profile.grid
    count = size.train + size.validation + size.test
    spacing = grid.spacing_mm / working_factor(grid)
    settings = {
        "cohort": run.cohort,
        "grid": grid.model_dump(mode="json"),
        "subjects": size.model_dump(mode="json"),
        "look": asdict(look),
        "working_spacing_mm": spacing,
    }
    record = Record(folder, "simulate.simulate_cohort", settings, {}, seed=COHORT_SEED)
    sources = ensure_anatomies(labels, folder / ANATOMIES, spacing, workers)
    record.inputs |= {f"anatomy {name}": _array_hash(Anatomy.load(path)) for name, path in sources.items()}
    table = draw_covariates(count, np.random.default_rng(COHORT_SEED))
    ids = [f"sub-{number:04d}" for number in range(1, count + 1)]
    splits = cut_splits(ids, size)
    table.insert(0, "participant_id", ids)
    table.insert(1, "session_id", MISSING)
    table.insert(2, "split", [splits[name] for name in ids])
    shapes = {name: shape_of(path) for name, path in sources.items()}
    table["anatomy"] = assign_anatomies(table, table["split"], shapes, np.random.default_rng([COHORT_SEED, 1]))
    key = settings_hash([settings, record.inputs])
    # In the order of their anatomies, so that a worker reads each of them few times.
    jobs = [
        (row["participant_id"], row, sources[row["anatomy"]], folder, key)
        for row in table.sort_values("anatomy", kind="stable").to_dict("records")
    ]
    show = progress and sys.stderr.isatty()
    with tqdm(total=count, desc="simulate", unit="brain", disable=not show, file=sys.stderr) as bar:
        measured = {}
        for name, values in _run_jobs(jobs, grid, look, workers):
            measured[name] = values
            bar.update()
    misses = {}
    for column in ("ventricular_volume_ml", "brain_volume_ml", "intracranial_volume_ml"):
        found = np.array([measured[name][column] for name in ids])
        misses[column] = round(float(np.abs(found / table[column].to_numpy(float) - 1).max()), 4)
        table[column] = found
    write_tables(folder, table, facts={"simulated": True, "brain_only": True, "publishable": True})
    images = [volume_path(folder, name) for name in ids]
    done = record.finish([folder / "participants.tsv", *images], subjects=count, largest_relative_miss=misses)
    shutil.rmtree(folder / ANATOMIES)
    return done


def _simulate_to(job: tuple[str, dict[str, Any], Path, Path, str]) -> tuple[str, dict[str, float]]:
    """Simulate and write one subject, unless its sidecar says that it is there already."""
    name, row, source, folder, key = job
    path = volume_path(folder, name)
    sidecar = path.with_name(path.name.replace(".nii.gz", ".json"))
    if sidecar.exists() and (content := read_json(sidecar)).get("settings") == key:
        return name, content["measured"]
    if _WORKER.get("source") != source:
        _WORKER.update(source=source, anatomy=Anatomy.load(source))
    number = int(name.removeprefix("sub-"))
    subject = simulate_subject(_WORKER["anatomy"], _WORKER["grid"], row, number, _WORKER["look"])
    affine = _WORKER["grid"].affine
    save_volume(path, subject.image, affine)
    save_nifti(labels_path(folder, name), subject.labels, affine)
    requested = {column: row[column] for column in REQUESTED}
    content = {"SkullStripped": True, "measured": subject.measured, "requested": requested, "settings": key}
    write_json(sidecar, content | {"anatomy": row["anatomy"]})
    return name, subject.measured


_WORKER: dict[str, Any] = {}  # what each worker process simulates from


def _start_worker(grid: Grid, look: Look) -> None:
    import torch

    torch.set_num_threads(1)  # one core a worker; results do not depend on the number of workers
    _WORKER.update(grid=grid, look=look)


def _run_jobs(jobs: list[Any], grid: Grid, look: Look, workers: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Subjects as they are finished, by ``workers`` processes (fresh ones: forking after threads can hang)."""
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (grid, look)) as pool:
        yield from pool.map(_simulate_to, jobs, chunksize=2)


def _array_hash(anatomy: Anatomy) -> str:
    """SHA-256 of an anatomy's maps and flow."""
    return hashlib.sha256(anatomy.maps.tobytes() + anatomy.flow.tobytes()).hexdigest()
