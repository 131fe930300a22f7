"""What the charts draw."""

import numpy as np
import pandas as pd

from brainldm_core import charts


def test_scatter_draws_identity_and_the_least_squares_line():
    x = np.array([1.0, 2.0, 3.0, np.nan])
    figure = charts.scatter_with_fit({"p": (x, 2 * x, "note")}, "asked", "found")
    identity, fit = figure.axes[0].lines
    assert np.allclose(identity.get_xdata(), identity.get_ydata())
    assert np.allclose(fit.get_ydata(), [2, 6])
    assert figure.axes[0].collections[0].get_offsets().shape == (3, 2)
    assert figure.axes[0].get_title() == "p\nnote"


def test_scatter_of_nothing_is_an_empty_panel():
    empty = np.array([np.nan, np.nan])
    figure = charts.two_scatters({"p": (empty, empty, "too few")}, "x", "y")
    assert not figure.axes[0].collections


def test_loss_curves_begin_where_a_loss_does():
    table = pd.DataFrame({"step": range(6), "late": [np.nan] * 4 + [1.0, 3.0]})
    figure = charts.loss_curves(table, {"late": "late"}, window=2)
    raw, smooth = figure.axes[0].lines
    assert list(raw.get_xdata()) == [4, 5]
    assert list(smooth.get_ydata()) == [1, 2]


def test_distributions_leave_missing_values_out():
    table = pd.DataFrame({"split": ["train", "test", "test"], "a": [1.0, 2.0, np.nan]})
    figure = charts.distributions(table, {"a": "a (ml)"})
    assert figure.axes[0].get_xlabel() == "a (ml)"
    assert len(figure.axes[0].get_legend().get_texts()) == 2


def test_correlations_mark_r_inside_its_interval():
    figure = charts.correlations({"q": {"one": (0.9, 0.8, 0.95)}})
    line, point = figure.axes[0].lines[:2]
    assert list(line.get_xdata()) == [0.8, 0.95] and list(point.get_xdata()) == [0.9]


def test_schedule_draws_levels_and_their_ratio():
    bars = np.array([0.9, 0.5, 0.1])
    figure = charts.schedule(np.sqrt(bars), np.sqrt(1 - bars), {"other": bars})
    ours, other = figure.axes[1].lines
    assert np.allclose(ours.get_ydata(), other.get_ydata())
    assert np.allclose(ours.get_ydata()[1], 0)


def test_four_losses_stand_in_two_rows():
    table = pd.DataFrame({"step": [0, 1], **{name: [2.0, 1.0] for name in "abcde"}})
    figure = charts.loss_curves(table, {name: name for name in "abcde"})
    assert figure.axes[0].get_gridspec().get_geometry() == (2, 3)
    assert [axis.axison for axis in figure.axes] == [True] * 5 + [False]


def test_heat_map_writes_every_number_and_a_dash_for_none():
    table = pd.DataFrame([[1.0, np.nan]], index=["knob"], columns=["a", "b"])
    figure = charts.heat_map(table, table * 0.1, "measured", "moved")
    assert [text.get_text() for text in figure.axes[0].texts] == ["1.00 ± 0.10", "–"]
    assert figure.axes[0].images[0].get_clim() == (-1.5, 1.5)


def test_responses_shade_the_training_range():
    x = np.array([-1.0, 0.0, 2.0, np.nan])
    figure = charts.responses({"asked (ml)": (x, x / 2, (0, 1))}, "measured")
    shade = figure.axes[0].patches[0].get_extents().transformed(figure.axes[0].transData.inverted())
    assert np.allclose([shade.x0, shade.x1], [0, 1])
    identity, curve = figure.axes[0].lines
    assert list(identity.get_xdata()) == list(identity.get_ydata()) == [-1, 2]
    assert list(curve.get_ydata()) == [-0.5, 0, 1]
    assert not charts.responses({"x": (x * np.nan, x, (0, 1))}, "y").axes[0].lines


def test_a_cohort_lies_on_the_lines_of_people():
    rows = [{"age_years": 60.0, "sex": sex, "ventricular_volume_ml": ml, "brain_volume_ml": 1180.0} for sex, ml in
            (("F", 18.0), ("M", 24.0), ("F", np.nan))]  # fmt: skip
    figure = charts.against_people(pd.DataFrame(rows))
    left, right = figure.axes
    women = dict(zip(left.lines[0].get_xdata().round(), left.lines[0].get_ydata(), strict=True))
    assert abs(np.log(women[60.0]) - (1.3 + 0.0265 * 60)) < 0.02
    assert left.get_yscale() == "log" and len(left.lines) == len(right.lines) == 2
    assert right.lines[1].get_ydata()[0] < right.lines[0].get_ydata()[0], "men have a little less brain in their heads"
