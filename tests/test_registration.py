"""Alignment: known displacements are undone, points land where the affine says, and what is no head is refused."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainldm_core import registration, resampling
from brainldm_core.dataset import read_nifti
from brainldm_core.errors import BrainLDMError
from brainldm_core.profiles import Grid

CENTRE = np.array(registration.CENTRE_MM)


def displaced(angles, shift, size, whole_head=False, axes="LAS", spacing=2.5):
    """A scan of the template, turned by ``angles`` (degrees), moved by ``shift`` (mm) and scaled; and the truth.

    The truth is the rigid matrix from template to scan points (mm). ``axes`` is the scan's voxel orientation.
    """
    from nilearn import datasets

    t1 = datasets.load_mni152_template(resolution=2)
    values = t1.get_fdata(dtype=np.float32)
    if whole_head:  # a dark skull, a bright scalp and a neck round the brain
        brain = ndimage.binary_fill_holes(np.pad(values > 0.05, 12))
        distance = ndimage.distance_transform_edt(~brain) * 2
        values = np.pad(values, 12)
        values[(distance > 0) & (distance <= 7)] = 0.12
        values[(distance > 7) & (distance <= 15)] = 0.95
        x, y = np.ogrid[: values.shape[0], : values.shape[1]]
        neck = (np.hypot(x - values.shape[0] / 2, y - values.shape[1] / 2) < 28)[..., None]
        low = np.arange(values.shape[2]) < 26
        values = np.where(neck & low & (values == 0), 0.55, values).astype(np.float32)
        affine = t1.affine @ np.block([[np.eye(3), np.full((3, 1), -12)], [np.zeros((1, 3)), np.ones((1, 1))]])
    else:
        affine = t1.affine
    truth = np.eye(4)
    truth[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    truth[:3, 3] = CENTRE + shift - truth[:3, :3] @ CENTRE
    grow = np.eye(4)
    grow[:3, :3] *= size
    grow[:3, 3] = CENTRE * (1 - size)
    side = 112 if whole_head else 84
    scan_affine = np.diag([spacing, spacing, spacing, 1.0])
    scan_affine[:3, 3] = truth[:3, :3] @ (0, -18, -10 if whole_head else 8) + truth[:3, 3] - spacing * (side - 1) / 2
    to_voxel = np.linalg.inv(affine) @ np.linalg.inv(truth @ grow) @ scan_affine
    scan = ndimage.affine_transform(values, to_voxel, output_shape=(side,) * 3, order=1)
    noise = np.random.default_rng(0).normal(0, 0.02, scan.shape) * (scan > 0.02)
    image = nib.Nifti1Image((np.clip(scan + noise, 0, None) * 700).astype(np.float32), scan_affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(scan_affine), nib.orientations.axcodes2ornt(axes))
    image = image.as_reoriented(turn)
    assert nib.aff2axcodes(image.affine) == tuple(axes)
    return np.asarray(image.dataobj, dtype=np.float32), image.affine, truth


@pytest.mark.parametrize(
    ("angles", "shift", "size", "whole_head", "axes"),
    [
        ((9, -7, 12), (14, -110, 60), 0.9, False, "LAS"),
        ((-18, 4, -5), (0, 8, -6), 0.86, False, "PSR"),
        ((14, -4, 6), (-7, 20, 30), 0.92, True, "RAS"),
    ],
)
def test_a_known_displacement_is_undone(angles, shift, size, whole_head, axes):
    volume, affine, truth = displaced(angles, shift, size, whole_head, axes)
    found = registration.register(volume, affine)
    left = np.linalg.inv(truth) @ found.matrix
    assert np.degrees(Rotation.from_matrix(left[:3, :3]).magnitude()) < 1
    assert np.linalg.norm((left @ [*CENTRE, 1])[:3] - CENTRE) < 1
    assert found.scale == pytest.approx(size, rel=0.02)
    assert found.brain_only is not whole_head
    np.testing.assert_allclose(found.matrix[:3, :3] @ found.matrix[:3, :3].T, np.eye(3), atol=1e-6)
    assert found.white_level == pytest.approx(0.87 * 700, rel=0.05)
    if not whole_head:
        again = registration.register(volume, affine)
        np.testing.assert_array_equal(found.matrix, again.matrix)


@pytest.mark.parametrize("spacing", [5.0, 2.0, 1.0])
def test_points_land_where_the_affine_says(spacing):
    """A smooth function of place, seen through an oblique, moved scan, comes out on the grid in template space."""
    side = int(60 / spacing / 2) * 2
    grid = Grid(shape=(side, side, side), spacing_mm=spacing, centre_mm=(2.0, -18.0, 4.0))

    def scene(points):
        x, y, z = np.moveaxis(points, -1, 0)
        return 2 + np.sin(x / 14) + np.cos((y - z) / 17) * np.exp(-((z - 4) ** 2) / 2000)

    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", (11, -6, 17), degrees=True).as_matrix()
    matrix[:3, 3] = (12, -30, 7)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (5, 3, -4), degrees=True).as_matrix() @ np.diag([-1.4, 1.2, 1.6])
    middle = (matrix @ [2, -18, 4, 1])[:3]
    affine[:3, 3] = middle - affine[:3, :3] @ (44.5, 49.5, 39.5)
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in (90, 100, 80)), indexing="ij"), -1)
    scan_points = voxels @ affine[:3, :3].T + affine[:3, 3]
    template_points = (scan_points - matrix[:3, 3]) @ matrix[:3, :3]
    placed = resampling.resample(scene(template_points).astype(np.float32), affine, matrix, grid)
    index = np.stack(np.meshgrid(*(np.arange(side),) * 3, indexing="ij"), -1)
    wanted = scene(index @ np.array(grid.affine)[:3, :3].T + np.array(grid.affine)[:3, 3])
    # Averaging over a 5 mm voxel lowers a wave of 14 mm radians by 1 - (5/14)^2/24 = 0.5 %.
    assert np.abs(placed - wanted).max() < 0.03
    assert np.abs(placed - wanted).mean() < 0.006


def test_averaging_does_not_alias():
    """A chequerboard far finer than the grid comes out as its mean."""
    grid = Grid(shape=(8, 8, 8), spacing_mm=5.0, centre_mm=(0.0, 0.0, 0.0))
    board = (np.indices((120, 120, 120)).sum(0) % 2).astype(np.float32)
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:3, 3] = -30
    placed = resampling.resample(board, affine, np.eye(4), grid)
    assert np.abs(placed[1:-1, 1:-1, 1:-1] - 0.5).max() < 0.02


def test_what_is_no_head_is_refused():
    ball = (np.linalg.norm(np.indices((40, 40, 40)) - 20, axis=0) < 10).astype(np.float32)
    with pytest.raises(BrainLDMError, match="no head; check voxel size"):
        registration.register(ball, np.eye(4))
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    with pytest.raises(BrainLDMError, match="sheared"):
        registration.register(ball, sheared)


def test_real_ventricles_come_to_the_middle_and_keep_their_sides(shared_data):
    name = "sub-OAS10456_ses-01"
    folder = shared_data / "oasis"
    if not folder.is_dir():
        pytest.skip("no OASIS scans here")
    scan = folder / "sub-OAS10456/ses-01/anat" / f"{name}_T1w.nii.gz"
    labels, _ = read_nifti(
        folder / "derivatives/manual/sub-OAS10456/ses-01/anat" / f"{name}_desc-neuromorphometrics_dseg.nii.gz"
    )
    volume, affine = read_nifti(scan)
    found = registration.register(volume, affine)
    assert found.brain_only
    assert found.correlation > 0.45
    to_template = np.linalg.inv(found.matrix) @ affine
    right, left = (
        (to_template @ [*np.argwhere(labels == label).mean(0), 1])[:3] for label in (51, 52)
    )  # labels of the right and the left lateral ventricle
    assert right[0] > 8
    assert left[0] < -8
    assert abs(right[0] + left[0]) < 6
    assert np.linalg.norm((right + left) / 2 - (0, -16, 15)) < 12
