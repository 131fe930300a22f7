"""The rule of what is caught: analytic cases."""

import numpy as np
import pandas as pd
import pytest

from brainldm_core import verdicts
from brainldm_core.verdicts import OUTSIDE


def test_distances_are_counted_in_edges_of_the_healthy_range():
    healthy = pd.DataFrame({"a": np.random.default_rng(0).normal(5, 2, 40_000), "b": 1.0, "c": [0.5, *[1.0] * 39_999]})
    values = pd.DataFrame({"c": [1.0, 0.9], "a": [5.0, 9.0], "b": [1.0, 0.0]})
    found = verdicts.standardised(values, healthy)
    assert list(found) == ["a", "b", "c"] and found["a"].to_numpy() == pytest.approx([0, 2], abs=0.05)
    assert found["b"].tolist() == [0, -np.inf]
    assert found["c"].iloc[0] == 0 and np.isfinite(found["c"].iloc[1]) and found["c"].iloc[1] < -OUTSIDE


def test_independent_metrics_get_the_limit_of_the_largest_of_them():
    from scipy.stats import norm

    healthy = pd.DataFrame(np.random.default_rng(1).normal(size=(20_000, 12)))
    limit = verdicts.family_limit(verdicts.standardised(healthy, healthy))
    assert limit == pytest.approx(norm.ppf(0.5 + 0.5 * 0.95 ** (1 / 12)), rel=0.03)
    alone = healthy[[0]]
    assert verdicts.family_limit(verdicts.standardised(alone, alone)) == pytest.approx(1.96, rel=0.02)


def test_what_catches_nothing_says_so():
    caught = pd.DataFrame({"FID": [False, False]}, pd.MultiIndex.from_tuples([("a", "1"), ("a", "2")]))
    assert verdicts.in_words(caught) == ["**a** (1; 2): caught by nothing."]
    assert verdicts.what_is_seen(caught).splitlines()[-1] == "| FID | nothing | a |"
