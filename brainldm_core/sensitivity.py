"""What each metric says of broken generators, and of healthy people: which fault does it see, to which is it blind?

Sets of volumes become portraits, from which every metric is computed; random draws of healthy people say how far each
metric goes without any fault. What counts as caught is decided in ``verdicts``. ``spec/metrics.md``, beyond the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .audits import Space
from .conditioning import ASKED_AND_MEASURED
from .differences import cohens_d
from .faults import Fault
from .memorisation import audit
from .metrics import frechet_distance, kernel_distance, median_bandwidth, mmd, prdc
from .pairs import draw_pairs, pair_values
from .samples import measure_all
from .similarity import four_g_r_ssim, ms_ssim
from .spectra import noise_level, power_spectrum

if TYPE_CHECKING:
    import pandas as pd

SIMILAR = {"MS-SSIM": ms_ssim, "4-G-R-SSIM": four_g_r_ssim}


@dataclass(frozen=True)
class Portrait:
    """What metrics need to know of N volumes: features and latents (N, F), noise and finest power (N,), measured ml."""

    features: np.ndarray
    latents: np.ndarray
    noise: np.ndarray
    finest: np.ndarray
    measured: pd.DataFrame

    def __getitem__(self, rows: np.ndarray) -> Portrait:
        parts = (self.features, self.latents, self.noise, self.finest)
        return Portrait(*(part[rows] for part in parts), self.measured.iloc[rows].reset_index(drop=True))


def portray(volumes: np.ndarray, spaces: Mapping[str, Space], affine: Any, known: str | None = None) -> Portrait:
    """Portrait of volumes (N, D, H, W); ``known``: they are the ``training`` or ``held_out`` scans of the spaces."""
    spacing = float(np.abs(np.diag(np.asarray(affine, float))[:3]).mean())
    seen, inside = (
        getattr(spaces[key], known) if known else spaces[key].embed(volumes) for key in ("features", "latents")
    )
    finest = power_spectrum(volumes, spacing)[1][:, -1]
    return Portrait(seen, inside, noise_level(volumes), finest, measure_all(volumes, affine))


@dataclass(frozen=True)
class Bench:
    """Where sets are judged: training people with their rows, and the held-out people that are everyone's reference.

    ``n``: volumes of every set; ``pairs``: of people whose similarity is known, (P, 2).
    """

    people: Portrait
    reference: Portrait
    requests: pd.DataFrame
    volumes: np.ndarray
    n: int
    seed: int = 0

    @property
    def k(self) -> int:
        """Neighbours of precision and its kin."""
        return min(5, self.n - 1, len(self.reference.noise) - 1)

    @cached_property
    def bandwidth(self) -> float:
        """Of the kernel of MMD: one for all sets, from real people."""
        return median_bandwidth(self.people.features, self.reference.features)

    @cached_property
    def pairs(self) -> np.ndarray:
        """Random pairs (P, 2) of people, so many that a draw of n of them has about 120, or all."""
        size, inside = len(self.volumes), self.n * (self.n - 1) / 2
        return draw_pairs(size, int(size * (size - 1) / 2 * min(1, 120 / inside)), self.seed)

    @cached_property
    def similarities(self) -> dict[str, np.ndarray]:
        """Values (P,) of the similarities of those pairs."""
        volumes = torch.from_numpy(np.asarray(self.volumes, np.float32))[:, None]
        return {name: pair_values(metric, volumes, self.pairs) for name, metric in SIMILAR.items()}

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Rows of n people to be judged, and of n others that a model would have learned from."""
        order = rng.permutation(len(self.volumes))
        return order[: self.n], order[self.n : 2 * self.n]

    def judge(self, found: Portrait, asked: pd.DataFrame, seen: np.ndarray) -> dict[str, float]:
        """Every metric but the similarities, of a set that was asked for with the rows ``asked``.

        Memorisation is held against the people ``seen`` and as many strangers, the reference.
        """
        real = self.reference
        copies = audit(found.latents, self.people.latents[seen], real.latents, draws=1)
        values = {
            "FID": frechet_distance(real.features, found.features),
            "KID": kernel_distance(real.features, found.features),
            "MMD": mmd(real.features, found.features, self.bandwidth),
            **prdc(real.features, found.features, self.k),
            "noise level": _median(found.noise),
            "finest power": _median(found.finest) / _median(real.finest),
            "copies (share)": copies.share,
            "copies (flagged)": copies.flagged,
        }
        for name, (request, column) in ASKED_AND_MEASURED.items():
            values[f"{name} (r)"] = _correlation(asked[request], found.measured[column])
            values[f"{name} (d)"] = cohens_d(found.measured[column], real.measured[column])[0]
        return values

    def healthy(self, draws: int = 200) -> pd.DataFrame:
        """Every metric of random draws of healthy people, each a set a generator could have given: a row a draw."""
        import pandas as pd

        rng, rows = np.random.default_rng(self.seed), []
        for _ in range(draws):
            chosen, seen = self.draw(rng)
            inside = np.isin(self.pairs, chosen).all(1)
            similar = {
                name: float(values[inside].mean()) if inside.any() else np.nan
                for name, values in self.similarities.items()
            }
            rows.append(self.judge(self.people[chosen], self.requests.iloc[chosen], seen) | similar)
        return pd.DataFrame(rows)[list(METRICS)]

    def system(self, volumes: np.ndarray, asked: pd.DataFrame, seen: np.ndarray, found: Portrait) -> dict[str, float]:
        """Every metric of a set of volumes (n, D, H, W) with its portrait."""
        volumes = torch.from_numpy(np.asarray(volumes, np.float32))[:, None]
        pairs = draw_pairs(len(volumes), 120, self.seed)
        similar = {name: float(pair_values(metric, volumes, pairs).mean()) for name, metric in SIMILAR.items()}
        return self.judge(found, asked, seen) | similar


