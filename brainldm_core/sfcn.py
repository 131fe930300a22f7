"""Brain age by SFCN (Peng et al. 2021), trained by its authors on 12,949 people of UK Biobank.

Another reader of age than the network of Cole et al. that a run trains: it has seen no volume of ours. Its weights are
foreign (``brainldm data fetch sfcn``). It knows ages from 42 to 82 years and brains alone of 1 mm in MNI space.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .errors import BrainLDMError
from .foreign import checked, filled, read_state
from .networks import default_device, in_batches
from .profiles import Grid
from .registration import is_brain_only
from .resampling import resample

FILE = "run_20190719_00_epoch_best_mae.p"
CHANNELS = (1, 32, 64, 128, 256, 256, 64)
FIRST_YEAR, BINS = 42.0, 40  # of one year each
GRID = Grid(shape=(182, 218, 182), spacing_mm=1.0, centre_mm=(-0.5, -17.5, 18.5))  # of FSL's MNI152, by its mean
CROP = (160, 192, 160)
BATCH = 2  # padded; one alone would take a slow path of convolutions on CPUs


def build_sfcn() -> nn.Module:
    """Six blocks of convolution, batch norm, pooling and ReLU, then 40 logits: (B, 1, D, H, W) to (B, 40, 1, 1, 1).

    The last block has a kernel of 1 and no pooling. The mean that follows is over 5 x 6 x 5 voxels of the published
    grid. Modules are named as in the published file; dropout, which only training has, is left out.
    """
    blocks: dict[str, nn.Module] = {}
    for number, (before, after) in enumerate(pairwise(CHANNELS)):
        last = number == len(CHANNELS) - 2
        convolution = nn.Conv3d(before, after, 1) if last else nn.Conv3d(before, after, 3, padding=1)
        pooling = [] if last else [nn.MaxPool3d(2)]
        blocks[f"conv_{number}"] = nn.Sequential(convolution, nn.BatchNorm3d(after), *pooling, nn.ReLU())
    head = OrderedDict(average_pool=nn.AdaptiveAvgPool3d(1), conv_6=nn.Conv3d(CHANNELS[-1], BINS, 1))
    return nn.Sequential(
        OrderedDict(feature_extractor=nn.Sequential(OrderedDict(blocks)), classifier=nn.Sequential(head))
    )


def load_sfcn(folder: Path | None = None) -> nn.Module:
    """The published network, in evaluation mode.

    Args:
        folder: holds the published file; None: where ``brainldm data fetch sfcn`` puts it.

    Raises:
        BrainLDMError: the file is missing, is another one, or does not hold this network.
    """
    path = checked("sfcn", folder)[FILE]
    return filled(build_sfcn, read_state(path), path, "SFCN")


def prepare(volume: np.ndarray, affine: Any) -> np.ndarray:
    """A brain alone (D, H, W) in MNI space as the network was trained on them: (160, 192, 160), mean near 1.

    On the grid of FSL's MNI152, left-right as in its files; over the mean of that whole grid; then its middle. The
    middle of our own grids lies elsewhere.

    Raises:
        BrainLDMError: voxels are not of 1 mm, or the volume holds more or less than a brain.
    """
    affine = np.asarray(affine, dtype=float)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(spacing - 1).max() > 0.1:
        raise BrainLDMError(f"volume: has voxels of {spacing.max():.3g} mm; SFCN reads brains of 1 mm (profile paper)")
    if not is_brain_only(volume, affine):
        raise BrainLDMError("volume: holds a whole head and SFCN reads brains alone; cut the brain out first")
    # A spline overshoots below 0 at the rim.
    placed = resample(volume, affine, np.eye(4), GRID).clip(min=0)[::-1]
    middle = tuple(
        slice((have - want) // 2, (have - want) // 2 + want) for have, want in zip(GRID.shape, CROP, strict=True)
    )
    return placed[middle] / placed.mean()


def years_of(network: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Expected age in years, (B,), over the middles of the bins: prepared volumes (B, 1, D, H, W), always float32."""
    middles = FIRST_YEAR + 0.5 + torch.arange(BINS, device=batch.device)
    with torch.autocast(batch.device.type, enabled=False):
        return network(batch).flatten(1).softmax(1) @ middles


def predict_years(network: nn.Module, volumes: np.ndarray, affine: Any) -> np.ndarray:
    """Brain ages in years, (N,), of brains alone (N, D, H, W) of 1 mm whose ``affine`` places them in MNI space.

    Raises:
        BrainLDMError: as ``prepare``.
    """
    device = torch.device(default_device())
    network = network.to(device)
    years = []
    for start in range(0, len(volumes), BATCH):  # prepared part by part: a hundred of them are 2 GB
        part = np.stack([prepare(volume, affine) for volume in volumes[start : start + BATCH]])
        years.append(in_batches(lambda x: years_of(network, x), torch.from_numpy(part)[:, None], BATCH, device))
    return torch.cat(years).double().numpy() if years else np.empty(0)
