"""Sets of volumes that need not fit into memory: an array, a tensor, or what reads from disk when it is indexed."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from .errors import BrainLDMError


class VolumeSet(Protocol):
    """Volumes (N, D, H, W) or (N, 1, D, H, W), floating point in [0, 1], by a slice or an array of whole numbers."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray | torch.Tensor: ...


def grid_of(volumes: VolumeSet) -> tuple[int, int, int]:
    """Grid (D, H, W) of a set of volumes; none of them is read.

    Raises:
        BrainLDMError: it has no volume, or another shape.
    """
    shape = tuple(volumes.shape)
    if len(shape) not in (4, 5) or len(shape) == 5 and shape[1] != 1 or not len(volumes):
        raise BrainLDMError(f"volumes of shape {shape}: give (N, D, H, W), at least one")
    return shape[-3:]


def take(volumes: VolumeSet, index: slice | np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """Volumes (B, 1, D, H, W) of a set, read now and moved to a device.

    Raises:
        BrainLDMError: intensities are not in [0, 1], or the set gave other shapes than it promised.
    """
    part = volumes[index]
    part = part if isinstance(part, torch.Tensor) else torch.from_numpy(np.array(part))  # a copy may be written to
    if tuple(part.shape[-3:]) != grid_of(volumes) or part.ndim != len(volumes.shape):
        raise BrainLDMError(f"volumes of shape {tuple(volumes.shape)} gave some of shape {tuple(part.shape)}")
    part = part[:, None] if part.ndim == 4 else part
    check_intensities(part)
    return part.to(device)


def check_intensities(volumes: torch.Tensor) -> None:
    """Refuse what is not floating point in [0, 1]."""
    if not (volumes.is_floating_point() and volumes.min() >= -1e-4 and volumes.max() <= 1 + 1e-4):
        raise BrainLDMError("volumes: intensities must be floating point numbers in [0, 1]; scale them first")
