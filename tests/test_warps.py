"""Warps: look-ups, exponentials and potential flows against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from brainldm_core import warps

PLACE = (np.array([-20.0, -22.0, -24.0]), 2.0)
SHAPE = (21, 23, 25)


def test_look_up_is_exact_for_linear_fields_in_mm():
    points = warps.grid_points(SHAPE, *PLACE)
    field = 2 * points[:, :1] - 3 * points[:, 1:2] + 0.5 * points[:, 2:] + 1
    asked = torch.tensor([[1.3, -4.2, 7.7], [-19.9, 21.0, 23.9]]).T.reshape(1, 3, 2, 1, 1)
    found = warps.look_up(field, asked, *PLACE).flatten()
    np.testing.assert_allclose(found, [2 * 1.3 + 3 * 4.2 + 3.85 + 1, -39.8 - 63 + 11.95 + 1], rtol=1e-4)


def test_integrate_is_the_exponential_of_a_linear_field():
    matrix = torch.tensor([[0.0, -0.3, 0.0], [0.3, 0.0, 0.0], [0.0, 0.0, -0.2]])
    points = warps.grid_points(SHAPE, *PLACE)
    velocity = torch.einsum("ij,bjdhw->bidhw", matrix, points)
    moved = points + warps.integrate(velocity, *PLACE, squarings=7)
    expected = torch.einsum("ij,bjdhw->bidhw", torch.linalg.matrix_exp(matrix), points)
    middle = (..., slice(6, -6), slice(6, -6), slice(6, -6))
    assert (moved - expected)[middle].abs().max() < 0.05


def test_jacobian_determinant_is_that_of_a_linear_map():
    matrix = torch.tensor([[0.1, -0.3, 0.0], [0.2, 0.05, 0.1], [0.0, 0.4, -0.2]])
    displacement = torch.einsum("ij,bjdhw->bidhw", matrix, warps.grid_points(SHAPE, *PLACE))
    expected = torch.linalg.det(matrix + torch.eye(3))
    torch.testing.assert_close(
        warps.jacobian_determinant(displacement, PLACE[1]), expected.expand(SHAPE), rtol=1e-4, atol=1e-4
    )


def test_random_warps_do_not_fold():
    extent = np.array([200.0, 220.0, 200.0])
    for seed in range(20):
        displacement, _, spacing = warps.random_warp(np.random.default_rng(seed), extent, (0, 0, 0), 3.0, 28.0)
        assert warps.jacobian_determinant(displacement, spacing).min() > 0
    # The check can fail: the same field without the exponential, four times as large, folds.
    assert warps.jacobian_determinant(4 * displacement, spacing).min() < 0


def test_random_warp_has_its_size():
    extent = np.array([200.0, 220.0, 200.0])
    displacement, _, spacing = warps.random_warp(np.random.default_rng(0), extent, (0, 0, 0), 3.0, 28.0)
    size = displacement.square().sum(1).mean().sqrt()
    assert 2.0 < size < 4.0
    again = warps.random_warp(np.random.default_rng(0), extent, (0, 0, 0), 3.0, 28.0)[0]
    assert torch.equal(displacement, again)


def test_potential_flow_solves_poisson_and_stays_inside():
    inside = np.zeros((20, 18, 16), bool)
    inside[3:17, 3:15, 3:13] = True
    density = np.zeros(inside.shape)
    density[5, 5, 5], density[12, 11, 9] = 1.0, -1.0
    flow = warps.potential_flow(density, inside, 2.0)
    assert np.abs(flow[:, ~inside]).max() == 0
    # All that is made in the source crosses a plane between source and sink: 1 per mm3 x 8 mm3 of one voxel.
    assert flow[0, 9].sum() * 2.0**2 == pytest.approx(8.0, rel=0.02)
