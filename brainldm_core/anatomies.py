"""The anatomies of a simulated cohort: the template (``atlas``), or people from label maps (``anatomies``)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .anatomy import Anatomy, atlas_anatomy
from .covariates import RESIDUAL_SD
from .errors import BrainLDMError

if TYPE_CHECKING:
    import pandas as pd

HELD_OUT = 0.15  # of the people, for validation and for test each


def ensure_anatomies(labels: Path | None, folder: Path, spacing_mm: float, workers: int) -> dict[str, Path]:
    """Files of the anatomies on a grid of ``spacing_mm``, by name, made in ``folder`` where they are missing.

    Args:
        labels: folder of label maps; None: the template alone.

    Raises:
        BrainLDMError: no label maps, fewer than three, or one that is no label map of a brain.
    """
    from .label_maps import find_label_maps

    sources = {"atlas": None} if labels is None else find_label_maps(labels)
    if labels is not None and len(sources) < 3:
        raise BrainLDMError(
            f"{labels}: has too few label maps ({len(sources)}); each split needs a person of its own, so 3 or more"
        )
    paths = {name: folder / f"{name}-{spacing_mm:g}mm.npz" for name in sources}
    missing = [(source, paths[name], spacing_mm) for name, source in sources.items() if not paths[name].exists()]
    if labels is None:
        for job in missing:
            _make(job)
    elif missing:
        with ProcessPoolExecutor(min(workers, len(missing)), get_context("spawn")) as pool:
            list(pool.map(_make, missing))
    return paths


def _make(job: tuple[Path | None, Path, float]) -> None:
    from .label_maps import label_anatomy

    source, path, spacing_mm = job
    anatomy = atlas_anatomy(spacing_mm) if source is None else label_anatomy(source, spacing_mm)
    anatomy.save(path)


def shape_of(path: Path) -> tuple[float, float]:
    """Shares of the lateral ventricles and of the brain in the head of an anatomy."""
    volumes = Anatomy.load(path).volumes()
    return volumes["lateral"] / volumes["intracranial"], volumes["brain"] / volumes["intracranial"]


def split_anatomies(names: Sequence[str]) -> dict[str, list[str]]:
    """People of each split, ordered by the hash of their name: about 70, 15 and 15 %, and at least one each.

    A single anatomy, the template, is in all three.
    """
    order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    if len(order) == 1:
        return dict.fromkeys(("train", "validation", "test"), order)
    held = max(1, round(HELD_OUT * len(order)))
    return {"train": order[: -2 * held], "validation": order[-2 * held : -held], "test": order[-held:]}


def assign_anatomies(
    table: pd.DataFrame, splits: Sequence[str], shapes: Mapping[str, tuple[float, float]], rng: np.random.Generator
) -> list[str]:
    """An anatomy for each row, from its own split: the nearer its shape to the request, the likelier.

    Likelihoods are exp(-d^2 / 2); d counts residual standard deviations of log ventricles and of the brain's share,
    so that nobody is bent far out of shape, and every person serves for many rows.
    """
    from .covariates import REFERENCE_ICV_ML

    groups = split_anatomies(list(shapes))
    fraction = table["brain_volume_ml"].to_numpy(float) / REFERENCE_ICV_ML
    lateral = np.log(table["ventricular_volume_ml"] / table["intracranial_volume_ml"]).to_numpy(float)
    chosen = []
    for row, split in enumerate(splits):
        own = np.array([shapes[name] for name in groups[split]])
        steps = np.stack([np.log(own[:, 0]) - lateral[row], own[:, 1] - fraction[row]], axis=1) / RESIDUAL_SD[:2]
        distance = (steps**2).sum(1) / 2
        weights = np.exp(distance.min() - distance)
        chosen.append(groups[split][rng.choice(len(weights), p=weights / weights.sum())])
    return chosen
