"""Simulated cohorts: T1w volumes, their labels and *measured* covariates from an anatomy.

One generator serves every simulated cohort. A point x of the subject looks up its anatomy at  F(R(S x)):
S scales the head, R is a smooth random diffeomorphism, and F = exp(-t_v v_v - t_s v_s) moves tissue along the
anatomy's flows. t_v and t_s are solved so that the lateral ventricles and the brain fraction come out as requested;
what goes to the table is measured on the warped labels.
"""

from __future__ import annotations

import gzip
import hashlib
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from .anatomy import Anatomy, atlas_anatomy, grid_points, integrate, look_up, volumes_ml
from .covariates import MISSING, REFERENCE_ICV_ML, draw_covariates
from .errors import BrainLDMError
from .profiles import CohortSize, Grid
from .records import Record, Run, atomic_path, read_json, read_record, settings_hash, write_json

CENTRE_MM = (0.0, -18.0, 8.0)  # the point that head scaling leaves in place
ATTEMPTS = 4  # evaluations at most; what is left of the request is no error, as covariates are measured
COHORT_SEED = 0  # a cohort is shared by all training seeds


@dataclass(frozen=True)
class Look:
    """How a simulated subject varies beyond its covariates. Intensities: white matter is 0.8."""

    anisotropy: float = 0.03
    warp_mm: float = 3.0
    warp_wavelength_mm: float = 28.0
    csf: float = 0.22
    grey_at_60: float = 0.60
    grey_per_year: float = 0.001
    grey_sd: float = 0.008
    white: float = 0.80
    texture: float = 0.9
    bias: float = 0.02
    noise: float = 0.012


@dataclass(frozen=True)
class Subject:
    """One simulated person: volumes on the profile's grid and what was measured on the working grid."""

    image: np.ndarray
    labels: np.ndarray
    measured: dict[str, float]


def working_factor(grid: Grid) -> int:
    """How many working voxels lie along a voxel of the profile: two, but never finer than 1 mm."""
    return 2 if grid.spacing_mm >= 2 else 1


def random_warp(rng: np.random.Generator, shape: Any, origin: Any, spacing: float, look: Look) -> Any:
    """Displacement (1, 3, d, h, w), mm, of a smooth random diffeomorphism: exp of band-limited Gaussian noise."""
    import torch
    from scipy import ndimage

    noise = rng.standard_normal((3, *shape))
    # A Gaussian of this width leaves a field whose mean wavelength is about the one wanted.
    sigma = look.warp_wavelength_mm / 4 / spacing
    smooth = np.stack([ndimage.gaussian_filter(channel, sigma, mode="wrap") for channel in noise])
    smooth *= look.warp_mm / np.sqrt((smooth**2).sum(0).mean())
    return integrate(torch.from_numpy(smooth.astype(np.float32))[None], origin, spacing)


def solve_subject(
    anatomy: Anatomy,
    shape: tuple[int, ...],
    origin: np.ndarray,
    spacing: float,
    wanted: dict[str, float],
    rng: np.random.Generator,
    look: Look,
) -> tuple[np.ndarray, dict[str, float]]:
    """Warped maps (5, D, H, W) on the working grid and their volumes (ml): Broyden steps on (t_v, t_s) and head scale.

    ``wanted``: lateral, brain and intracranial volume in ml of the subject's own size.
    """
    import torch

    maps, flows = torch.from_numpy(anatomy.maps)[None], torch.from_numpy(anatomy.flows)
    own = anatomy.volumes()
    fractions = np.array([wanted["lateral"], wanted["brain"]]) / wanted["intracranial"]
    stretch = np.exp(look.anisotropy * rng.standard_normal(3))
    scale = (own["intracranial"] / wanted["intracranial"]) ** (1 / 3) * stretch / stretch.prod() ** (1 / 3)
    centre = torch.tensor(CENTRE_MM).view(1, 3, 1, 1, 1)
    coarse = 3 * spacing
    coarse_shape = tuple(int(np.ceil(side * 1.4 / 3)) for side in shape)
    coarse_origin = np.array(CENTRE_MM) - coarse * (np.array(coarse_shape) - 1) / 2
    warp = random_warp(rng, coarse_shape, coarse_origin, coarse, look)

    # d(lateral, brain)/d(t_v, t_s) as fractions of the head, first order: growth takes from the brain.
    slope = np.array([[1.0, 0.0], [-1.0, -1.0]]) / own["intracranial"]
    reached = np.array([own["lateral"], own["brain"]]) / own["intracranial"]
    step = np.linalg.solve(slope, fractions - reached)
    state = np.zeros(2)
    points = grid_points(shape, origin, spacing) - centre
    for attempt in range(ATTEMPTS):
        state = state + step
        head = points * torch.tensor(scale, dtype=torch.float32).view(1, 3, 1, 1, 1) + centre
        head = head + look_up(warp, head, coarse_origin, coarse)
        velocity = -(state[0] * flows[0] + state[1] * flows[1])[None].float()
        moved = integrate(velocity, anatomy.origin_mm, anatomy.spacing_mm)
        source = head + look_up(moved, head, anatomy.origin_mm, anatomy.spacing_mm)
        warped = look_up(maps, source, anatomy.origin_mm, anatomy.spacing_mm)[0].numpy()
        found = volumes_ml(warped, spacing)
        before, reached = reached, np.array([found["lateral"], found["brain"]]) / found["intracranial"]
        size = found["intracranial"] / wanted["intracranial"]
        error = fractions - reached
        if attempt == ATTEMPTS - 1 or (abs(error) <= (0.02 * fractions[0], 0.002)).all() and abs(size - 1) < 0.005:
            break
        if attempt:  # Broyden's rank-one update keeps the slope true along the last step
            slope += np.outer(reached - before - slope @ step, step) / (step @ step)
        step = np.linalg.solve(slope, error)
        scale = scale * size ** (1 / 3)
    return warped, found


