"""MS-SSIM of random pairs and FID against other implementations, in one run on one machine.

    python benchmarks/metrics.py --out runs/metrics.json

MS-SSIM: random pairs of volumes in memory, the package's ``pair_values`` (what it computes once a volume counts as its
time) against ``MultiScaleSSIMMetric`` of MONAI and monai-generative, window 7, sigma 1.5. Both are tried with one pair
and with several at once, and the fastest way does all pairs, or the first ``--other-pairs`` of them. FID: the package's
routes, from tables and from moments, against ``scipy.linalg.sqrtm`` of the product of covariances and against MONAI's
``FIDMetric``, with fewer rows than features, so that covariances are singular. One case has a distance that is known in
closed form, the other is judged by symmetric eigendecompositions. Times of FID begin with the tables of features.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measures import environment, peak_gib, spread

from brainldm_core.metrics import draw_pairs, feature_moments, frechet_distance, ms_ssim, ms_ssim_scales
from brainldm_core.pairs import pair_values
from brainldm_core.records import commit, write_json
from brainldm_core.similarity import SCALE_WEIGHTS, SIGMA, WINDOW

CPU = torch.device("cpu")
TOGETHER = (1, 2, 4)  # pairs in one call of another implementation


def random_heads(n: int, grid: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    """Volumes (N, 1, D, H, W) in [0, 1]: an ellipsoid of varied size, filled with smooth noise, on an empty ground."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, side, dtype=np.float32) for side in grid], indexing="ij", sparse=True)
    volumes = np.empty((n, 1, *grid), np.float32)
    for volume in volumes[:, 0]:
        radius = np.sqrt(sum((axis / size) ** 2 for axis, size in zip(axes, rng.uniform(0.75, 0.95, 3), strict=True)))
        field = gaussian_filter(rng.standard_normal(grid, np.float32), 0.03 * max(grid))
        fine = gaussian_filter(rng.standard_normal(grid, np.float32), 1)
        shades = 0.5 + 0.15 * field / field.std() + 0.03 * fine / fine.std()
        volume[:] = np.clip(shades, 0, 1) / (1 + np.exp(20 * (radius - 1)))
    return torch.from_numpy(volumes)


