"""The page on samplers says what the published files hold, and says so where there are none."""

import pytest

from brainldm_core import pages, sampler_results


def point(sampler, steps, fid, grey=None):
    fit = {"r": 0.9, "low": 0.8, "high": 0.95}
    near = {} if grey is None else {"near": {"grey": grey / 255, "unlike": 0.1, "n": 4}}
    return {"sampler": sampler, "steps": steps, "n": 8, "fid": fid, "ventricles": fit, "brain": fit} | near


def case(name, seconds, tflop):
    parts = {"denoising_s": seconds - 0.1, "decoding_s": 0.06, "writing_s": 0.04, "seconds_a_volume": seconds}
    return {"case": name, "batch": 4, "n": 3, "range_s": [seconds, seconds], "peak_gib": 1.0, **parts}


CURVE = {
    "n": 8,
    "timesteps": 1000,
    "floor": {"fid": 0.0005},
    "missing": [],
    "points": [
        point("ddpm", 1000, 0.0010),
        point("ddim", 50, 0.0012, 2.0),
        point("dpmpp", 4, 0.0020, 3.0),
        point("dpmpp", 6, 0.0012, 1.0),
        point("unipc", 6, 0.0013, 1.5),
    ],
}
SPEED = {
    "environment": {},
    "cases": [case("bundle", 9.1, 1), case("ddpm:1000", 20.1, 1), case("ddim:50", 1.1, 1), case("dpmpp:6", 0.3, 1)],
    "ratios": [
        {"case": "bundle", "ddim:50": {"denoising": 0.1, "end_to_end": 0.12, "counted": 1.0}},
        {"case": "ddpm:1000"},
        {"case": "ddim:50", "bundle": {"denoising": 9.0, "end_to_end": 8.3, "counted": 1.0}},
        {
            "case": "dpmpp:6",
            "ddim:50": {"denoising": 5.0, "end_to_end": 3.6, "counted": 4.0},
            "bundle": {"denoising": 45.0, "end_to_end": 30.3, "counted": 4.0},
        },
    ],
}


def test_the_table_joins_quality_and_seconds():
    table = sampler_results.curve_table(CURVE, SPEED)
    row = table.loc[("DPM-Solver++", 6)]
    assert row["FID"] == "0.00120" and row["distance (grey levels of 255)"] == "1.00"
    assert row["seconds a volume"] == "0.260"  # denoising and decoding, without writing
    assert table.loc[("DPM-Solver++", 4), "seconds a volume"] == "" == table.loc[("UniPC", 6), "seconds a volume"]


def test_words_name_the_fewest_steps_that_reach_ddim_50():
    words = sampler_results.curve_words(CURVE)
    assert "DPM-Solver++ reaches the FID of DDIM 50 (0.00120) from 6 steps on" in words
    assert "UniPC reaches the FID of DDIM 50 (0.00120) with none" in words and "0.00050" in words
    assert "Not finished: x" in sampler_results.curve_words(CURVE | {"missing": ["x"]})


def test_the_figure_sets_ours_beside_the_papers_two_points():
    figure = sampler_results.curve_figure(CURVE, SPEED)
    by_time = figure.axes[2]
    drawn = {line.get_label(): line.get_xydata() for line in by_time.get_lines()}
    assert drawn["paper, DDIM 50 and 1000 steps"][0] == pytest.approx([7.6 / 142.3, 0.0080 / 0.0076])
    assert drawn["DDIM"][0] == pytest.approx([1.06 / 20.06, 1.2])
    assert (
        sampler_results.curve_figure(CURVE, None).axes[2].get_lines()[0].get_label() == "paper, DDIM 50 and 1000 steps"
    )


def test_speed_says_what_share_of_the_counted_ratio_arrives():
    words = sampler_results.speed_words(SPEED, "dpmpp:6")
    assert "5.0 times as fast as DDIM 50 in the denoising loop and 3.6 times" in words
    assert "90 % of the counted ratio" in words and "30.3 times as long" in words
    table = sampler_results.ratio_table(SPEED)
    assert table.loc["DPM-Solver++ 6", "as the bundle's recipe"] == "30.30" and table.loc["DDIM 50", "counted"] == ""
    assert sampler_results.speed_table(SPEED).loc["bundle's recipe", "all (s)"] == "9.100"
    assert "no row for UniPC 10" in sampler_results.speed_words(SPEED, "unipc:10")


def test_without_a_published_file_a_page_says_so():
    assert pages.published("trials", "no-such-file") is None
    assert sampler_results.curve_table(None).empty and sampler_results.speed_table(None).empty
    assert "No such trial" in sampler_results.curve_words(None)
    assert "No benchmark" in sampler_results.speed_words(None, "dpmpp:10")
