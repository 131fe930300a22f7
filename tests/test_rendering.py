"""Rendering: a phantom of shells becomes heads whose structures stay where they are, and replay from their seed."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from brainldm_core import rendering
from brainldm_core.errors import BrainLDMError
from brainldm_core.loop import step_generator

SHAPE = (48, 48, 48)
SHELLS_MM = ((8, 4), (28, 2), (36, 3), (42, 24), (46, 515), (52, 507))  # ventricle, white, cortex, CSF, skull, scalp


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """A label map of shells round the ventricles, some voxels of it unknown."""
    grid = np.stack(np.meshgrid(*[np.arange(128) - 63.5] * 3, indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    labels = np.zeros(radius.shape, np.int16)
    for limit, label in reversed(SHELLS_MM):
        labels[radius < limit] = label
    labels[80:84, 62:66, 62:66] = 136  # of no structure that we know, deep in white matter
    path = tmp_path_factory.mktemp("labels") / "person.nii.gz"
    nib.save(nib.Nifti1Image(labels[::-1], np.diag([-1.0, 1, 1, 1])), path)
    return path


@pytest.fixture(scope="module")
def person(phantom):
    return rendering.read_person(phantom)


def test_shares_are_the_volumes_of_the_label_map(person):
    assert person.name == "person"
    ml = person.shares.sum((1, 2, 3), dtype=float) / 1000
    ball = {limit: 4 / 3 * np.pi * limit**3 / 1000 for limit, _ in SHELLS_MM}
    white, grey = ml[rendering.SHARES.index(1.0)], ml[rendering.SHARES.index(0.0)]
    assert ml[rendering.VENTRICLE] == pytest.approx(ball[8], rel=0.02)
    assert white == pytest.approx(ball[28] - ball[8], rel=0.02)  # unknown voxels became white matter
    assert grey == pytest.approx(ball[36] - ball[28], rel=0.02)
    fluid = ml[[rendering.NEAR_CSF, rendering.FAR_CSF]]
    assert fluid.sum() == pytest.approx(ball[42] - ball[36], rel=0.02)
    assert fluid[0] < 0.2 * fluid[1]  # a ball has no sulci
    assert person.shares.sum(0).max() == 8


def test_fields_measure_distance_and_point_out_of_the_ventricles(person):
    middle = person.shares.shape[1] // 2
    closed, brain, out = person.fields[0], person.fields[1], person.fields[2]
    assert closed[middle, middle, middle] == pytest.approx(-36, abs=3)
    assert brain[middle + 23, middle, middle] == pytest.approx(46 - 36, abs=3)
    assert out[middle + 6, middle, middle] > 0.5 > -0.5 > out[middle - 6, middle, middle]
    assert np.isfinite(person.fields).all()


def test_refuses_what_is_no_label_map_of_a_brain(phantom, tmp_path):
    image = nib.load(phantom)
    labels = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image(np.where(labels == 4, 2, labels), image.affine), tmp_path / "no_ventricles.nii.gz")
    nib.save(nib.Nifti1Image(labels, image.affine @ np.diag([2, 2, 2, 1])), tmp_path / "coarse.nii.gz")
    for name, reason in (("no_ventricles", "no lateral ventricles"), ("coarse", "voxels of 1 mm")):
        with pytest.raises(BrainLDMError, match=rf"{name}.*{reason}"):
            rendering.read_person(tmp_path / f"{name}.nii.gz")


def test_images_replay_and_every_structure_keeps_its_place(person):
    images, tissues = rendering.render(person, SHAPE, step_generator(0, 3))
    assert images.shape == (2, 1, *SHAPE) and tissues.shape == (2, 5, *SHAPE)
    assert torch.isfinite(images).all() and torch.isfinite(tissues).all()
    assert images.min() >= 0 and tissues.min() > -1e-4
    assert torch.allclose(tissues.sum(1), torch.ones(2, *SHAPE), atol=1e-4)
    again = rendering.render(person, SHAPE, step_generator(0, 3))
    assert torch.allclose(images, again[0], atol=1e-3) and torch.allclose(tissues, again[1], atol=1e-4)
    assert not torch.allclose(images, rendering.render(person, SHAPE, step_generator(0, 4))[0], atol=0.1)
    for step in range(6):
        images, tissues = rendering.render(person, SHAPE, step_generator(1, step))
        for image, shares in zip(images[:, 0], tissues, strict=True):
            white, fluid = (image[shares[k] > 0.95].mean() for k in (3, 4))
            assert fluid < white  # T1w: ventricles darker than white matter
        head, brain = tissues
        assert (brain[1:] <= head[1:] + 1e-5).all()  # stripping only takes away
        assert brain[4].sum() == pytest.approx(float(head[4].sum()), rel=0.05)
        bare = images[1, 0][tissues[1, 0] > 0.999]
        assert (bare == 0).float().mean() > 0.3


def test_poses_and_ventricles_differ_within_bounds(person):
    ml = [float(rendering.render(person, SHAPE, step_generator(2, k))[1][0, 4].sum()) * 0.008 for k in range(10)]
    true = 4 / 3 * np.pi * 8**3 / 1000
    assert min(ml) < true < max(ml)
    assert 0.2 * true < min(ml) and max(ml) < 5 * true
