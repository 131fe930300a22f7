"""Agreement of requested and measured values against direct computation."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from brainldm_core import conditioning
from brainldm_core.conditioning import agreement
from brainldm_core.errors import BrainLDMError


def test_agreement_recomputed_by_numpy():
    rng = np.random.default_rng(1)
    asked = rng.gamma(4, 8, 64)
    found = 0.8 * asked + 5 + rng.normal(0, 4, 64)
    result = agreement(asked, found)
    assert result.n == 64
    assert result.r == pytest.approx(np.corrcoef(asked, found)[0, 1])
    assert result.bias == pytest.approx((found - asked).mean())
    assert result.mae == pytest.approx(np.abs(found - asked).mean())
    assert result.slope == pytest.approx(np.polyfit(asked, found, 1)[0])
    assert result.low < result.r < result.high
    assert f"{result.slope:.2f} ml more" in result.response()
    # Fisher's interval for the same r and n is close to the bootstrap's.
    fisher = np.tanh(np.arctanh(result.r) + np.array([-1.96, 1.96]) / np.sqrt(61))
    assert np.abs(np.array([result.low, result.high]) - fisher).max() < 0.03


def test_missing_rows_are_left_out_and_few_have_no_correlation():
    result = agreement([1, np.nan, 3, 4], [1, 2, np.nan, 6])
    assert result.n == 2 and np.isnan(result.r) and result.mae == 1
    assert "no correlation" in result.note() and result.response() == ""


def test_a_constant_column_has_no_correlation():
    assert np.isnan(agreement([1, 1, 1, 1], [1, 2, 3, 4]).r)


def test_interval_repeats_and_result_is_a_row():
    x, y = np.arange(10.0), np.arange(10.0) ** 2
    assert agreement(x, y) == agreement(x, y)
    row = agreement(x, y).result(expected=0.7)
    assert (
        row["n"] == 10 and row["unit"] == "r" and row["low"] <= row["value"] <= row["high"] and row["expected"] == 0.7
    )


def test_results_have_r_errors_and_slope_in_units():
    rows = conditioning.result_rows("age", agreement(np.arange(5.0), 2 * np.arange(5.0) + 1), "years", expected=0.5)
    assert rows["age_r"]["value"] == 1 and rows["age_r"]["expected"] == 0.5
    assert rows["age_mae_years"] == rows["age_bias_years"]
    assert rows["age_bias_years"].items() >= {"value": 3.0, "unit": "years", "n": 5}.items()
    assert 1 <= rows["age_bias_years"]["low"] <= 3 <= rows["age_bias_years"]["high"] <= 5
    assert rows["age_slope"] == {"value": 2, "low": 2, "high": 2, "n": 5}
    few = conditioning.result_rows("age", agreement([1.0], [2.0]), "years")
    assert few["age_mae_years"] == {"value": 1.0, "unit": "years", "n": 1}


def test_slope_needs_two_different_requests():
    assert conditioning.slope([1, 3], [2, 8]) == pytest.approx(3)
    assert conditioning.slope([1, 3, np.nan, 4], [2, 8, 0, np.nan]) == pytest.approx(3)
    assert np.isnan(conditioning.slope([2, 2], [1, 5])) and np.isnan(conditioning.slope([2], [1]))


def test_rows_that_share_an_anatomy_are_resampled_together():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(6), 40)
    x = rng.normal(size=6)[groups] + 0.05 * rng.normal(size=240)  # six people, each nearly the same forty times
    y = x + rng.normal(size=6)[groups]
    alone, together = conditioning.agreement(x, y), conditioning.agreement(x, y, groups=groups)
    assert together.r == alone.r and together.n == alone.n
    assert together.high - together.low > 2 * (alone.high - alone.low)
    for name in ("slope", "bias", "mae"):
        (value, *ends), (same, *wide) = alone.interval(name), together.interval(name)
        assert value == same and np.ptp(wide) > 2 * np.ptp(ends), name
    assert conditioning.agreement(x, y, groups=["atlas"] * 240) == alone
    missing = np.where(groups == 0, np.nan, y)
    assert conditioning.agreement(x, missing, groups=groups).n == 200


def test_every_interval_is_that_of_the_same_resampled_rows(monkeypatch):
    rng = np.random.default_rng(4)
    x = rng.normal(60, 9, 40)
    y = 0.7 * x + rng.normal(10, 5, 40)
    rows = np.random.default_rng(0).integers(0, 40, (2000, 40))
    lines = {
        "r": [np.corrcoef(x[row], y[row])[0, 1] for row in rows],
        "slope": [np.polyfit(x[row], y[row], 1)[0] for row in rows],
        "bias": (y - x)[rows].mean(1),
        "mae": np.abs(y - x)[rows].mean(1),
    }
    found = agreement(x, y)
    for name, values in lines.items():
        assert found.interval(name)[1:] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=1e-9), name
    monkeypatch.setattr(conditioning, "AT_ONCE", 100)  # two resamples at a time
    assert agreement(x, y) == found


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng, truth = np.random.default_rng(5), {"slope": 0.8, "bias": 0.5}
    spread = np.sqrt(0.2**2 + 0.6**2)  # of the error, which is Gaussian: its mean size is known
    truth["mae"] = spread * np.sqrt(2 / np.pi) * np.exp(-(0.5**2) / (2 * spread**2)) + 0.5 * (
        1 - 2 * norm.cdf(-0.5 / spread)
    )
    truth["r"] = 0.8 / np.hypot(0.8, 0.6)
    held = dict.fromkeys(truth, 0)
    for seed in range(200):
        x = rng.normal(size=60)
        found = agreement(x, 0.8 * x + 0.5 + rng.normal(0, 0.6, 60), draws=300, seed=seed)
        for name, value in truth.items():
            _, low, high = found.interval(name)
            held[name] += low <= value <= high
    for name, count in held.items():
        assert 0.88 <= count / 200 <= 0.99, (name, count)


def test_a_constant_measurement_still_has_its_errors():
    found = agreement([10, 20, 30, 40], [25, 25, 25, 25])
    assert np.isnan([found.r, found.low, found.slope, found.slope_high]).all()
    assert found.mae == 10 and found.mae_low < 10 < found.mae_high and found.bias_low < 0 < found.bias_high
    assert found.record()["slope_low"] is None and found.record()["mae"] == 10


RANGES = {"sex": (0.0, 1.0), "age_years": (44.0, 82.0), "ventricular_volume_ml": (10.0, 40.0)}


def participants() -> pd.DataFrame:
    """Ventricles that follow inside 10 to 40 ml, its ends included, and half as much beyond; text as in a file."""
    asked = np.array([10.0, 20, 30, 40, 50, 60, 70, 5])
    found = np.where(asked <= 40, asked + 1, 41 + (asked - 40) / 2)
    return pd.DataFrame(
        {
            "sex": list("FMFMFMFM"),
            "age_years": [50, 60, 70, "n/a", 55, 65, 75, 90],
            "ventricular_volume_ml": [f"{value:g}" for value in asked],
            "measured_lateral_ventricles_ml": found,
            "measured_age_years": [51, 61, 71, 60, 56, 66, 76, "n/a"],
        }
    )


def test_a_table_of_participants_is_scored_inside_and_outside_the_range():
    rows = conditioning.score_table(participants(), RANGES, None)
    json.dumps(rows, allow_nan=False)
    found = {(row["quantity"], row["region"]): row for row in rows}
    assert set(found) == {
        *(("ventricles", region) for region in ("all", "inside", "outside")),
        *(("age", region) for region in ("all", "inside")),  # nobody of known age is outside
    }
    inside, outside = found["ventricles", "inside"], found["ventricles", "outside"]
    assert (inside["n"], outside["n"], found["ventricles", "all"]["n"], found["age", "all"]["n"]) == (4, 4, 8, 6)
    assert inside["unit"] == "ml" and inside["slope"] == inside["bias_low"] == inside["mae_high"] == 1
    assert outside["slope"] < 0.85 and outside["mae_low"] < outside["mae"] < outside["mae_high"]
    assert found["age", "all"]["bias"] == 1 and found["age", "all"]["unit"] == "years"


def test_a_table_is_scored_without_ranges_and_by_groups():
    table = participants()
    (row, _) = conditioning.score_table(table)
    assert row["region"] == "all" and row["n"] == 8
    direct = agreement(table["ventricular_volume_ml"].astype(float), table["measured_lateral_ventricles_ml"])
    assert {name: row[name] for name in direct.record()} == direct.record()
    (by_two, _) = conditioning.score_table(table, None, list("aabbccdd"))
    assert by_two["r"] == row["r"] and by_two["low"] != row["low"]
    assert conditioning.score_table(table[["sex"]], RANGES) == []
    assert conditioning.score_table(table.head(2), RANGES) == []


def test_a_table_that_cannot_be_scored_says_what_is_wrong():
    with pytest.raises(BrainLDMError, match="measured_lateral_ventricles_ml.*no number"):
        conditioning.score_table(participants().astype(str).replace("11.0", "eleven"))
    with pytest.raises(BrainLDMError, match="2 groups"):
        conditioning.score_table(participants(), None, ["a", "b"])
