"""Random T1w heads from label maps, to train a segmentation on, in the manner of SynthSeg (Billot et al. 2023).

A person is the share of each structure in voxels of 2 mm. An image is linear in the intensities of the structures, so
that mixed voxels look as they do in a scan, and the shares are what a segmentation should find in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BrainLDMError
from .label_maps import CLOSING_MM, CSF, EXTRACEREBRAL, LATERAL, WHITE_SHARE, only_known, read_label_map

VOXEL_MM = 2.0
TISSUES = ("outside", "CSF", "grey", "white", "lateral")
SHARES = tuple(sorted(set(WHITE_SHARE.values())))
SHELLS = 11  # groups of the labels outside the brain
BRAIN = len(SHARES)  # groups before this one are parenchyma
NEAR_CSF, FAR_CSF, VENTRICLE, SHELL, AIR = BRAIN, BRAIN + 1, BRAIN + 2, BRAIN + 3, BRAIN + 3 + SHELLS
GROUPS, UNKNOWN = AIR, AIR + 1  # air has the share that is left
WHITE_FROM = 0.7  # structures with at least this share of white count as white matter
MARGIN_MM = 32.0  # of the head that is kept around the brain
REACH_MM = 12.0  # how far from the ventricles their growth is felt


@dataclass(frozen=True)
class Person:
    """One head in voxels of 2 mm, nearest to RAS, its brain at the centre.

    ``shares`` (GROUPS, D, H, W) uint8 in eighths. ``fields`` (5, D, H, W) float16: distances in mm to the closed brain
    (negative inside) and to the brain itself, and the way out of the lateral ventricles, of length 1 near them.
    """

    name: str
    shares: np.ndarray
    fields: np.ndarray


def read_person(path: Path) -> Person:
    """Shares of structures of a label map with FreeSurfer's labels and voxels of 1 mm.

    Raises:
        BrainLDMError: the file is no label map of a brain, or has other voxels.
    """
    labels, affine = read_label_map(path)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(spacing - 1).max() > 0.05:
        raise BrainLDMError(f"{path}: has voxels of {spacing.round(2)} mm; give a label map with voxels of 1 mm")
    groups = _group_of(labels)
    brain = groups < BRAIN
    if not ((groups == VENTRICLE).any() and brain.any()):
        raise BrainLDMError(f"{path}: has no lateral ventricles or no brain; FreeSurfer's labels are needed")
    box = _around(brain)
    groups = _known(labels[box], groups[box])
    groups = np.pad(groups, [(0, side % 2) for side in groups.shape], mode="edge")
    shape = tuple(side // 2 for side in groups.shape)
    counts = np.zeros((GROUPS + 1, np.prod(shape)), np.uint8)
    place = np.arange(np.prod(shape))
    for corner in np.ndindex(2, 2, 2):
        counts[groups[corner[0] :: 2, corner[1] :: 2, corner[2] :: 2].ravel(), place] += 1
    counts = counts[:GROUPS].reshape(GROUPS, *shape)
    fields = _fields(counts)
    outside = fields[0] > 0
    counts[FAR_CSF][outside] += counts[NEAR_CSF][outside]
    counts[NEAR_CSF][outside] = 0
    return Person(path.name.split(".")[0], counts, fields)


def _known(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Groups of labels whose rare unknown values are those of the nearest known voxel of the brain."""
    unknown = groups == UNKNOWN
    if not unknown.any():
        return groups
    groups, box = groups.copy(), _around(unknown, 6)
    groups[box] = np.where(unknown[box], _group_of(only_known(labels[box])), groups[box])
    return groups


