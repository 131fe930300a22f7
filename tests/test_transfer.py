"""Train on one set, test on another: what ridge regression must say where the answer is known."""

import numpy as np
import pytest

from brainldm_core import transfer
from brainldm_core.errors import BrainLDMError
from brainldm_core.transfer import People


def population(n, seed, noise=4.0, informative=True):
    """People whose age is a line in three of eight features, with noise."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 8)) * [1, 10, 100, 1, 1, 1, 1, 1] + 5
    years = 60 + 6 * features[:, 0] - 30 + 0.5 * features[:, 1] - 2.5 + rng.normal(0, noise, n)
    return People(features if informative else rng.normal(size=(n, 8)), years)


def test_ridge_is_its_formula():
    from sklearn.linear_model import RidgeCV

    training, tested = population(40, 0), population(9, 1)
    mean, spread = training.features.mean(0), training.features.std(0)
    x, y = (training.features - mean) / spread, training.years - training.years.mean()
    alpha = RidgeCV(transfer.PENALTIES).fit(x, training.years).alpha_
    weights = np.linalg.solve(x.T @ x + alpha * np.eye(8), x.T @ y)
    expected = training.years.mean() + (tested.features - mean) / spread @ weights
    assert transfer.learn_age(training, tested) == pytest.approx(expected, abs=1e-8)
    with pytest.raises(BrainLDMError, match="2 training people"):
        transfer.learn_age(tested[np.arange(2)], training)


def test_a_set_as_good_as_real_loses_nothing_and_noise_gives_the_null():
    real, same, tested = population(150, 0), population(150, 1), population(80, 2)
    deaf = People(same.features, np.random.default_rng(3).permutation(same.years))
    blank = population(150, 4, informative=False)
    arms = {"real": (real,), "same": (same,), "both": (real, same), "deaf": (deaf,), "noise": (blank,), "mean": ()}
    found = transfer.read_ages(arms, tested, 100, draws=6)
    assert all(ages.shape == (6, 80) for ages in found.values())
    rows = transfer.compare_arms(found, tested.years, "real", redraws=300)
    assert rows["real"]["gain"] == 0 and rows["real"]["r"] > 0.8 and 2.5 < rows["real"]["MAE"] < 4
    assert abs(rows["same"]["gain"]) < 0.25 and rows["same"]["gain low"] < 0 < rows["same"]["gain high"]
    for name in ("deaf", "noise"):
        assert rows[name]["MAE"] == pytest.approx(rows["mean"]["MAE"], rel=0.12) and rows[name]["gain high"] < 0
    assert np.isnan(rows["mean"]["r"]) and rows["mean"]["MAE"] == pytest.approx(
        np.abs(tested.years - real.years.mean()).mean(), rel=0.05
    )
    for row in rows.values():
        assert row["low"] < row["MAE"] < row["high"]
    against = {name: transfer.compare_arms(found, tested.years, "mean", redraws=300)[name] for name in rows}
    named = {"real": rows["real"], "mean age": rows["mean"]}
    good = transfer.in_words(named | {"synthetic": rows["same"]}, against["same"], rows["real"], 100, 80, 150)
    assert "no measurably different amount" in good and "It beats the mean age" in good
    bad = transfer.in_words(named | {"synthetic": rows["deaf"]}, against["deaf"], rows["real"], 100, 80, 150)
    assert "teaches less" in bad and "is not shown to beat" in bad


def test_unknown_ages_are_left_out():
    some = population(12, 0)
    some.years[3], some.features[5, 0] = np.nan, np.inf
    assert len(some.known().years) == 10
