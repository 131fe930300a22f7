"""Tissues of a T1w scan, whole head or brain only, by a small UNet: volumes in ml and label maps.

The network has only seen images rendered from label maps (``segmentation_training``). It works on voxels of 2 mm, on
a scan and its mirror image, and gives the share of each tissue in each voxel. On the scan's own voxels the border of
the ventricles then goes by intensities. Sums of shares are volumes.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .morphometry import volumes_of
from .random_scans import normalise
from .rendering import TISSUES, VOXEL_MM

if TYPE_CHECKING:
    from torch import nn

SHIPPED = "weights/segmenter.safetensors"
LICENCE = "Apache-2.0; trained on images rendered from the training label maps of SynthSeg (Apache-2.0)"
DIVISOR = 16  # sides of the network's input
BOX = (96, 112, 96)  # voxels of 2 mm around a brain: what the network sees of a larger scan
PIECE_ML = 0.2  # a smaller piece of ventricle is none
LEAST_ML = 100.0  # less than this is no head
NEARBY_MM = 6.0  # how far around a voxel the intensity of tissue is averaged
DEVIATION = 0.4  # of intensities from those of fluid and of tissue, in units of their contrast
NEVER = 0.02  # a smaller share is no ventricle, whatever its intensity
FLUID = ("CSF", "lateral")


@lru_cache(maxsize=1)
def load_segmenter(path: Path | None = None) -> nn.Module:
    """The network of a checkpoint; None: the one that ships."""
    from .errors import BrainLDMError
    from .networks import build_segmenter, default_device, load_checkpoint

    path = Path(str(files(__package__) / SHIPPED)) if path is None else path
    tensors, config = load_checkpoint(path, "segmenter")
    network = build_segmenter(config["channels"])
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise BrainLDMError(f"{path}: weights do not fit their own configuration ({error}); fetch it again") from None
    return network.eval().requires_grad_(False).to(default_device())


def working_grid(volume: np.ndarray, affine: Any) -> tuple[np.ndarray, np.ndarray]:
    """A scan in voxels of 2 mm, axes nearest to RAS, with its affine.

    Smaller voxels are averaged; scans in voxels of 2 mm stay as they are, whatever the order of their axes.
    """
    import nibabel as nib
    import SimpleITK as sitk

    from .resampling import as_image

    image = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(volume, np.float32), np.asarray(affine, float)))
    values, affine = np.asarray(image.dataobj, np.float32), image.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    sides = np.ceil(np.array(values.shape) * spacing / VOXEL_MM - 1e-3).astype(int)
    parts = np.maximum(1, np.ceil(VOXEL_MM / spacing - 0.25)).astype(int)  # points to average along each axis
    fine = VOXEL_MM / parts
    axes = affine[:3, :3] / spacing
    middle = affine[:3, :3] @ ((np.array(values.shape) - 1) / 2) + affine[:3, 3]
    first = middle - axes @ (fine * (sides * parts - 1) / 2)
    scan = as_image(values, affine)
    moved = sitk.Resample(
        scan, (sides * parts).tolist(), sitk.Transform(), sitk.sitkLinear, first.tolist(), fine.tolist(),
        scan.GetDirection(), 0.0, sitk.sitkFloat32,
    )  # fmt: skip
    blocks = sitk.GetArrayFromImage(moved).T.reshape([n for pair in zip(sides, parts, strict=True) for n in pair])
    placed = np.eye(4)
    placed[:3, :3] = axes * VOXEL_MM
    placed[:3, 3] = middle - axes @ (VOXEL_MM * (sides - 1) / 2)
    return blocks.mean((1, 3, 5), dtype=np.float32), placed


def predict(network: nn.Module, volume: np.ndarray) -> np.ndarray:
    """Shares of tissues (5, D, H, W) in a volume (D, H, W) of 2 mm near RAS: mean over it and its mirror image."""
    import torch

    pads = [(-side % DIVISOR) for side in volume.shape]
    before = [pad // 2 for pad in pads]
    padded = np.pad(volume, [(low, pad - low) for low, pad in zip(before, pads, strict=True)])
    image = normalise(torch.from_numpy(padded)).to(next(network.parameters()).device)
    with torch.inference_mode():
        both = network(torch.stack([image, image.flip(0)])[:, None]).softmax(1)
    shares = (both[0] + both[1].flip(1)) / 2
    inside = tuple(slice(low, low + side) for low, side in zip(before, volume.shape, strict=True))
    return shares[(slice(None), *inside)].cpu().numpy()


def tissue_shares(volume: np.ndarray, affine: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Shares of ``TISSUES`` (5, d, h, w) in voxels of 2 mm, with their affine; None where there is no head.

    A large scan is seen twice: as a whole, to find the brain, then in a box around it.
    """
    network = load_segmenter()
    scan, placed = working_grid(volume, affine)
    if not scan.max() > 0:
        return None
    shares = predict(network, scan)
    if any(side > limit for side, limit in zip(scan.shape, BOX, strict=True)):
        head = _head(shares)
        if head is None:
            return None
        box = _box(head)
        shares = np.zeros_like(shares)
        shares[0] = 1
        shares[(slice(None), *box)] = predict(network, scan[box])
    head = _head(shares)
    if head is None:
        return None
    shares *= head
    shares[0] += 1 - head
    return _plausible(shares), placed


