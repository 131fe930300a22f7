"""The rows of table 1 of the paper: how near each system's volumes are to real ones, and how varied."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import numpy as np

from .errors import BrainLDMError
from .features import Extractor, extract
from .metrics import (
    PairMean,
    four_g_r_ssim,
    frechet_distance,
    kernel_distance,
    median_bandwidth,
    mmd,
    ms_ssim,
    ms_ssim_scales,
    pair_mean,
    prdc,
)
from .nifti_sets import first
from .volume_sets import VolumeSet

Row = dict[str, Any]
REAL = "real"
PAPER_GRID = (160, 224, 160)


def distribution_rows(
    real: VolumeSet,
    other_real: VolumeSet,
    systems: Mapping[str, VolumeSet],
    extractor: Extractor,
    own_n: Collection[str] = (),
    pairs: int = 1000,
    k: int = 5,
    draws: int = 200,
    seed: int = 0,
    features_of: Callable[[VolumeSet], np.ndarray] | None = None,
    done: Callable[[str, int, Callable[[], Row]], Row] | None = None,
) -> list[Row]:
    """A row a system, the real one first: FID, KID, MMD, MS-SSIM, 4-G-R-SSIM, precision and its kin (table 1).

    Null and ceiling rows (reconstructions, a Gaussian fitted to the latents, nearest neighbours) are systems too.
    FID depends on how many volumes there are. All rows therefore have the same n, that of the smallest set, and each
    takes its first n volumes; a system named in ``own_n`` keeps its own number, and is judged by its own ``fid_floor``:
    the FID of as many real volumes against the same reference. MMD has one bandwidth for all rows, from real volumes.

    Args:
        real: the reference of every row, (N, D, H, W) float32 in [0, 1]: an array, or a set that reads on demand.
        other_real: real volumes of other people; the row "real" and the floors.
        own_n: systems too small to set the common n.
        pairs: of MS-SSIM and 4-G-R-SSIM, at most.
        k: neighbours of precision and its kin; fewer where n is not above it.
        draws: halvings for the intervals of FID and KID.
        features_of: what makes features (n, F) of a set; None: ``extract`` with the extractor.
        done: gives the similarities of n volumes of a system, made by the function it is given or kept from before.

    Raises:
        BrainLDMError: volumes on different grids or not in [0, 1], fewer than two of any, or names that do not fit.
    """
    if REAL in systems or not set(own_n) <= set(systems):
        raise BrainLDMError(f"systems {list(systems)}, own_n {list(own_n)}: own_n must name systems, none is {REAL!r}")
    features_of = features_of or partial(extract, extractor)
    done = done or (lambda name, n, make: make())
    sets = {REAL: other_real, **systems}
    for name, volumes in {"reference": real, **sets}.items():
        if len(volumes.shape) != 4 or volumes.shape[1:] != real.shape[1:] or len(volumes) < 2:
            raise BrainLDMError(f"{name}: volumes {volumes.shape}; at least 2 on the reference's grid are needed")
    common = min(len(volumes) for name, volumes in sets.items() if name not in own_n)
    numbers = {name: min(len(sets[REAL]), len(sets[name])) if name in own_n else common for name in sets}
    reference = features_of(real)
    others = features_of(first(sets[REAL], max(numbers.values())))
    bandwidth = median_bandwidth(reference, others)
    squared = partial(mmd, bandwidth=bandwidth)
    rows = []
    for name, n in numbers.items():
        volumes = first(sets[name], n)
        found = others[:n] if name == REAL else features_of(volumes)
        rows.append(
            {"model": name, "n": n, "n_reference": len(reference)}
            | _distance("fid", frechet_distance, reference, found, draws, seed)
            | {"fid_floor": frechet_distance(reference, others[:n])}
            | _distance("kid", kernel_distance, reference, found, draws, seed)
            | _distance("mmd", squared, reference, found, draws, seed)
            | {"mmd_bandwidth": bandwidth}
            | done(name, n, partial(_pairs, volumes, pairs, seed))
            | _neighbours(reference, found, k)
            | {"extractor": extractor.name, "extractor_sha256": extractor.sha256, "note": fid_note(extractor, real)}
        )
    return rows


def at_all(reference: np.ndarray, found: np.ndarray, draws: int = 200, seed: int = 0) -> Row:
    """FID and KID of all features (N, F) against all of the reference (M, F): what is mostly printed, without a floor.

    No real volumes are left to say what real ones would have at this n.
    """
    return (
        {"n": len(found), "n_reference": len(reference)}
        | _distance("fid", frechet_distance, reference, found, draws, seed)
        | _distance("kid", kernel_distance, reference, found, draws, seed)
    )


def fid_note(extractor: Extractor, volumes: VolumeSet) -> str:
    """The extractor's words, and a warning where the grid (N, D, H, W) is not the paper's."""
    shape = tuple(volumes.shape[-3:])
    if extractor.comparable and shape != PAPER_GRID:
        return f"{extractor.note}, on {'x'.join(map(str, shape))} voxels: not comparable with the paper's FID"
    return extractor.note


def _distance(
    name: str, metric: Callable[..., float], reference: np.ndarray, found: np.ndarray, draws: int, seed: int
) -> dict[str, float | None]:
    """A distance with its 95 % interval from random halves of both sets, drawn without replacement.

    The spread of a mean over halves equals that of the mean over other samples of full size, so the quantiles of
    halves, about their own mean, are laid around the value of all. A bootstrap would repeat volumes and shift FID.
    """
    value = metric(reference, found)
    if min(len(reference), len(found)) < 4:  # a half of one volume has no covariance
        return {name: value, f"{name}_low": None, f"{name}_high": None}
    rng = np.random.default_rng(seed)

    def half(features: np.ndarray) -> np.ndarray:
        return features[rng.permutation(len(features))[: len(features) // 2]]

    halves = np.array([metric(half(reference), half(found)) for _ in range(draws)])
    low, high = value + np.quantile(halves - halves.mean(), [0.025, 0.975])
    low = max(low, 0.0) if metric is frechet_distance else low  # the kernel's estimate may be below zero
    return {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}


def _pairs(volumes: VolumeSet, pairs: int, seed: int) -> Row:
    similar = {"ms_ssim": pair_mean(ms_ssim, volumes, pairs, seed)}
    similar["four_g_r_ssim"] = pair_mean(four_g_r_ssim, volumes, pairs, seed)
    row: dict[str, Any] = {"pairs": similar["ms_ssim"].pairs, "ms_ssim_scales": ms_ssim_scales(volumes.shape[-3:])}
    for name, mean in similar.items():
        row |= {name: mean.value, f"{name}_low": _finite(mean, "low"), f"{name}_high": _finite(mean, "high")}
    return row


def _finite(mean: PairMean, end: str) -> float | None:
    value = getattr(mean, end)
    return value if np.isfinite(value) else None


def _neighbours(reference: np.ndarray, found: np.ndarray, k: int) -> dict[str, float]:
    k = min(k, len(reference) - 1, len(found) - 1)
    return {"k": k, **prdc(reference, found, k)}