def other_ms_ssims(scales: int) -> dict[str, Callable]:
    """The metric of each package that is installed, with our window, and weights of as many scales that sum to 1."""
    weights = np.array(SCALE_WEIGHTS[:scales])
    settings = {"kernel_size": WINDOW, "kernel_sigma": SIGMA, "weights": tuple(weights / weights.sum())}
    found = {}
    for package in ("monai", "generative"):
        with suppress(ImportError):
            module = import_module(f"{package}.metrics")
            found[package] = module.MultiScaleSSIMMetric(spatial_dims=3, data_range=1.0, **settings)
    return found


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds of a call, and what it gave."""
    start = time.perf_counter()
    found = function()
    return 1000 * (time.perf_counter() - start), found


def in_calls(
    metric: Callable, volumes: torch.Tensor, rows: np.ndarray, together: int
) -> tuple[list[float], np.ndarray]:
    """Milliseconds a pair, and values (P,), of ``together`` pairs at once."""
    times, values = [], []
    for part in np.split(rows, range(together, len(rows), together)):
        pair = volumes[part[:, 0]], volumes[part[:, 1]]
        spent, found = timed(lambda pair=pair: metric(*pair))
        times += [spent / len(part)] * len(part)
        values += found.flatten().tolist()
    return times, np.array(values)


def compare_ms_ssim(
    grid: tuple[int, int, int], n: int, pairs: int, repeats: int, other_pairs: int | None = None
) -> dict[str, Any]:
    """Milliseconds a pair of MS-SSIM over random pairs: ours, and the fastest way of the other implementations."""
    volumes, rows = random_heads(n, grid), draw_pairs(n, pairs)
    fewer = rows[:other_pairs]
    scales = ms_ssim_scales(grid)
    result = {"grid": list(grid), "volumes": n, "pairs": len(rows), "scales": scales}
    pair_values(ms_ssim, volumes, rows[:2], CPU)
    runs = [timed(lambda: pair_values(ms_ssim, volumes, rows, CPU)) for _ in range(repeats)]
    ours = runs[0][1]
    result["ours"] = spread([spent / len(rows) for spent, _ in runs]) | {"mean": float(ours.mean())}
    others, tried = other_ms_ssims(scales), {}
    for name, metric in others.items():
        for together in (number for number in TOGETHER if number <= len(fewer)):
            in_calls(metric, volumes, rows[:together], together)
            tried[name, together] = min(in_calls(metric, volumes, rows[:together], together)[0])
    name, together = min(tried, key=tried.get)
    times, values = in_calls(others[name], volumes, fewer, together)
    result["other"] = {
        "package": name,
        "pairs_a_call": together,
        "tried_ms": {f"{name}, {number} a call": round(spent, 3) for (name, number), spent in tried.items()},
        "pairs": len(fewer),
        "mean_ms": round(float(np.mean(times)), 3),
        "largest_difference": float(np.abs(values - ours[: len(fewer)]).max()),
        "over_ours": round(float(np.mean(times)) / result["ours"]["median_ms"], 2),
    }
    return result | {"peak_gib": peak_gib(CPU), "load_average": os.getloadavg()[0]}


def known_features(n: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, float]:
    """Two tables (N, F) of singular covariances with common eigenvectors, and the distance of their Gaussians.

    Their columns are orthonormal before they are scaled and turned, so that the distance is that of the means and of
    the standard deviations along each axis.
    """
    rng = np.random.default_rng(seed)
    rank = min(n - 1, width)
    turn = np.linalg.qr(rng.standard_normal((width, rank)))[0].T
    shift = 0.05 * rng.standard_normal(width)
    scales = [(1 + np.arange(rank)) ** -0.7 * rng.uniform(0.8, 1.2, rank) for _ in range(2)]
    tables = []
    for scale in scales:
        rows = rng.standard_normal((n, rank))
        columns = np.linalg.qr(rows - rows.mean(0))[0] * (n - 1) ** 0.5
        tables.append(columns * scale @ turn)
    return tables[0], tables[1] + shift, float((shift**2).sum() + ((scales[0] - scales[1]) ** 2).sum())


def random_features(n: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two tables (N, F) float32, not below zero and with few strong directions, as those of a network are."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((64, width)) / 8
    return tuple(
        np.maximum(shift + rng.standard_normal((n, 64)) @ mix + 0.2 * rng.standard_normal((n, width)), 0).astype("f4")
        for shift in (0.0, 0.1)
    )


def square_root_route(a: np.ndarray, b: np.ndarray) -> float:
    """FID by the square root of the product of covariances, as usual; a small diagonal where that is not finite."""
    import scipy.linalg

    a, b = a.astype(float), b.astype(float)
    one, two = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(one @ two)
    if not np.isfinite(root).all():
        more = 1e-6 * np.eye(len(one))
        root = scipy.linalg.sqrtm((one + more) @ (two + more))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one) + np.trace(two) - 2 * np.trace(root).real)


def symmetric_route(a: np.ndarray, b: np.ndarray) -> float:
    """FID by two symmetric eigendecompositions in float64, without eigenvalues of the size of rounding: the judge."""
    a, b = a.astype(float), b.astype(float)
    one, two = np.cov(a, rowvar=False), np.cov(b, rowvar=False)

    def kept(values: np.ndarray) -> np.ndarray:
        return np.where(values > len(values) * np.finfo(float).eps * values.max(), values, 0)

    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(kept(values))) @ vectors.T
    product = root @ two @ root
    shared = np.sqrt(kept(np.linalg.eigvalsh((product + product.T) / 2))).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one) + np.trace(two) - 2 * shared)


def compare_fid(n: int, width: int, repeats: int) -> list[dict[str, Any]]:
    """Milliseconds and value of FID by each route, in both cases."""
    from monai.metrics import FIDMetric

    routes = {
        "ours": frechet_distance,
        "ours_from_moments": lambda a, b: frechet_distance(feature_moments([a]), feature_moments([b])),
        "sqrtm": square_root_route,
        "monai": lambda a, b: float(FIDMetric()(torch.from_numpy(b), torch.from_numpy(a))),
    }
    a, b, known = known_features(n, width)
    c, d = random_features(n, width)
    cases = []
    for name, pair, judge in (("known", (a, b), known), ("random", (c, d), symmetric_route(c, d))):
        case = {"case": name, "n": n, "features": width, "judge": judge, "routes": {}}
        case["judged_by"] = "closed form" if name == "known" else "symmetric eigendecompositions"
        for route, function in routes.items():
            ours = route.startswith("ours")
            runs = [timed(lambda pair=pair, function=function: function(*pair)) for _ in range(repeats if ours else 1)]
            value = runs[0][1]
            found = spread([spent for spent, _ in runs])
            case["routes"][route] = found | {"value": value, "relative_error": abs(value / judge - 1)}
        for route in ("sqrtm", "monai"):
            ratio = case["routes"][route]["median_ms"] / case["routes"]["ours"]["median_ms"]
            case["routes"][route]["over_ours"] = round(ratio, 2)
        if name == "known":
            case["symmetric_relative_error"] = abs(symmetric_route(*pair) / judge - 1)
        cases.append(case | {"load_average": os.getloadavg()[0]})
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=int, nargs=3, default=(160, 224, 160), metavar=("D", "H", "W"))
    parser.add_argument("--volumes", type=int, default=18)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--other-pairs", type=int, help="pairs of the other implementation, if not all")
    parser.add_argument("--n", type=int, default=1000, help="rows of features")
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3, help="of our own times; others are taken once")
    parser.add_argument("--out", type=Path, help="JSON file of all results")
    options = parser.parse_args()
    content = {"commit": commit(), "environment": environment(CPU) | {"threads": torch.get_num_threads()}}
    content["ms_ssim"] = compare_ms_ssim(
        tuple(options.grid), options.volumes, options.pairs, options.repeats, options.other_pairs
    )
    print(content["ms_ssim"], flush=True)
    content["fid"] = compare_fid(options.n, options.features, options.repeats)
    print(content["fid"], flush=True)
    if options.out:
        write_json(options.out, content)


if __name__ == "__main__":
    main()