def _plausible(shares: np.ndarray) -> np.ndarray:
    """Shares whose ventricles lie at most a voxel from pieces of ventricle; what is elsewhere goes to other tissues.

    A share of one per cent in every voxel of a head would add up to more than a ventricle holds.
    """
    from scipy import ndimage

    pieces, _ = ndimage.label(shares[4] > 0.5)
    large = np.bincount(pieces.ravel()) * VOXEL_MM**3 / 1000 >= PIECE_ML
    large[0] = False
    stray = shares[4] * ~ndimage.binary_dilation(large[pieces])
    others = shares[:4] / np.maximum(shares[:4].sum(0), 1e-6)
    return np.concatenate([shares[:4] + others * stray, (shares[4] - stray)[None]])


def _head(shares: np.ndarray) -> np.ndarray | None:
    """The largest piece inside the skull, with a rim of one voxel; None where there is no head."""
    from scipy import ndimage

    pieces, count = ndimage.label(shares[0] < 0.5)
    if not count:
        return None
    sizes = np.bincount(pieces.ravel())[1:]
    if sizes.max() * VOXEL_MM**3 / 1000 < LEAST_ML:
        return None
    return ndimage.binary_dilation(ndimage.binary_fill_holes(pieces == 1 + sizes.argmax()))


def _box(head: np.ndarray) -> tuple[slice, ...]:
    """The box around the middle of a head."""
    slices = []
    for axis, limit in enumerate(BOX):
        ends = np.flatnonzero(head.any(tuple({0, 1, 2} - {axis})))[[0, -1]]
        start = max(0, min(int(ends.sum() + 1 - limit) // 2, head.shape[axis] - limit))
        slices.append(slice(start, min(start + limit, head.shape[axis])))
    return tuple(slices)


def volumes_ml(shares: np.ndarray, voxel_ml: float) -> dict[str, float]:
    """Lateral ventricles, brain, intracranial volume (ml) and brain normalised, from shares (5, D, H, W)."""
    amounts = shares.sum((1, 2, 3), dtype=np.float64) * voxel_ml
    brain, size = float(amounts[2] + amounts[3]), float(amounts[1:].sum())
    return volumes_of(float(amounts[TISSUES.index("lateral")]), brain, size)


def shares_on(shape: tuple[int, ...], affine: Any, shares: np.ndarray, placed: np.ndarray) -> np.ndarray:
    """Shares (5, D, H, W) on the grid of a scan, from those of 2 mm that ``placed`` places."""
    import SimpleITK as sitk

    from .resampling import as_image

    scan = as_image(np.zeros(shape, np.float32), np.asarray(affine, float))
    edges = (1.0, 0.0, 0.0, 0.0, 0.0)
    return np.stack(
        [
            sitk.GetArrayFromImage(
                sitk.Resample(as_image(part, placed), scan, sitk.Transform(), sitk.sitkLinear, edge)
            ).T
            for part, edge in zip(shares, edges, strict=True)
        ]
    )


def sharpened(volume: np.ndarray, spacing: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Shares (5, D, H, W) that near the ventricles go by the intensities of the scan (D, H, W) too: Bayes' rule.

    The network's shares are the prior. Fluid, inside and outside the ventricles, has one intensity; tissue has that of
    the grey and white matter nearby. Both scatter by ``DEVIATION``.
    """
    from scipy import ndimage

    found = np.nonzero(shares[4] > NEVER)
    if not len(found[0]):
        return shares
    margin = np.ceil(2 * NEARBY_MM / spacing).astype(int)
    box = tuple(slice(max(0, k.min() - m), k.max() + m + 1) for k, m in zip(found, margin, strict=True))
    prior, values = shares[(slice(None), *box)], volume[box].astype(np.float32)
    fluid = np.average(values, weights=prior[4] ** 4)  # where there is no doubt
    pure = (prior[2] + prior[3] > 0.9).astype(np.float32)
    near = [ndimage.gaussian_filter(field, NEARBY_MM / spacing) for field in (pure, pure * values)]
    tissue = near[1] / np.maximum(near[0], 1e-3)
    contrast = tissue - fluid
    darker = np.clip((tissue - values) / np.where(contrast > 0, contrast, 1), 0, 1)  # 0 as tissue, 1 as fluid
    clear = (contrast > 0.1 * tissue) & (prior[4] > NEVER)  # elsewhere nothing changes
    likelier = np.where(clear, np.exp((darker - 0.5) / DEVIATION**2), 1)  # as fluid than as tissue
    weights = prior * np.stack([likelier if name in FLUID else np.ones_like(likelier) for name in TISSUES])
    moved = shares.copy()
    moved[(slice(None), *box)] = weights / weights.sum(0)
    return moved


def _shares(volume: np.ndarray, affine: Any) -> np.ndarray | None:
    """Shares (5, D, H, W) of ``TISSUES`` in the voxels of a scan (D, H, W); None: there is no head."""
    found = tissue_shares(volume, affine)
    if found is None:
        return None
    spacing = np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0)
    return sharpened(np.asarray(volume), spacing, shares_on(np.shape(volume), affine, *found))


def measure(volume: np.ndarray, affine: Any) -> dict[str, float] | None:
    """``volumes_ml`` of a scan (D, H, W); None: there is no head."""
    shares = _shares(volume, affine)
    return None if shares is None else volumes_ml(shares, abs(np.linalg.det(np.asarray(affine, float)[:3, :3])) / 1000)


def segment(volume: np.ndarray, affine: Any) -> np.ndarray:
    """Labels (D, H, W) uint8 on the grid of a scan: the place of the largest share in ``TISSUES``; 0 without a head."""
    shares = _shares(volume, affine)
    return np.zeros(np.shape(volume), np.uint8) if shares is None else shares.argmax(0).astype(np.uint8)
