"""The anatomies of a simulated cohort: the template (``atlas``), or people from label maps."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .anatomy import Anatomy, atlas_anatomy
from .covariates import REFERENCE_ICV_ML, RESIDUAL_SD
from .dataset import SPLITS, assign_splits, hash_order
from .errors import BrainLDMError

if TYPE_CHECKING:
    import pandas as pd


def ensure_anatomies(
    labels: Path | None, folder: Path, spacing_mm: float, workers: int, whole_head: bool = False
) -> dict[str, Path]:
    """Files of the anatomies on a grid of ``spacing_mm``, by name, made in ``folder`` where they are missing.

    Args:
        labels: folder of label maps; None: the template alone.
        whole_head: people keep what lies outside their brain.

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
    missing = [
        (source, paths[name], spacing_mm, whole_head) for name, source in sources.items() if not paths[name].exists()
    ]
    if missing:
        with ProcessPoolExecutor(min(workers, len(missing)), get_context("spawn")) as pool:
            list(pool.map(_make, missing))
    return paths


def _make(job: tuple[Path | None, Path, float, bool]) -> None:
    from .label_maps import label_anatomy

    source, path, spacing_mm, whole_head = job
    anatomy = atlas_anatomy(spacing_mm) if source is None else label_anatomy(source, spacing_mm, whole_head)
    anatomy.save(path)


@dataclass(frozen=True)
class Facts:
    """What a cohort has to know of an anatomy: its hash, and the shares of ventricles and brain in its head."""

    sha256: str
    lateral: float
    brain: float


def facts_of(path: Path) -> Facts:
    """Facts of the anatomy in a file."""
    anatomy = Anatomy.load(path)
    volumes = anatomy.volumes()
    digest = hashlib.sha256(anatomy.maps.tobytes() + anatomy.flow.tobytes()).hexdigest()
    return Facts(digest, volumes["lateral"] / volumes["intracranial"], volumes["brain"] / volumes["intracranial"])


def split_anatomies(names: Sequence[str]) -> dict[str, list[str]]:
    """People of each split, as participants are split; a single anatomy, the template, is in all three."""
    if len(names) == 1:
        return {split: list(names) for split in SPLITS}
    chosen = assign_splits(names)
    return {split: [name for name in hash_order(names) if chosen[name] == split] for split in SPLITS}


def assign_anatomies(table: pd.DataFrame, people: Mapping[str, Facts], rng: np.random.Generator) -> list[str]:
    """An anatomy for each row, from its own split: the nearer its shape to the request, the likelier.

    Likelihoods are exp(-d^2 / 2); d counts residual standard deviations of log ventricles and of the brain's share,
    so that nobody is bent far out of shape, and every person serves for many rows.
    """
    groups = split_anatomies(list(people))
    fraction = table["brain_volume_ml"].to_numpy(float) / REFERENCE_ICV_ML
    lateral = np.log(table["ventricular_volume_ml"] / table["intracranial_volume_ml"]).to_numpy(float)
    chosen = []
    for row, split in enumerate(table["split"]):
        own = np.array([(np.log(people[name].lateral), people[name].brain) for name in groups[split]])
        distance = (((own - (lateral[row], fraction[row])) / RESIDUAL_SD[:2]) ** 2).sum(1) / 2
        weights = np.exp(distance.min() - distance)
        chosen.append(groups[split][rng.choice(len(weights), p=weights / weights.sum())])
    return chosen