def _around(mask: np.ndarray, margin: float = MARGIN_MM) -> tuple[slice, ...]:
    """The box of a mask with a margin in voxels."""
    ends = [np.flatnonzero(mask.any(tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)]
    return tuple(slice(max(0, int(first - margin)), int(last + margin) + 1) for first, last in ends)


def _group_of(labels: np.ndarray) -> np.ndarray:
    """Group of each voxel: a structure of the brain, CSF, a lateral ventricle, a shell of the head, air, or unknown."""
    table = np.full(int(labels.max()) + 1, UNKNOWN, np.uint8)
    table[0] = AIR
    for label in range(1, len(table)):
        known = 3 if 1000 <= label < 3000 else 2 if 3000 <= label < 5000 else label  # parcels of cortex and beneath
        if known in WHITE_SHARE:
            table[label] = SHARES.index(WHITE_SHARE[known])
        elif known in CSF:
            table[label] = NEAR_CSF
        elif known in LATERAL:
            table[label] = VENTRICLE
        elif EXTRACEREBRAL <= known < 1000:
            table[label] = SHELL + known % SHELLS
    return table[labels]


def _fields(counts: np.ndarray) -> np.ndarray:
    """``Person.fields`` of shares in eighths."""
    from scipy import ndimage

    def distance(mask: np.ndarray) -> np.ndarray:
        return (ndimage.distance_transform_edt(mask) * VOXEL_MM).astype(np.float32)

    lateral = counts[VENTRICLE] >= 4
    brain = counts[:BRAIN].sum(0) + counts[VENTRICLE] >= 4
    to_brain = distance(~brain)
    # Sulci belong to the head; the CSF label of the maps reaches far beyond them.
    closed = distance(to_brain <= CLOSING_MM) > CLOSING_MM
    to_closed = distance(~closed) - distance(closed)
    to_lateral = ndimage.gaussian_filter(distance(~lateral) - distance(lateral), 1.0)
    out = np.stack(np.gradient(to_lateral, VOXEL_MM))
    out *= np.exp(-np.maximum(to_lateral, 0) / REACH_MM) / np.maximum(np.linalg.norm(out, axis=0), 1)
    return np.stack([to_closed, to_brain, *out]).astype(np.float16)


def tissue_table() -> np.ndarray:
    """Which tissue (5, GROUPS) each group is; CSF far from the brain and the shells are outside."""
    table = np.zeros((len(TISSUES), GROUPS), np.float32)
    for group, share in enumerate(SHARES):
        table[3 if share >= WHITE_FROM else 2, group] = 1
    table[1, NEAR_CSF] = table[4, VENTRICLE] = 1
    table[0, [FAR_CSF, *range(SHELL, AIR)]] = 1
    return table


def draw_contrast(rng: np.random.Generator) -> np.ndarray:
    """Mean and spread (2, GROUPS) of the intensity of each group in a random T1w contrast; white matter is 1."""
    grey = rng.uniform(0.45, 0.88)
    fluid = min(rng.uniform(0.05, 0.5), grey - 0.12)
    mean = np.empty(GROUPS)
    mean[:BRAIN] = grey + np.array(SHARES) * (1 - grey) + rng.normal(0, 0.04, BRAIN)
    mean[SHARES.index(1.0)], mean[SHARES.index(0.0)] = 1, grey
    mean[[NEAR_CSF, VENTRICLE]] = fluid + rng.normal(0, 0.03, 2)
    mean[FAR_CSF] = rng.uniform(0.5 * fluid, 1.0)  # with dura, vessels and marrow
    mean[SHELL:] = rng.uniform(0, 1.4, SHELLS)
    spread = rng.uniform(0, 0.07, GROUPS)
    spread[FAR_CSF:VENTRICLE] = rng.uniform(0, 0.25)
    spread[SHELL:] = rng.uniform(0, 0.3, SHELLS)
    return np.stack([np.maximum(mean, 0), spread]).astype(np.float32)


def draw_places(rng: np.random.Generator, person: Person, shape: Sequence[int]) -> Any:
    """Points (1, 3, d, h, w) of a person, mm from the centre of the grid, for the voxels of a random image of it.

    Rotation, scale, shift, mirror, a smooth diffeomorphism, and ventricles that grow or shrink.
    """
    import torch
    from scipy.spatial.transform import Rotation

    from .warps import grid_points, look_up, random_warp

    start = -VOXEL_MM * (np.array(shape) - 1) / 2
    turn = Rotation.from_euler("xyz", rng.uniform(-15, 15, 3), degrees=True).as_matrix()
    size = rng.uniform(0.85, 1.18) * rng.uniform(0.95, 1.05, 3)
    matrix = turn / size
    matrix[:, 0] *= rng.choice([-1, 1])
    points = grid_points(tuple(shape), start, VOXEL_MM)
    points = torch.einsum("ij,bjdhw->bidhw", torch.from_numpy(matrix.astype(np.float32)), points)
    points += torch.from_numpy(rng.uniform(-14, 14, 3).astype(np.float32)).view(1, 3, 1, 1, 1)
    extent = VOXEL_MM * np.array(person.shares.shape[1:])
    warp, origin, spacing = random_warp(rng, extent, (0.0, 0.0, 0.0), rng.uniform(1, 5), rng.uniform(40, 80))
    points = points + look_up(warp, points, origin, spacing)
    out = torch.from_numpy(person.fields[2:])[None].float()
    return points - rng.uniform(-1.5, 3.0) * look_up(out, points, grid_origin(person), VOXEL_MM)


def grid_origin(person: Person) -> np.ndarray:
    """First voxel of a person in mm from the centre of its grid."""
    return -VOXEL_MM * (np.array(person.shares.shape[1:]) - 1) / 2


def render(person: Person, shape: Sequence[int], generator: Any) -> tuple[Any, Any]:
    """Two images (2, 1, d, h, w) of a person in one pose, whole head and skull-stripped, and tissues (2, 5, d, h, w).

    Everything random comes from the torch ``generator``.
    """
    import torch

    from .random_scans import degrade, normalise, stripping
    from .warps import look_up

    rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    points = draw_places(rng, person, shape)
    looks = np.concatenate([draw_contrast(rng), draw_contrast(rng), tissue_table()[1:]])
    shares = torch.from_numpy(person.shares).flatten(1).float()
    maps = (torch.from_numpy(looks / 8) @ shares).view(1, len(looks), *person.shares.shape[1:])
    distances = torch.from_numpy(person.fields[:2])[None].float()
    maps = look_up(torch.cat([maps, distances], 1), points, grid_origin(person), VOXEL_MM)[0]
    tissues, images = maps[4:8], []
    kept = stripping(rng, maps[8], maps[9], generator)
    for mean, spread, mask in ((maps[0], maps[1], None), (maps[2], maps[3], kept)):
        images.append(normalise(degrade(rng, mean, spread, tissues[3], mask, generator)))
    inside = torch.stack([tissues, tissues * kept])
    return torch.stack(images)[:, None], torch.cat([1 - inside.sum(1, keepdim=True), inside], 1)
