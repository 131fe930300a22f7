"""What the live widgets show, as figures."""

import nibabel as nib
import numpy as np
import pytest
from test_controls import RANGES

from brainldm_core import live_pictures
from brainldm_core.controls import controls
from brainldm_core.figures import slice_of


def test_one_brain_has_three_planes_sides_a_bar_of_five_centimetres_and_a_scale():
    volume = np.random.default_rng(0).random((20, 24, 20)).astype(np.float32)
    figure = live_pictures.one_brain(volume, 5.0)
    planes, scale = figure.axes[:3], figure.axes[3]
    assert [axis.get_title() for axis in planes] == ["axial", "coronal", "sagittal"]
    for axis in planes:
        assert np.array_equal(axis.images[0].get_array(), slice_of(volume, axis.get_title()))
        assert axis.images[0].get_clim() == (0, 1)
    assert {text.get_text() for text in planes[0].texts} == {"R", "L", "5 cm"}
    (bar,) = planes[0].lines
    assert np.ptp(bar.get_xdata()) == pytest.approx(10)  # voxels of 5 mm
    assert "no unit" in scale.get_ylabel()
    assert live_pictures.png(figure).startswith(b"\x89PNG")


def test_points_of_one_noise_are_joined_in_order_and_the_newest_is_ringed():
    found = {control.title: control for control in controls(RANGES)}
    cloud = np.array([10.0, 20.0])
    panels = {name: (found[name], cloud, cloud) for name in ("ventricles", "brain")}
    trail = [("ventricles", *pair, "person 0") for pair in ((50.0, 48.0), (10.0, 12.0))]
    trail += [("ventricles", 30.0, 33.0, "person 1")]
    figure = live_pictures.following(panels, trail, (np.zeros((6, 8, 6)), "a title"))
    left, right, brain = figure.axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in left.lines}
    assert lines["person 0"] == [[10, 12], [50, 48]] and lines["person 1"] == lines["the newest"] == [[30, 33]]
    assert "the newest" not in {line.get_label() for line in right.lines} and brain.get_title() == "a title"
    assert left.get_xlim() == (found["ventricles"].low, found["ventricles"].high)


def test_niivue_gets_what_would_be_saved():
    volume = np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4)
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    image = nib.Nifti1Image.from_bytes(live_pictures.nifti_bytes(volume, affine))
    assert np.abs(image.get_fdata() - volume).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(image.affine, affine) and image.header["qform_code"] == 4
