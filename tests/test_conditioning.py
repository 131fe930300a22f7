"""Agreement of requested and measured values against direct computation."""

import numpy as np
import pytest

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
