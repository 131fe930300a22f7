"""Agreement of requested and measured values against direct computation."""

import numpy as np
import pandas as pd
import pytest

from brainldm_core import conditioning
from brainldm_core.conditioning import agreement


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
    assert rows["age_mae_years"] == rows["age_bias_years"] == {"value": 3.0, "unit": "years", "n": 5}
    assert rows["age_slope"]["value"] == 2


def test_slope_needs_two_different_requests():
    assert conditioning.slope([1, 3], [2, 8]) == pytest.approx(3)
    assert conditioning.slope([1, 3, np.nan, 4], [2, 8, 0, np.nan]) == pytest.approx(3)
    assert np.isnan(conditioning.slope([2, 2], [1, 5])) and np.isnan(conditioning.slope([2], [1]))


def test_words_about_extrapolation_follow_the_slopes():
    say = conditioning.beyond_in_words
    assert "Above it, the slope is 0.48: the answer goes on" in say(
        "x", {"below": np.nan, "inside": 0.5, "above": 0.48}
    )
    assert "hardly follows" in say("x", {"below": 0.01, "inside": 0.5, "above": np.nan})
    assert "less than inside" in say("x", {"below": 0.25, "inside": 0.5, "above": np.nan})
    assert "turns round" in say("x", {"below": -0.5, "inside": 0.5, "above": np.nan})
    assert "further than inside" in say("x", {"below": 2.0, "inside": 0.5, "above": np.nan})
    for inside in (0.0, -1.0, np.nan):
        assert "says nothing of outside" in say("x", {"below": 1.0, "inside": inside, "above": 1.0})


def test_partial_correlation_against_the_formula_of_three_correlations():
    rng = np.random.default_rng(2)
    z = rng.normal(size=300)
    x, y = z + rng.normal(size=300), 2 * z + rng.normal(size=300)
    xy, xz, yz = (np.corrcoef(*pair)[0, 1] for pair in ((x, y), (x, z), (y, z)))
    formula = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert conditioning.partial_correlation(x, y, z[:, None]) == pytest.approx(formula)


def test_partial_correlation_is_undefined_without_rows_or_rest():
    z = np.arange(10.0)[:, None]
    assert np.isnan(conditioning.partial_correlation(z[:3, 0], [1, 5, 2], z[:3]))
    assert np.isnan(conditioning.partial_correlation(3 * z[:, 0], np.random.default_rng(0).normal(size=10), z))
    assert np.isnan(conditioning.partial_correlation([np.nan] * 10, z[:, 0], z))
    same = 48.7 + 1e-14 * np.arange(10) % 3  # one value, but for rounding
    assert np.isnan(conditioning.partial_correlation(same, np.random.default_rng(0).normal(size=10), z))


def test_linear_prediction_recovers_a_plane_and_keeps_gaps():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(50, 2)) * [1, 1000]
    y = 3 + x @ [2, -0.01]
    x[7, 0] = np.nan
    new = np.array([[1.0, 100.0], [np.nan, 1.0]])
    found = conditioning.linear_prediction(x, y, new)
    assert found[0] == pytest.approx(4) and np.isnan(found[1])
    assert np.isnan(conditioning.linear_prediction(x, np.full(50, np.nan), new)).all()


def test_separation_counts_ordered_pairs():
    scores, side = np.array([1.0, 2.0, 3.0, 4.0, 9.0]), np.array([0, 1, 0, 1, np.nan])
    row = conditioning.separation(scores, side)
    assert row["value"] == 0.75 and row["n"] == 4 and row["low"] <= 0.75 <= row["high"]
    assert conditioning.separation(side, side)["value"] == 1
    assert conditioning.separation(np.zeros(4), side[:4])["value"] == 0.5
    assert np.isnan(conditioning.separation(scores, np.zeros(5))["value"])


def test_scorecard_names_units_and_marks_what_is_undefined():
    rows = {"real": agreement([1, 2, 3], [1, 2, 4]), "drawn": agreement([1.0], [3.0])}
    table = conditioning.scorecard({"age": rows}, {"age": "years"})
    assert list(table.index) == [("age (years)", "real"), ("age (years)", "drawn")]
    assert table.iloc[0, 2] == "1.50" and table.iloc[1].tolist() == [1, "–", "–", "+2.0", "2.0"]


TRUE = pd.DataFrame({"a": [0.5, 0.0, 0.1], "b": [0.2, 1.0, -0.3]}, index=["sex", "age_years", "brain_volume_ml"])
UNITS = {"sex": 1.0, "age_years": 10.0, "brain_volume_ml": 50.0, "a": 2.0, "b": 4.0}


