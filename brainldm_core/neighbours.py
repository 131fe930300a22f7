"""Distances between rows of numbers, and who is nearest: latents, features or voxels, all as (N, F)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .errors import BrainLDMError

Rows = np.ndarray | torch.Tensor


def _flat(rows: Rows, what: str) -> torch.Tensor:
    """Rows as (N, F) float64; anything with more axes is flattened."""
    values = torch.as_tensor(rows).double()
    values = values.reshape(len(values), -1) if len(values) else values.reshape(0, 0)
    if not len(values) or not torch.isfinite(values).all():
        raise BrainLDMError(
            f"{what}: {tuple(values.shape)} values, none or not all finite; give rows of numbers (N, F)"
        )
    return values


def distances(samples: Rows, references: Rows, chunk: int = 256) -> np.ndarray:
    """Euclidean distances (N, M) of samples (N, F) to references (M, F), in double precision.

    Raises:
        BrainLDMError: no rows, values that are not finite, or rows of unequal length.
    """
    one, two = _flat(samples, "samples"), _flat(references, "references")
    if one.shape[1] != two.shape[1]:
        raise BrainLDMError(f"samples have {one.shape[1]} values each and references {two.shape[1]}; give equal spaces")
    centre = two.mean(0)  # a common offset costs digits in the products
    one, two = one - centre, two - centre
    squares = (two**2).sum(1)
    parts = [(part**2).sum(1, keepdim=True) + squares - 2 * part @ two.T for part in one.split(chunk)]
    return torch.cat(parts).clamp(min=0).sqrt().numpy()


def nearest(samples: Rows, references: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Distance (N,) from each of samples (N, F) to the nearest of references (M, F), and which one that is (N,)."""
    indices = distances(samples, references).argmin(1)
    # By subtraction: exactly 0 for a copy, which the products above are not.
    gap = _flat(samples, "samples") - _flat(references, "references")[torch.from_numpy(indices)]
    return gap.norm(dim=1).numpy(), indices


def by_subject(matrix: np.ndarray, subjects: Sequence[Any] | None) -> tuple[np.ndarray, list[Any]]:
    """Distances (N, M) to scans as distances (N, S) to subjects, each at its nearest scan, and who they are."""
    if subjects is None:
        return matrix, list(range(matrix.shape[1]))
    if len(subjects) != matrix.shape[1]:
        raise BrainLDMError(f"{len(subjects)} names for {matrix.shape[1]} references; give one subject a row")
    places: dict[Any, list[int]] = {}
    for place, subject in enumerate(subjects):
        places.setdefault(subject, []).append(place)
    return np.stack([matrix[:, rows].min(1) for rows in places.values()], axis=1), list(places)
