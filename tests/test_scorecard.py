"""The tables of the scorecard, and what ignoring the request would give."""

import numpy as np
import pytest

from brainldm_core import scorecard
from brainldm_core.conditioning import agreement


def test_scorecard_names_units_and_marks_what_is_undefined():
    rows = {"real": agreement([1, 2, 3], [1, 2, 4]), "drawn": agreement([1.0], [3.0])}
    table = scorecard.scorecard({"age": rows}, {"age": "years"})
    assert list(table.index) == [("age (years)", "real"), ("age (years)", "drawn")]
    assert table.iloc[0, 2].startswith("1.50 [") and table.iloc[1].tolist() == [1, "–", "–", "+2.0", "2.0"]
    assert table.iloc[0, 3] == "+0.3 [+0.0, +1.0]"


def test_permuted_requests_have_no_correlation_and_the_error_of_strangers():
    rng = np.random.default_rng(8)
    asked = rng.normal(60, 9, 101)
    found = asked + rng.normal(3, 2, 101)
    row = scorecard.null(asked, found, draws=2000)
    assert row.n == 101 and abs(row.r) < 0.02 and abs(row.slope) < 0.02
    assert [row.low, row.high] == pytest.approx([-0.196, 0.196], abs=0.02)  # variance 1 / (n - 1)
    assert row.bias == pytest.approx((found - asked).mean()) and np.isnan(row.bias_low)
    assert row.mae == pytest.approx(np.abs(found[:, None] - asked[None]).mean(), rel=0.01)
    assert row.mae_low < row.mae < row.mae_high and row.mae_low > agreement(asked, found).mae_high
    assert scorecard.null(asked, found, draws=50) == scorecard.null(asked, found, draws=50)
    nothing = scorecard.null([1, 2, 3, np.nan], [5, 5, 5, 5])
    assert nothing.n == 3 and np.isnan(nothing.r) and np.isnan(nothing.mae)


def test_any_statistic_can_be_permuted_where_it_is_defined():
    values = np.arange(6.0)
    mean, low, high = scorecard.permuted(values, lambda dealt: [dealt.sum(), dealt[0], np.nan], draws=400)
    assert mean[0] == low[0] == high[0] == 15
    assert mean[1] == pytest.approx(2.5, abs=0.3) and (low[1], high[1]) == (0, 5)
    assert np.isnan([mean[2], low[2], high[2]]).all()


def test_the_whole_card_has_every_number_in_its_column():
    real, drawn = agreement(np.arange(5.0), np.arange(5.0) + 1), agreement(np.arange(4.0), 3 - np.arange(4.0))
    card = {
        "age": {"cohort": scorecard.numbers(real, "years"), "samples": scorecard.numbers(drawn, "years")},
        "sex": {"samples": {"area": {"value": 0.5, "low": np.nan, "high": np.nan, "n": 9}}},
    }
    table = scorecard.whole(card)
    assert list(table.columns) == ["n", "cohort [95 %]", "samples [95 %]"]
    assert table.loc[("age", "r")].tolist() == [5, "1.00 [1.00, 1.00]", "-1.00 [-1.00, -1.00], n = 4"]
    assert table.loc[("age", "bias (years)")].iloc[1] == "1.0 [1.0, 1.0]"
    assert table.loc[("sex", "area")].tolist() == [9, "", "0.50"]


def test_a_source_stands_above_the_null_with_its_whole_interval_or_not_at_all():
    null = {"r": {"value": 0.0, "low": -0.2, "high": 0.2, "n": 9}}
    heard = {"r": {"value": 0.5, "low": 0.21, "high": 0.7, "n": 9}}
    unsure = {"r": {"value": 0.5, "low": 0.19, "high": 0.7, "n": 9}}
    area = {"area": {"value": 0.8, "low": 0.6, "high": 0.9, "n": 9}}
    half = {"area": {"value": 0.5, "n": 9}}
    unknown = {"r": {"value": np.nan, "low": np.nan, "high": np.nan, "n": 2}}
    cards = {"a": (heard, null), "b": (unsure, null), "c": (area, half), "d": (unknown, null)}
    found = {name: {"samples": part, scorecard.NULL: dealt} for name, (part, dealt) in cards.items()}
    assert scorecard.above_null(found, "samples") == ["a", "c"]


def test_chance_of_a_number_is_its_mean_and_range_over_permuted_requests():
    rng = np.random.default_rng(9)
    asked, found = rng.normal(size=50), rng.normal(size=50)
    row = scorecard.chance(asked, lambda dealt: np.corrcoef(dealt, found)[0, 1])
    assert row["n"] == 50 and abs(row["value"]) < 0.03
    assert [row["low"], row["high"]] == pytest.approx([-0.28, 0.28], abs=0.05)


def test_cells_have_intervals_where_they_are_known_and_no_minus_nought():
    assert scorecard.cell(-0.001, -0.2, 0.3) == "0.00 [-0.20, 0.30]"
    assert scorecard.cell(-62.6, np.nan, np.nan, ".1f") == "-62.6"
    assert scorecard.cell(10.0, -0.04, 20.0, ".1f") == "10.0 [0.0, 20.0]"
    assert scorecard.cell(np.nan, 0, 1) == "–"
