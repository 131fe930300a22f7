"""The memorisation audit of a run, in two spaces: the latents of its own autoencoder, and an extractor's features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .dataset import Cohort
from .features import Extractor, extract
from .memorisation import Audit, audit, plant_duplicates
from .neighbours import nearest
from .records import Run
from .samples import reconstruct
from .sampling import Pipeline
from .training import cached_latents, encode_latents

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Space:
    """Where distances are taken: ``embed`` makes rows (N, F) of volumes (N, D, H, W); training and held-out rows."""

    name: str
    embed: Callable[[np.ndarray], np.ndarray]
    training: np.ndarray
    held_out: np.ndarray


def spaces(
    run: Run, pipeline: Pipeline, extractor: Extractor, training: np.ndarray, held_out: np.ndarray
) -> dict[str, Space]:
    """Latents and features of a run's training and held-out scans (N, D, H, W), in the order of the cohort.

    Training latents are those that training has cached.
    """

    def tensor(volumes: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(np.asarray(volumes, np.float32)).reshape(-1, 1, *np.shape(volumes)[-3:])

    def latents(volumes: np.ndarray) -> np.ndarray:
        return encode_latents(pipeline.autoencoder, tensor(volumes))[0].flatten(1).numpy()

    def features(volumes: np.ndarray) -> np.ndarray:
        return extract(extractor, tensor(volumes))

    known = cached_latents(run, run.stage("diffusion"), tensor(training))[0][: len(training)]  # behind: mirror images
    found = {"latents": Space("latents", latents, known.flatten(1).numpy(), latents(held_out))}
    name = f"features of {extractor.name}"
    return found | {"features": Space(name, features, features(training), features(held_out))}


def audit_all(
    found: Mapping[str, Space], volumes: np.ndarray, who: Mapping[str, Any], draws: int = 1000, seed: int = 0
) -> dict[str, Audit]:
    """Audit of volumes (N, D, H, W) in every space; ``who``: subjects of both sets, from ``subjects``."""
    return {
        key: audit(space.embed(volumes), space.training, space.held_out, draws=draws, seed=seed, **who)
        for key, space in found.items()
    }


def subjects(cohort: Cohort) -> dict[str, list[Any]]:
    """Participants of the training and test rows: several scans of one are one subject."""
    pairs = {"training_subjects": "train", "held_out_subjects": "test"}
    return {key: list(cohort.rows(split)["participant_id"]) for key, split in pairs.items()}


def planted(
    found: Mapping[str, Space],
    pipeline: Pipeline,
    training: np.ndarray,
    who: Mapping[str, Any],
    levels: Mapping[str, Mapping[str, float] | None],
    count: int = 32,
    seed: int = 0,
) -> tuple[pd.DataFrame, dict[str, Audit]]:
    """Which share of planted copies of training scans is found and traced, a row a level; audits of the last level.

    Args:
        training: the scans (N, D, H, W) of which copies are made.
        levels: name -> settings of ``memorisation.plant_duplicates``, applied to volumes; None: what the autoencoder
            makes of the scans, the nearest to a copy that a model in its latents can come.
    """
    import pandas as pd

    rows, last = [], {}
    for name, level in levels.items():
        copies, sources = plant_duplicates(training[:, None], min(count, len(training)), seed=seed, **(level or {}))
        copies = reconstruct(pipeline, copies) if level is None else copies[:, 0].clamp(0, 1).numpy()
        last = audit_all(found, copies, who, draws=2, seed=seed)  # only single copies are looked at
        row: dict[str, Any] = {"copies": name, "n": len(copies)}
        for key, space in found.items():
            traced = float((nearest(space.embed(copies), space.training)[1] == sources).mean())
            row |= {f"{key}: found": last[key].flagged, f"{key}: traced": traced}
        rows.append(row)
    return pd.DataFrame(rows).set_index("copies"), last


def nearest_scans(
    space: Space, volumes: np.ndarray, training: np.ndarray, held_out: np.ndarray
) -> dict[str, np.ndarray]:
    """The nearest training and the nearest held-out scan (N, D, H, W) of each of volumes (N, D, H, W)."""
    rows = space.embed(volumes)
    pairs = {"nearest in training": (training, space.training), "nearest held out": (held_out, space.held_out)}
    return {name: scans[nearest(rows, known)[1]] for name, (scans, known) in pairs.items()}
