"""Straight lines, what is left of a correlation, and two groups told apart, against formulae and counts."""

import numpy as np
import pytest

from brainldm_core import regression


def test_partial_correlation_against_the_formula_of_three_correlations():
    rng = np.random.default_rng(2)
    z = rng.normal(size=300)
    x, y = z + rng.normal(size=300), 2 * z + rng.normal(size=300)
    xy, xz, yz = (np.corrcoef(*pair)[0, 1] for pair in ((x, y), (x, z), (y, z)))
    formula = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert regression.partial_correlation(x, y, z[:, None]) == pytest.approx(formula)


def test_partial_correlation_is_undefined_without_rows_or_rest():
    z = np.arange(10.0)[:, None]
    assert np.isnan(regression.partial_correlation(z[:3, 0], [1, 5, 2], z[:3]))
    assert np.isnan(regression.partial_correlation(3 * z[:, 0], np.random.default_rng(0).normal(size=10), z))
    assert np.isnan(regression.partial_correlation([np.nan] * 10, z[:, 0], z))
    same = 48.7 + 1e-14 * np.arange(10) % 3  # one value, but for rounding
    assert np.isnan(regression.partial_correlation(same, np.random.default_rng(0).normal(size=10), z))


def test_linear_prediction_recovers_a_plane_and_keeps_gaps():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(50, 2)) * [1, 1000]
    y = 3 + x @ [2, -0.01]
    x[7, 0] = np.nan
    new = np.array([[1.0, 100.0], [np.nan, 1.0]])
    found = regression.linear_prediction(x, y, new)
    assert found[0] == pytest.approx(4) and np.isnan(found[1])
    assert np.isnan(regression.linear_prediction(x, np.full(50, np.nan), new)).all()


def test_separation_counts_ordered_pairs():
    scores, side = np.array([1.0, 2.0, 3.0, 4.0, 9.0]), np.array([0, 1, 0, 1, np.nan])
    row = regression.separation(scores, side)
    assert row["value"] == 0.75 and row["n"] == 4 and row["low"] <= 0.75 <= row["high"]
    assert regression.separation(side, side)["value"] == 1
    assert regression.separation(np.zeros(4), side[:4])["value"] == 0.5
    assert np.isnan(regression.separation(scores, np.zeros(5))["value"])


def test_partial_correlation_has_the_interval_of_resampled_rows():
    rng = np.random.default_rng(6)
    z = rng.normal(size=(80, 2))
    x = z @ [1, -1] + rng.normal(size=80)
    y = z @ [2, 1] + 0.5 * (x - z @ [1, -1]) + rng.normal(size=80)
    row = regression.partial_row(x, y, z, draws=400)
    assert row["value"] == pytest.approx(regression.partial_correlation(x, y, z), abs=1e-4) and row["n"] == 80
    # Fisher's interval, whose degrees are fewer by the two that are given.
    fisher = np.tanh(np.arctanh(row["value"]) + np.array([-1.96, 1.96]) / np.sqrt(75))
    assert [row["low"], row["high"]] == pytest.approx(fisher, abs=0.06)
    unknown = regression.partial_row(x[:3], y[:3], z[:3])
    assert np.isnan([unknown["value"], unknown["low"]]).all() and unknown["n"] == 3


def test_ridge_tells_groups_by_many_features_that_a_straight_line_would_only_remember():
    rng = np.random.default_rng(7)
    side = rng.integers(0, 2, 300).astype(float)
    features = rng.normal(size=(300, 150)) + 0.6 * side[:, None] * (np.arange(150) < 20)
    learned = slice(0, 160)
    target = np.where(np.arange(160) == 5, np.nan, side[learned])
    scores = {
        rule: regression.separation(rule(features[learned], target, features[160:]), side[160:], draws=20)["value"]
        for rule in (regression.ridge_prediction, regression.linear_prediction)
    }
    assert scores[regression.ridge_prediction] > 0.75 > scores[regression.linear_prediction]
    assert np.isnan(regression.ridge_prediction(features, np.ones(300), features)).all()


def test_accuracy_at_a_threshold_set_on_other_rows():
    learned, side = np.array([0.0, 0.2, 0.8, 1.4, np.nan]), np.array([0, 0, 1, 1, 1.0])
    threshold = regression.half_way(learned, side)
    assert threshold == pytest.approx((0.1 + 1.1) / 2)
    scores = np.array([0.1, 0.7, 0.9, 0.3, 0.59, np.nan, 0.5])
    truth = np.array([0, 0, 1, 1, 0, 1, np.nan])
    row = regression.accuracy(scores, truth, threshold)
    assert (row["n"], row["value"], row["null"]) == (5, 0.6, 0.6)
    z2 = 1.959964**2  # Wilson 1927
    centre, half = (3 + z2 / 2) / (5 + z2), 1.959964 / (5 + z2) * np.sqrt(5 * 0.6 * 0.4 + z2 / 4)
    assert (row["low"], row["high"]) == pytest.approx((centre - half, centre + half), abs=1e-4)
    assert np.isnan(regression.half_way(learned, np.ones(5)))
    assert np.isnan(regression.accuracy(scores, truth, np.nan)["value"])
