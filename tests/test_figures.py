"""Orientation and content of the brain figures."""

import numpy as np
import pytest

from brainldm_core import figures
from brainldm_core.profiles import load_profile


@pytest.fixture
def volume() -> np.ndarray:
    """(6, 8, 10) RAS volume with one bright voxel: right, front, top."""
    volume = np.zeros((6, 8, 10), np.float32)
    volume[5, 7, 9] = 1
    return volume


@pytest.mark.parametrize(
    "plane, position, shape, where",
    [
        ("axial", 0.99, (8, 6), (0, 0)),  # right of the person at the left of the picture, front at its top
        ("coronal", 0.99, (10, 6), (0, 0)),  # right at the left, top at the top
        ("sagittal", 0.99, (10, 8), (0, 0)),  # front at the left, top at the top
    ],
)
def test_slices_follow_the_radiological_convention(volume, plane, position, shape, where):
    image = figures.slice_of(volume, plane, position)
    assert image.shape == shape
    assert np.argwhere(image == 1).tolist() == [list(where)]


def test_position_is_a_fraction_of_the_field(volume):
    volume[2] = 0.5
    assert (figures.slice_of(volume, "sagittal", 2.5 / 6) == 0.5).all()
    assert figures.slice_of(volume, "sagittal", 1.0).max() == 1  # the far end is the last slice, not beyond it


def test_montage_shows_every_volume_once_and_names_sides(volume):
    figure = figures.montage(np.stack([volume] * 5), [str(n) for n in range(5)], columns=3)
    drawn = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in drawn] == list("01234")
    assert len(figure.axes) == 6
    assert [text.get_text() for text in drawn[0].texts] == ["R", "L"]


def test_rows_of_gives_differences_their_own_scale(volume):
    stack = np.stack([volume] * 2)
    figure = figures.rows_of({"a": stack, "b": stack - 0.5}, ["x", "y"], limits={"b": (-0.3, 0.3)})
    pictures = [axis for axis in figure.axes if axis.images and axis.get_label() != "<colorbar>"]
    assert pictures[0].images[0].get_clim() == (0, 1)
    assert pictures[2].images[0].get_clim() == (-0.3, 0.3)


def test_figures_are_shown_once(volume):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    figures.three_planes(volume[None], ["one"])
    assert plt.get_fignums() == before


def test_label_overlay_has_a_key(volume):
    names = {0: "background", 1: "CSF", 2: "grey", 3: "white", 4: "ventricles"}
    figure = figures.label_overlay(volume, {"labels": (volume * 4).astype(np.uint8)}, names)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["CSF", "grey", "white", "ventricles"]


def test_mni_mask_lies_where_the_brain_is():
    grid = load_profile("tiny").grid
    affine = np.array(grid.affine)
    mask = figures.mni_mask(grid.shape, affine) > 0.5
    centre = affine[:3, :3] @ np.argwhere(mask).mean(0) + affine[:3, 3]
    assert np.abs(centre - [0, -22, 10]).max() < 6
    assert 1500 < mask.sum() * grid.spacing_mm**3 / 1000 < 2200  # ml; the template's mask has 1,887


def test_in_mni_has_axes_in_millimetres():
    grid = load_profile("smoke").grid
    volumes = np.random.default_rng(0).random((2, *grid.shape))
    figure = figures.in_mni(volumes, np.array(grid.affine), ["a", "b"])
    left, right = figure.axes[0].get_xlim()
    assert left > 0 > right  # the person's right, x > 0, at the left
    assert left - right == pytest.approx(grid.shape[0] * grid.spacing_mm)


def test_panels_have_words_of_their_own_above_and_below(volume):
    stack = np.stack([volume] * 2)
    figure = figures.panels({"a": (stack, ["1", "2"], ["x", "y"]), "b": (stack[:1], ["3"], ["z"])})
    drawn = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in drawn] == ["1", "2", "3"]
    assert [axis.get_xlabel() for axis in drawn] == ["x", "y", "z"]
    assert [axis.get_ylabel() for axis in drawn] == ["a", "", "b"]
    assert [text.get_text() for text in drawn[0].texts] == ["R", "L"] and not drawn[1].texts