def answers(noise_effect: float) -> pd.DataFrame:
    """What a linear model would answer to every covariate moved, from three noises."""
    rows = []
    for column, values in {"sex": ["F", "M"], "age_years": [50, 70], "brain_volume_ml": [1000, 1100, 1150]}.items():
        for noise in range(3):
            for value in values:
                x = (value == "M") * 1.0 if column == "sex" else value / UNITS[column]
                row = {"sex": "F", "age_years": 60, "brain_volume_ml": 1100, column: value, "moved": column}
                gain = {name: TRUE.loc[column, name] * (1 + noise_effect * (noise - 1)) for name in ("a", "b")}
                offset = 100 * noise
                rows.append(row | {"noise": noise} | {n: UNITS[n] * gain[n] * x + offset for n in gain})
    return pd.DataFrame(rows)


def test_cross_talk_recovers_the_matrix_of_a_linear_model_whatever_the_noise_adds():
    mean, error = conditioning.cross_talk(answers(0.0), ["a", "b"], UNITS)
    pd.testing.assert_frame_equal(mean.loc[TRUE.index], TRUE, check_exact=False, atol=1e-9)
    assert (error.to_numpy() < 1e-9).all()
    mean, error = conditioning.cross_talk(answers(0.5), ["a", "b"], UNITS)
    pd.testing.assert_frame_equal(mean.loc[TRUE.index], TRUE, check_exact=False, atol=1e-9)
    assert np.allclose(error.loc[TRUE.index], TRUE.abs() * 0.5 / np.sqrt(3))


def test_cross_talk_of_what_is_unknown_is_undefined():
    table = answers(0.0).assign(age_years=np.nan)
    mean, _ = conditioning.cross_talk(table, ["a", "b"], UNITS | {"a": 0.0})
    assert mean.loc["age_years"].isna().all() and mean["a"].isna().all() and np.isfinite(mean.loc["sex", "b"])
    one = table[table["noise"] == 0]
    assert conditioning.cross_talk(one, ["b"], UNITS)[1].isna().all(axis=None)


def test_largest_entry_off_the_diagonal():
    matrix = pd.DataFrame([[9.0, 0.1], [-0.4, 8.0]], index=["p", "q"], columns=["x", "y"])
    assert conditioning.off_diagonal(matrix) == ("q", "x", -0.4)
    assert np.isnan(conditioning.off_diagonal(matrix * np.nan)[2])


def test_swap_tells_request_from_noise():
    noise = np.array([0.0, 5.0, -3.0, 9.0])
    obeys = conditioning.swap_test(np.stack([10 + 0 * noise, 40 + 0 * noise]), sign=1)
    assert obeys["follows the request"] == 1 and obeys["variance by request"] == pytest.approx(1)
    ignores = conditioning.swap_test(np.stack([noise, noise]), sign=1)
    assert ignores["stays with the noise"] == 1 and ignores["variance by noise"] == pytest.approx(1)
    both = conditioning.swap_test(np.stack([noise, noise + 6]), sign=1)
    # Pairs of noises that differ by less than 6: (0, 5), (0, -3), (5, 9).
    assert both["follows the request"] == pytest.approx(3 / 6) and both["stays with the noise"] == pytest.approx(3 / 6)
    assert both["variance by neither"] == pytest.approx(0, abs=1e-12)


def test_swap_against_the_request_is_neither_and_nothing_asked_is_undefined():
    found = np.array([[10.0, 10.0], [40.0, 40.0]])
    wrong = conditioning.swap_test(found, sign=-1)
    assert wrong["follows the request"] == wrong["stays with the noise"] == 0
    assert np.isnan(conditioning.swap_test(found, sign=0)["follows the request"])
    assert np.isnan(conditioning.swap_test(np.ones((2, 3)), sign=1)["variance by noise"])


def test_rows_that_share_an_anatomy_are_resampled_together():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(6), 40)
    x = rng.normal(size=6)[groups] + 0.05 * rng.normal(size=240)  # six people, each nearly the same forty times
    y = x + rng.normal(size=6)[groups]
    alone, together = conditioning.agreement(x, y), conditioning.agreement(x, y, groups=groups)
    assert together.r == alone.r and together.n == alone.n
    assert together.high - together.low > 2 * (alone.high - alone.low)
    assert conditioning.agreement(x, y, groups=["atlas"] * 240) == alone
    missing = np.where(groups == 0, np.nan, y)
    assert conditioning.agreement(x, missing, groups=groups).n == 200
