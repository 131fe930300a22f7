"""The covariate explorer, with a drawer in place of a model."""

import numpy as np
import pytest

from brainldm_core import widgets
from brainldm_core.runner import NONCE

RANGES = {
    "sex": (0.0, 1.0),
    "age_years": (44.0, 82.0),
    "ventricular_volume_ml": (6.0, 90.0),
    "brain_volume_ml": (1060.0, 1300.0),
}


def test_sliders_go_a_little_beyond_the_training_range_and_not_below_zero():
    for control in widgets.controls(RANGES):
        assert control.low < control.trained_low < control.middle < control.trained_high < control.high
    assert widgets.controls(RANGES)[1].low == 0  # 6 - 21 ml would be negative


def test_outside_is_said_in_words():
    inside = {"age_years": 60, "ventricular_volume_ml": 20, "brain_volume_ml": 1200}
    assert widgets.outside(inside, RANGES) == []
    (said,) = widgets.outside(inside | {"ventricular_volume_ml": 120}, RANGES)
    assert "ventricles 120 ml" in said and "6 to 90 ml" in said


def test_moving_a_slider_asks_for_another_brain():
    asked = []

    def draw(request):
        asked.append(dict(request))
        return np.full((6, 8, 6), request["ventricular_volume_ml"] / 120, np.float32)

    box = widgets.live_explorer(RANGES, draw)
    sex, _age, ventricles, _brain, picture, words = box.children
    before = bytes(picture.value)
    assert before.startswith(b"\x89PNG") and len(asked) == 1 and "inside" in words.value
    ventricles.children[0].value = 100
    assert (
        asked[-1]["ventricular_volume_ml"] == 100 and bytes(picture.value) != before and "extrapolates" in words.value
    )
    assert "6 to 90 ml" in ventricles.children[1].value
    sex.value = "M"
    assert asked[-1]["sex"] == "M" and len(asked) == 3


def test_a_page_gets_a_picture(monkeypatch):
    monkeypatch.setenv(NONCE, "x")
    assert not widgets.is_live()
    monkeypatch.delenv(NONCE)
    assert not widgets.is_live()  # no kernel in a test either


@pytest.mark.parametrize("place, value", [(0.0, 6.0), (0.5, 48.0), (1.0, 90.0)])
def test_fractions_of_the_range_land_on_steps(place, value):
    assert widgets._at(widgets.controls(RANGES)[1], place) == value