METRICS = (
    "FID", "KID", "MMD", "MS-SSIM", "4-G-R-SSIM", "precision", "recall", "density", "coverage", "noise level",
    "finest power", "copies (share)", "copies (flagged)", "ventricles (r)", "brain (r)", "ventricles (d)", "brain (d)",
)  # fmt: skip


def _median(values: np.ndarray) -> float:
    """Median of what is finite; NaN where nothing is."""
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else float("nan")


def _correlation(asked: np.ndarray, found: np.ndarray) -> float:
    """Pearson r of two columns (N,); NaN for fewer than three known pairs or a constant column."""
    pairs = np.column_stack([np.asarray(asked, float), np.asarray(found, float)])
    pairs = pairs[np.isfinite(pairs).all(1)]
    return float(np.corrcoef(pairs.T)[0, 1]) if len(pairs) > 2 and np.ptp(pairs, axis=0).all() else float("nan")


def judge_faults(
    bench: Bench, faults: list[Fault], seen: np.ndarray, spaces: Mapping[str, Space], affine: Any
) -> pd.DataFrame:
    """Every metric of every fault: rows (fault, severity). What is shown unchanged is not portrayed again."""
    import pandas as pd

    rows = {}
    for fault in faults:
        volumes = fault.volumes(bench.volumes, bench.seed)
        found = bench.people[fault.shown] if fault.change is None else portray(volumes, spaces, affine)
        rows[fault.name, fault.severity] = bench.system(volumes, bench.requests.iloc[fault.asked], seen, found)
    table = pd.DataFrame.from_dict(rows, orient="index")[list(METRICS)]
    return table.set_axis(pd.MultiIndex.from_tuples(rows, names=["generator", "severity"]))


def with_models(
    judged: pd.DataFrame,
    bench: Bench,
    models: Mapping[str, tuple[np.ndarray, pd.DataFrame, Portrait]],
    seen: np.ndarray,
) -> pd.DataFrame:
    """``judged`` with a row for each of other systems, first: name -> (volumes (n, D, H, W), rows asked, portrait)."""
    import pandas as pd

    rows = {(name, ""): bench.system(volumes, asked, seen, found) for name, (volumes, asked, found) in models.items()}
    table = pd.DataFrame.from_dict(rows, orient="index")[list(METRICS)]
    table = table.set_axis(pd.MultiIndex.from_tuples(rows, names=judged.index.names))
    return pd.concat([table, judged])
