"""What the live widgets get of a model, and what stands for them where no kernel answers."""

import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from test_controls import PANELS, REQUEST

from brainldm_core import cli, widgets
from brainldm_core.controls import command, controls
from brainldm_core.notebooks import project_root
from brainldm_core.runner import NONCE
from brainldm_core.sampling import load_pipeline


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline()


def test_a_page_gets_a_picture(monkeypatch):
    monkeypatch.setenv(NONCE, "x")
    assert not widgets.is_live()
    monkeypatch.delenv(NONCE)
    assert not widgets.is_live()  # no kernel in a test either


def test_the_copied_command_draws_the_same_brain(pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = widgets.drawer(pipeline)(REQUEST, 3, "dpmpp", 2)
    again = widgets.drawer(pipeline)(REQUEST, 3, "dpmpp", 2)
    assert np.array_equal(drawn, again)
    assert cli.main(shlex.split(command(REQUEST, 3, "dpmpp", 2))[1:]) == 0
    (file,) = Path("brains").rglob("*_T1w.nii.gz")
    assert np.abs(nib.load(file).get_fdata() - drawn).max() < 1.6 / 255  # rounded, and one step between batches
    other = widgets.drawer(pipeline)(REQUEST, 4, "dpmpp", 2)
    assert np.abs(other - drawn).max() > 10 / 255


def test_a_source_names_the_weights_from_where_commands_are_typed(pipeline, tmp_path):
    assert widgets.source(pipeline).weights is None
    assert widgets.source(pipeline, project_root() / "runs" / "x").weights == Path("runs/x")
    assert widgets.source(pipeline, tmp_path).weights == tmp_path.resolve()


def test_a_drawn_brain_is_measured_as_the_command_does(pipeline):
    measured = widgets.measurer(pipeline)(np.zeros(pipeline.profile.grid.shape, np.float32))
    assert measured["measured_lateral_ventricles_ml"] == 0 and "measured_brain_volume_ml" in measured


def _drawn(monkeypatch):
    """The tables that are asked for, in place of a sampler that is slow."""
    from brainldm_core import sampling

    asked = []

    def sample(pipeline, table, ids, sampler, steps, seed):
        asked.append((table, ids, sampler, steps, seed))
        return np.zeros((len(table), 6, 8, 6), np.float32)

    monkeypatch.setattr(sampling, "sample", sample)
    return asked


def test_the_still_picture_has_one_noise_and_marks_what_lies_outside(pipeline, monkeypatch):
    asked = _drawn(monkeypatch)
    figure = widgets.explorer(pipeline, live=False)
    table, ids, *how = asked[0]
    assert len(table) == 15 and set(ids) == {widgets.SAMPLE_ID} and how == [*widgets.QUICK, 0]
    titles = [axis.get_title() for axis in figure.axes[:5]]
    assert [title.endswith("*") for title in titles] == [False] * 4 + [True]


def test_the_still_picture_of_the_extrapolation_chapter_holds_its_panels(pipeline, monkeypatch):
    asked = _drawn(monkeypatch)
    figure = widgets.explorer(pipeline, reach=PANELS, live=False)
    table = asked[0][0]
    _, ventricles, brain = controls(pipeline.ranges, PANELS)
    for control in (ventricles, brain):
        values = set(table[control.column])
        assert values == {at for at, _ in control.ticks} | {control.middle}
    assert table["ventricular_volume_ml"].min() < 0
    assert sum(axis.get_title().endswith("*") for axis in figure.axes) == 3
    assert sum(axis.get_ylabel().endswith("*") for axis in figure.axes) == 3


def test_the_still_knobs_show_a_finished_sweep(pipeline):
    sweep = pd.DataFrame(
        {
            "moved": ["ventricular_volume_ml"] * 2 + ["brain_volume_ml"] * 2,
            "ventricular_volume_ml": [10.0, 50.0, 20.0, 20.0],
            "brain_volume_ml": [1150.0, 1150.0, 1120.0, 1250.0],
            "measured_lateral_ventricles_ml": [12.0, 48.0, 21.0, 22.0],
            "measured_brain_volume_ml": [1100.0, 1101.0, 1090.0, 1200.0],
        }
    )
    cloud = (sweep["brain_volume_ml"], sweep["measured_brain_volume_ml"])
    figure = widgets.knobs(pipeline, {}, {"ventricles": cloud, "brain": cloud}, sweep, live=False)
    left, right = figure.axes
    assert "ventricles" in left.get_xlabel() and "brain" in right.get_xlabel()
    (points,) = (line for line in left.lines if line.get_label() == "one noise")
    assert points.get_xdata().tolist() == [10, 50] and points.get_ydata().tolist() == [12, 48]