def render(warped: np.ndarray, age_years: float, factor: int, rng: np.random.Generator, look: Look) -> tuple[Any, Any]:
    """T1w volume in [0, 1] and labels on the profile's grid from warped maps: tissue means, bias, averaging, noise."""
    csf, grey, white, lateral, texture = warped
    grey_mean = look.grey_at_60 + look.grey_per_year * (age_years - 60) + look.grey_sd * rng.standard_normal()
    image = look.csf * (csf + lateral) + grey_mean * grey + look.white * white + look.texture * texture
    tissue = np.stack([csf, grey, white, lateral])
    tissue, image = (_average(field, factor) for field in (tissue, image[None]))
    inside = tissue.sum(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in inside.shape), indexing="ij")
    terms = [*axes, *(a * b for i, a in enumerate(axes) for b in axes[i:])]
    bias = np.exp(look.bias * sum(c * term for c, term in zip(rng.standard_normal(len(terms)), terms, strict=True)))
    real, imaginary = look.noise * rng.standard_normal((2, *inside.shape))
    image = np.hypot(image[0] * bias + real, imaginary)  # Rician: the magnitude of a complex signal
    image = np.clip(image, 0, 1) * (inside > 0.1)
    background = 1 - inside
    labels = np.stack([background, tissue[0], tissue[1], tissue[2], tissue[3]]).argmax(0).astype(np.uint8)
    return image.astype(np.float32), labels


