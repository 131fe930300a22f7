"""Warps: points, linear look-ups, flows and their exponentials, in mm on regular grids. Arrays are (1, C, D, H, W)."""

from __future__ import annotations

from typing import Any

import numpy as np


def look_up(field: Any, points: Any, origin: Any, spacing: float) -> Any:
    """Linear interpolation of (1, C, D, H, W) at points (1, 3, d, h, w) in mm; the edge value outside."""
    import torch

    sides = torch.tensor(field.shape[2:], dtype=torch.float32)
    origin = torch.as_tensor(np.asarray(origin), dtype=torch.float32)
    scale, shift = 2 / (spacing * (sides - 1)), -2 * origin / (spacing * (sides - 1)) - 1
    unit = points[0] * scale.view(3, 1, 1, 1) + shift.view(3, 1, 1, 1)
    order = unit.flip(0).permute(1, 2, 3, 0)[None]  # grid_sample wants (W, H, D)
    return torch.nn.functional.grid_sample(field, order, mode="bilinear", padding_mode="border", align_corners=True)


def grid_points(shape: tuple[int, ...], origin: Any, spacing: float) -> Any:
    """Centres (1, 3, D, H, W) of a grid in mm."""
    import torch

    axes = [torch.arange(n, dtype=torch.float32) * spacing + start for n, start in zip(shape, origin, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def integrate(velocity: Any, origin: Any, spacing: float, squarings: int = 4) -> Any:
    """Displacement (1, 3, D, H, W) in mm of exp(velocity) by scaling and squaring."""
    points = grid_points(velocity.shape[2:], origin, spacing)
    displacement = velocity / 2**squarings
    for _ in range(squarings):
        displacement = displacement + look_up(displacement, points + displacement, origin, spacing)
    return displacement


def jacobian_determinant(displacement: Any, spacing: float) -> Any:
    """Determinant (D, H, W) of the gradient of x + displacement, (1, 3, D, H, W) in mm; positive: nothing folds."""
    import torch

    rows = [torch.stack(torch.gradient(part, spacing=spacing)) for part in displacement[0]]
    for axis, row in enumerate(rows):
        row[axis] += 1
    return (rows[0] * torch.linalg.cross(rows[1], rows[2], dim=0)).sum(0)


def random_warp(
    rng: np.random.Generator, extent_mm: np.ndarray, centre_mm: tuple[float, ...], rms_mm: float, wavelength_mm: float
) -> tuple[Any, np.ndarray, float]:
    """Displacement (1, 3, d, h, w), mm, of a smooth random diffeomorphism, with its origin and spacing.

    exp of band-limited Gaussian noise on a grid of a quarter of the wavelength, whatever the voxels of the image.
    """
    import torch
    from scipy import ndimage

    spacing = wavelength_mm / 4
    shape = tuple(int(np.ceil(round(side / spacing, 3))) for side in extent_mm)
    origin = np.array(centre_mm) - spacing * (np.array(shape) - 1) / 2
    # A Gaussian of a quarter of the wavelength leaves a field of about that mean wavelength.
    smooth = np.stack([ndimage.gaussian_filter(rng.standard_normal(shape), 1.0, mode="wrap") for _ in range(3)])
    smooth *= rms_mm / np.sqrt((smooth**2).sum(0).mean())
    return integrate(torch.from_numpy(smooth.astype(np.float32))[None], origin, spacing), origin, spacing


def potential_flow(density: np.ndarray, inside: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Solve the Neumann problem  div grad psi = density  inside a mask; return grad psi (3, D, H, W)."""
    from scipy import sparse
    from scipy.sparse.linalg import cg

    number = np.full(inside.shape, -1)
    number[inside] = np.arange(inside.sum())
    size = int(inside.sum())
    laplacian, links = sparse.csr_matrix((size, size)), []
    for axis in range(3):
        first, second = (np.take(number, range(s, number.shape[axis] - 1 + s), axis).ravel() for s in (0, 1))
        both = (first >= 0) & (second >= 0)
        first, second = first[both], second[both]
        ones = np.ones(first.size)
        difference = sparse.csr_matrix(
            (np.concatenate([-ones, ones]), (np.tile(np.arange(first.size), 2), np.concatenate([first, second]))),
            shape=(first.size, size),
        )
        laplacian = laplacian + difference.T @ difference
        links.append((difference, first, second))
    right = density[inside] * spacing_mm**2
    scale = sparse.diags(1 / np.maximum(laplacian.diagonal(), 1))
    potential, failed = cg(laplacian, right.mean() - right, rtol=1e-5, maxiter=3000, M=scale)
    if failed:
        raise RuntimeError("the tissue flow did not converge")
    flow = np.zeros((3, *inside.shape), np.float32)
    for axis, (difference, first, second) in enumerate(links):
        face = difference @ potential / spacing_mm
        # A face without a neighbour is the skull: zero velocity there enters the mean of the two faces.
        flow[axis][inside] = 0.5 * (np.bincount(first, face, size) + np.bincount(second, face, size))
    return flow
