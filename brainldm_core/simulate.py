"""Simulated people: T1w volumes, their labels and *measured* covariates from an anatomy.

One generator serves every simulated cohort. A point x of the subject looks up its anatomy at  F(R(S x)):
S scales the head, R is a smooth random diffeomorphism, and F = exp(-t v) lets the lateral ventricles grow by about
t ml along the anatomy's flow v. Sulci then widen where CSF is likely: its odds are raised by one factor everywhere.
t and that factor are solved so that ventricles and brain come out near the request; what goes to the table is
measured on the result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .anatomy import FLOW_MM, Anatomy, atlas_anatomy, volumes_ml
from .covariates import REFERENCE_ICV_ML
from .profiles import Grid
from .warps import grid_points, integrate, look_up, random_warp

if TYPE_CHECKING:
    import pandas as pd

CENTRE_MM = (0.0, -18.0, 8.0)  # the point that head scaling leaves in place
COHORT_SEED = 0  # a cohort is shared by all training seeds


@dataclass(frozen=True)
class Look:
    """How a simulated subject varies beyond its covariates. Intensities: white matter is 0.8.

    Grey matter nears white with age, as Salat et al. (2009) found. How fast: in ten scans of OASIS-1 (18 to 83 years)
    the upper quartile of cortex rose by .00068 [.0002, .0012] of white matter a year, here by .0010. Their scatter was
    .014, part of it the scanner's; here it is .005.
    """

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
    whole_head: bool = False


PEOPLE = Look(sharpness=2.5, csf=0.12, grey_at_60=0.49, bias=0.03, noise=0.008, grain=0.02)
"""Label maps do not blur grey and white as an averaged template does. Levels are those of ten labelled scans of
OASIS-1, as shares of white matter: cortex (mode) 0.61 at 60 years, ventricles 0.15, deviation of white matter 0.055.
"""
LOOKS = {"atlas": Look(), "anatomies": PEOPLE, "heads": replace(PEOPLE, texture=1.0, whole_head=True)}
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


def pull_back(
    anatomy: Anatomy, points: Any, growth_ml: float, finer: int = 1, near: np.ndarray | None = None
) -> np.ndarray:
    """Maps (C, d, h, w) of an anatomy whose ventricles have grown, at points (1, 3, d, h, w).

    Args:
        finer: points between the given ones along each axis, where the warp is interpolated.
        near: where the head can be, (d, h, w) after that; maps are 0 elsewhere. None: anywhere.
    """
    import torch

    place = (anatomy.flow_origin_mm, anatomy.flow_spacing_mm)
    points = points + look_up(integrate(-growth_ml * torch.from_numpy(anatomy.flow)[None], *place), points, *place)
    if finer > 1:
        points = torch.nn.functional.interpolate(points, scale_factor=finer, mode="trilinear")
    maps, place = torch.from_numpy(anatomy.maps)[None], (anatomy.origin_mm, anatomy.spacing_mm)
    if near is None:
        return look_up(maps, points, *place)[0].numpy()
    inside = torch.from_numpy(near)
    found = torch.zeros(maps.shape[1], *inside.shape)
    found[:, inside] = look_up(maps, points[:, :, inside][..., None, None], *place)[0, :, :, 0, 0]
    return found.numpy()


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
) -> tuple[np.ndarray, list[slice]]:
    """Maps (5, d, h, w) near the ``wanted`` volumes (ml), and the box of the working grid that they fill.

    Secant steps on the growth, most of them on a coarse grid. What is left of the request is no error: covariates
    are measured.
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
    box, near = [slice(0, side) for side in grid.shape], None  # at first the head may be anywhere
    for source, factor in ((anatomy.coarser, 1), (anatomy, working_factor(grid))):
        spacing = grid.spacing_mm / factor
        finer = factor if spacing < FLOW_MM else 1  # warps are smooth: no need to look them up in each fine voxel
        attempts = 3 if source is not anatomy else 2 if finer == 1 else 1  # voxels of 2 mm were fine enough to meet it
        _, origin, step = working_grid(grid, factor // finer)
        sides = tuple((part.stop - part.start) // finer for part in box)
        points = grid_points(sides, origin + [step * part.start // finer for part in box], step) - centre
        before = 0.0, start  # growth and lateral fraction of the step before
        for attempt in range(attempts):
            head = points * torch.tensor(scale, dtype=torch.float32).view(1, 3, 1, 1, 1) + centre
            warped = pull_back(source, head + look_up(warp, head, *warp_place), growth, finer, near)
            found = volumes_ml(warped, spacing)
            reached, ratio = found["lateral"] / found["intracranial"], found["intracranial"] / wanted["intracranial"]
            met = abs(reached - target) <= 0.03 * target and abs(ratio - 1) < 0.005
            if met or (source is anatomy and attempt == attempts - 1):
                break
            if abs(growth - before[0]) > 1:
                slope = max((reached - before[1]) / (growth - before[0]), 0.2 / own["intracranial"])
            before = growth, reached
            growth, scale = growth + (target - reached) / slope, scale * ratio ** (1 / 3)
        if source is not anatomy:
            box, near = _around(warped, working_factor(grid))
    return warped, box


def _around(coarse: np.ndarray, factor: int, margin: int = 2) -> tuple[list[slice], np.ndarray]:
    """The box of a grid with ``factor`` voxels to a side that the head fills, and where it can be inside of that.

    ``coarse``: its maps (C, D, H, W) with one voxel to a side.
    """
    from scipy import ndimage

    near = ndimage.maximum_filter(np.abs(coarse).sum(0) > 0.01, 2 * margin + 1)
    ends = [np.flatnonzero(near.any(tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)]
    inside = near[tuple(slice(first, last + 1) for first, last in ends)]
    for axis in range(3):
        inside = inside.repeat(factor, axis)
    return [slice(factor * first, factor * (last + 1)) for first, last in ends], inside


def render(
    warped: np.ndarray, box: list[slice], grid: Grid, age_years: float, rng: np.random.Generator, look: Look
) -> tuple[Any, Any]:
    """T1w volume in [0, 1] and labels on the profile's grid from warped maps: tissue means, bias, averaging, noise.

    ``box``: where on the working grid the maps lie.
    """
    csf, grey, white, lateral, texture = warped
    grey_mean = look.grey_at_60 + look.grey_per_year * (age_years - 60) + look.grey_sd * rng.standard_normal()
    image = look.csf * (csf + lateral) + grey_mean * grey + look.white * white + look.texture * texture
    if look.grain:
        image = image + look.grain * (grey + white) * _speckle(image.shape, rng)
    tissue = np.stack([csf, grey, white, lateral])
    tissue, image = (_average(field, box, grid) for field in (tissue, image[None]))
    inside = tissue.sum(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in inside.shape), indexing="ij")
    terms = [*axes, *(a * b for i, a in enumerate(axes) for b in axes[i:])]
    bias = np.exp(look.bias * sum(c * term for c, term in zip(rng.standard_normal(len(terms)), terms, strict=True)))
    real, imaginary = look.noise * rng.standard_normal((2, *inside.shape))
    image = np.hypot(image[0] * bias + real, imaginary)  # Rician: the magnitude of a complex signal
    image = np.clip(image, 0, 1) if look.whole_head else np.clip(image, 0, 1) * (inside > 0.1)
    labels = np.where(inside > 0.5, 1 + tissue.argmax(0), 0).astype(np.uint8)
    return image.astype(np.float32), labels


def _speckle(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Random field (D, H, W) of unit deviation: half of it varies from voxel to voxel, half over about four."""
    from scipy import ndimage

    parts = [ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), width) for width in (0.6, 2.0)]
    return sum(part / (part.std() * 2**0.5) for part in parts)


def _average(field: np.ndarray, box: list[slice], grid: Grid) -> np.ndarray:
    """Field (C, D, H, W) of a box of the working grid as the partial volume of the profile's larger voxels."""
    factor = working_factor(grid)
    rows = [field[:, i::factor, j::factor] for i in range(factor) for j in range(factor)]
    whole = np.zeros((len(field), *grid.shape), np.float32)
    place = [slice(part.start // factor, part.stop // factor) for part in box]
    whole[:, *place] = sum(sum(row[..., k::factor] for k in range(factor)) for row in rows) / factor**3
    return whole


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
    warped, box = warp_subject(anatomy, grid, wanted, rng, look)
    maps = widen_sulci(warped, brain / size, look.sharpness)
    found = volumes_ml(maps, grid.spacing_mm / working_factor(grid))
    image, labels = render(maps, box, grid, float(row["age_years"]), rng, look)
    measured = {
        "ventricular_volume_ml": round(found["lateral"], 3),
        "brain_volume_ml": round(found["brain"] * REFERENCE_ICV_ML / found["intracranial"], 2),
        "intracranial_volume_ml": round(found["intracranial"], 2),
    }
    return Subject(image, labels, measured)


def simulate_requests(requests: pd.DataFrame, grid: Grid, seed: int = 0) -> tuple[np.ndarray, pd.DataFrame]:
    """One person of the template's anatomy, once for each row: volumes (N, D, H, W); the rows with ``measured_`` ml."""
    import pandas as pd

    anatomy = atlas_anatomy(grid.spacing_mm / working_factor(grid))
    people = [simulate_subject(anatomy, grid, row, seed) for row in requests.to_dict("records")]
    measured = pd.DataFrame([person.measured for person in people]).add_prefix("measured_")
    return np.stack([person.image for person in people]), requests.reset_index(drop=True).join(measured)