def _average(field: np.ndarray, factor: int) -> np.ndarray:
    """Mean over blocks of ``factor`` voxels a side of (C, D, H, W): the partial volume of a larger voxel."""
    channels, *sides = field.shape
    blocks = [n for side in sides for n in (side // factor, factor)]
    return field.reshape(channels, *blocks).mean((2, 4, 6))


def simulate_subject(anatomy: Anatomy, grid: Grid, row: dict[str, Any], seed: int, look: Look = Look()) -> Subject:
    """One person from requested covariates; every random choice follows from ``seed``."""
    factor = working_factor(grid)
    spacing = grid.spacing_mm / factor
    shape = tuple(side * factor for side in grid.shape)
    origin = np.array(grid.affine)[:3, 3] - grid.spacing_mm / 2 + spacing / 2
    rng = np.random.default_rng([COHORT_SEED, seed])
    icv = float(row["intracranial_volume_ml"])
    brain = float(row["brain_volume_ml"]) / REFERENCE_ICV_ML * icv
    # Sulci and cisterns never vanish: keep at least 3 % of the head for them.
    brain = min(brain, 0.97 * icv - float(row["ventricular_volume_ml"]))
    wanted = {"lateral": float(row["ventricular_volume_ml"]), "brain": brain, "intracranial": icv}
    warped, found = solve_subject(anatomy, shape, origin, spacing, wanted, rng, look)
    image, labels = render(warped, float(row["age_years"]), factor, rng, look)
    measured = {
        "ventricular_volume_ml": round(found["lateral"], 2),
        "brain_volume_ml": round(found["brain"] * REFERENCE_ICV_ML / found["intracranial"], 1),
        "intracranial_volume_ml": round(found["intracranial"], 1),
    }
    return Subject(image, labels, measured)


def assign_splits(ids: list[str], size: CohortSize) -> dict[str, str]:
    """Split of each participant: ids ordered by their hash, then cut into training, validation and test."""
    order = sorted(ids, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    names = ["train"] * size.train + ["validation"] * size.validation + ["test"] * size.test
    return dict(zip(order, names, strict=True))


def simulate_cohort(run: Run, workers: int = 2, progress: bool = True) -> dict[str, Any]:
    """Ensure the ``cohort`` stage of a simulated run: volumes, labels and a table of measured covariates.

    Subjects that an earlier, interrupted call finished are kept.
    """
    from tqdm.auto import tqdm

    folder = run.stage("cohort")
    if (done := read_record(folder)) is not None:
        return done
    if run.cohort != "atlas":
        raise BrainLDMError(f"cohort {run.cohort!r}: is not simulated; choose atlas, or prepare a BIDS folder")
    size = run.profile.cohort
    count = size.train + size.validation + size.test
    grid = run.profile.grid
    spacing = grid.spacing_mm / working_factor(grid)
    settings = {
        "cohort": run.cohort,
        "grid": grid.model_dump(mode="json"),
        "subjects": size.model_dump(mode="json"),
        "look": asdict(Look()),
        "working_spacing_mm": spacing,
    }
    record = Record(folder, "simulate.simulate_cohort", settings, {}, seed=COHORT_SEED)
    anatomy = atlas_anatomy(spacing)
    record.inputs["anatomy"] = _array_hash(anatomy)
    table = draw_covariates(count, np.random.default_rng(COHORT_SEED))
    ids = [f"sub-{number:04d}" for number in range(1, count + 1)]
    key = settings_hash([settings, record.inputs])
    jobs = [(name, dict(row), folder, key) for name, row in zip(ids, table.to_dict("records"), strict=True)]
    show = progress and sys.stderr.isatty()
    with tqdm(total=count, desc="simulate", unit="brain", disable=not show, file=sys.stderr) as bar:
        measured = {}
        for name, values in _run_jobs(jobs, anatomy, grid, workers):
            measured[name] = values
            bar.update()
    splits = assign_splits(ids, size)
    misses = {}
    for column in ("ventricular_volume_ml", "brain_volume_ml", "intracranial_volume_ml"):
        found = np.array([measured[name][column] for name in ids])
        misses[column] = round(float(np.abs(found / table[column].to_numpy(float) - 1).max()), 4)
        table[column] = found
    table.insert(0, "participant_id", ids)
    table.insert(1, "session_id", MISSING)
    table.insert(2, "split", [splits[name] for name in ids])
    write_tables(folder, table)
    images = [image_path(folder, name) for name in ids]
    return record.finish([folder / "participants.tsv", *images], subjects=count, largest_relative_miss=misses)


def image_path(folder: Path, name: str) -> Path:
    """Where a subject's T1w volume lies in a cohort folder."""
    return folder / name / "anat" / f"{name}_desc-preproc_T1w.nii.gz"


def write_tables(folder: Path, table: Any) -> None:
    """``participants.tsv`` and ``dataset_description.json`` of a cohort."""
    with atomic_path(folder / "participants.tsv") as partial:
        table.to_csv(partial, sep="\t", index=False, na_rep=MISSING)
    description = {
        "Name": f"Simulated cohort {folder.parent.name}",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "brainldm"}],
    }
    write_json(folder / "dataset_description.json", description)


def write_volume(path: Path, voxels: np.ndarray, affine: Any, slope: float | None = None) -> None:
    """Write uint8 voxels as compressed NIfTI in MNI space (sform code 4), atomically and byte for byte repeatable."""
    import nibabel as nib

    image = nib.Nifti1Image(voxels, np.asarray(affine))
    image.header.set_sform(np.asarray(affine), code=4)
    image.header.set_qform(np.asarray(affine), code=4)
    image.header.set_xyzt_units("mm")
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    with atomic_path(path) as partial:
        partial.write_bytes(gzip.compress(image.to_bytes(), 5, mtime=0))


def _simulate_to(job: tuple[str, dict[str, Any], Path, str]) -> tuple[str, dict[str, float]]:
    """Simulate and write one subject, unless its sidecar says that it is there already."""
    name, row, folder, key = job
    path = image_path(folder, name)
    sidecar = path.with_name(path.name.replace(".nii.gz", ".json"))
    if sidecar.exists() and (content := read_json(sidecar)).get("settings") == key:
        return name, content["measured"]
    subject = simulate_subject(_WORKER["anatomy"], _WORKER["grid"], row, seed=int(name.removeprefix("sub-")))
    affine = _WORKER["grid"].affine
    write_volume(path, np.round(subject.image * 255).astype(np.uint8), affine, slope=1 / 255)
    write_volume(path.with_name(f"{name}_dseg.nii.gz"), subject.labels, affine)
    content = {"SkullStripped": True, "measured": subject.measured, "requested": row, "settings": key}
    write_json(sidecar, content)
    return name, subject.measured


_WORKER: dict[str, Any] = {}  # what each worker process simulates from


def _start_worker(anatomy: Anatomy, grid: Grid) -> None:
    import torch

    torch.set_num_threads(1)  # one core a worker; results do not depend on the number of workers
    _WORKER.update(anatomy=anatomy, grid=grid)


def _run_jobs(jobs: list[Any], anatomy: Anatomy, grid: Grid, workers: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Subjects as they are finished, by ``workers`` processes (fresh ones: forking after threads can hang)."""
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (anatomy, grid)) as pool:
        yield from pool.map(_simulate_to, jobs, chunksize=2)


def _array_hash(anatomy: Anatomy) -> str:
    """SHA-256 of an anatomy's maps and flows."""
    return hashlib.sha256(anatomy.maps.tobytes() + anatomy.flows.tobytes()).hexdigest()
