"""Sliders as numbers, warnings in words, and the command for the same brain."""

import shlex

import pytest

from brainldm_core import controls
from brainldm_core.cli import build_parser
from brainldm_core.covariates import parse_quantity

RANGES = {
    "sex": (0.0, 1.0),
    "age_years": (44.09, 81.69),
    "ventricular_volume_ml": (4.195, 77.059),
    "brain_volume_ml": (1106.34, 1274.57),
}
PANELS = {"ventricular_volume_ml": [1.5, 1.9, -0.5], "brain_volume_ml": [-0.1, -0.3, -0.5]}
REQUEST = {"sex": "F", "age_years": 70.0, "ventricular_volume_ml": 45.0, "brain_volume_ml": 1150.0}


def test_sliders_go_a_little_beyond_the_training_range_and_not_below_zero():
    for control in controls.controls(RANGES):
        assert control.low < control.trained_low < control.middle < control.trained_high < control.high
        for end in (control.low, control.high, control.middle):  # every stop is a multiple of the step
            assert end % control.step == 0
    assert controls.controls(RANGES)[1].low == 0  # 4 - 18 ml would be negative


def test_sliders_reach_the_panels_of_the_paper_below_zero_too():
    age, ventricles, brain = controls.controls(RANGES, PANELS)
    assert age == controls.controls(RANGES)[0]
    for control, values in ((ventricles, PANELS["ventricular_volume_ml"]), (brain, PANELS["brain_volume_ml"])):
        width = control.trained_high - control.trained_low
        at = [control.trained_low + value * width for value in values]
        assert [tick for tick, _ in control.ticks] == pytest.approx(at)
        assert control.low < min(at) and max(at) < control.high
        assert [text for _, text in control.ticks] == [f"{value:g}" for value in values]
    assert ventricles.low < -30


def test_shares_run_from_one_end_to_the_other():
    control = controls.controls(RANGES)[2]
    assert [control.share(value) for value in (control.low, control.high)] == [0, 1]
    assert control.share((control.low + control.high) / 2) == 0.5


def test_the_ends_of_the_training_range_belong_to_it():
    control = controls.controls(RANGES)[1]
    for value in (4.195, 30, 77.059):
        assert not control.beyond(value) and controls.said_outside(control, value) == ""
    for value in (4.194, 77.06, -30):
        assert control.beyond(value) and "extrapolates" in controls.said_outside(control, value)


def test_outside_is_said_in_words_and_in_numbers_that_differ():
    assert controls.outside(REQUEST, RANGES) == []
    (said,) = controls.outside(REQUEST | {"ventricular_volume_ml": 120}, RANGES)
    assert "ventricles 120 ml" in said and "4.2 to 77.1 ml" in said
    (said,) = controls.outside(REQUEST | {"brain_volume_ml": 1275}, RANGES)
    assert "brain 1275 ml" in said and "1106.3 to 1274.6 ml" in said  # not "1275 outside 1106 to 1275"
    assert len(controls.outside(dict.fromkeys(REQUEST, -1.0), RANGES)) == 3


@pytest.mark.parametrize("ventricles", [45.0, 0.0, -32.237, 1e-3])
@pytest.mark.parametrize("sampler, steps", [("dpmpp", 10), ("ddim", 50), ("ddpm", 1000)])
def test_the_command_says_the_request_to_the_parser_of_the_command_line(ventricles, sampler, steps, tmp_path):
    request = REQUEST | {"ventricular_volume_ml": ventricles, "sex": "M"}
    weights = tmp_path / "a run"
    words = shlex.split(controls.command(request, 7, sampler, steps, weights))
    assert words[0] == "brainldm"
    args = build_parser().parse_args(words[1:])
    assert args.command == "sample" and (args.n, args.seed, args.sampler, args.weights) == (1, 7, sampler, weights)
    assert args.steps == (None if sampler == "ddpm" else steps)
    assert {
        "sex": args.sex,
        "age_years": parse_quantity(args.age, "years"),
        "ventricular_volume_ml": parse_quantity(args.ventricles, "ml"),
        "brain_volume_ml": parse_quantity(args.brain, "ml"),
    } == request


def test_two_requests_are_written_to_two_folders():
    lines = {
        controls.command(REQUEST | change, person, sampler, 10).partition("--out")[2]
        for change in ({}, {"sex": "M"}, {"age_years": 71.0})
        for person in (1, 2)
        for sampler in ("dpmpp", "unipc")
    }
    assert len(lines) == 12


@pytest.mark.parametrize(
    "value, text", [(45, "45"), (4.195, "4.2"), (1106.34, "1106.3"), (-0.01, "0"), (-32.2, "-32.2")]
)
def test_numbers_have_no_needless_digits(value, text):
    assert controls.number(value) == text
