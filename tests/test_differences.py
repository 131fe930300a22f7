"""Effect sizes, false-discovery control, regions and groups: formula replays and analytic cases."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control

from brainldm_core import differences
from brainldm_core.dataset import LABELS
from brainldm_core.errors import BrainLDMError


def test_effect_size_is_the_difference_in_pooled_deviations():
    d, low, high = differences.cohens_d([2, 4, 6], [1, 3, 5])
    assert d == pytest.approx(0.5) and low < d < high
    assert differences.cohens_d([1, 3, 5], [2, 4, 6])[0] == pytest.approx(-0.5)
    assert differences.cohens_d([1, 1], [1, 1])[0] == 0 and differences.cohens_d([2, 2], [1, 1])[0] == np.inf
    with pytest.raises(BrainLDMError, match="at least 2"):
        differences.cohens_d([1], [1, 2])


def test_the_interval_covers_the_truth_at_its_rate():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        _, low, high = differences.cohens_d(rng.normal(0.5, 1, 40), rng.normal(0, 1, 60))
        hits += low <= 0.5 <= high
    assert 0.92 <= hits / 400 <= 0.98


def test_false_discovery_is_the_published_procedure():
    p = np.random.default_rng(1).uniform(size=15) ** 3
    assert np.allclose(differences.false_discovery(p), false_discovery_control(p))
    assert differences.false_discovery([0.04]).tolist() == [0.04]


def test_sets_that_differ_are_told_from_sets_that_do_not():
    rng = np.random.default_rng(2)
    one = pd.DataFrame({"a": rng.normal(1, 1, 80), "b": rng.normal(0, 1, 80), "c": rng.normal(0, 1, 80)})
    two = pd.DataFrame({"a": rng.normal(0, 1, 64), "b": rng.normal(0, 1, 64), "c": rng.normal(0, 1, 64)})
    table = differences.compare_sets(one, two, {"a": "moved", "b": "same", "c": "also the same"})
    assert list(table.index) == ["moved", "same", "also the same"]
    assert table.loc["moved", "q"] < 0.01 and (table.loc[["same", "also the same"], "q"] > 0.05).all()
    assert table.loc["moved", "low"] > 0.5 and (table["q"] >= table["p"]).all()
    assert (table["n_samples"] == 80).all() and (table["n_real"] == 64).all()
    assert differences.that_differ(table) == "1 of 3 (moved)" and differences.that_differ(table, 0) == "0 of 3"


def test_regions_split_where_they_say(monkeypatch):
    affine = np.diag([10.0, 10.0, 10.0, 1.0])
    affine[:3, 3] = [-20, -38, -10]  # x = 0, y = -18 and z = 10 lie on the planes of voxel 2
    labels = np.zeros((5, 5, 5), np.uint8)
    labels[0, 0, 0] = labels[4, 4, 4] = 2
    labels[2, 4, 4] = 3  # on the midline
    labels[3, 0, 0] = 4
    monkeypatch.setattr(differences, "segment", lambda volume, affine: labels)
    row = differences.regional_volumes(np.zeros((1, 5, 5, 5)), affine).iloc[0]
    assert (row["grey matter, left"], row["grey matter, right"]) == (1, 1)
    assert (row["white matter, left"], row["white matter, right"]) == (0.5, 0.5)
    assert (row["lateral ventricles, left"], row["lateral ventricles, right"]) == (0, 1)
    assert (row["brain, front upper"], row["brain, back lower"], row["brain, back upper"]) == (2, 1, 0)
    brain = [f"{LABELS[value]}, {side}" for value in (2, 3) for side in ("left", "right")]
    assert row[brain].sum() == row[[name for name in row.index if name.startswith("brain")]].sum()


def test_groups_have_their_n_and_their_errors():
    ages = np.repeat([50.0, 60.0, 80.0], [12, 3, 12])
    table = pd.DataFrame(
        {"age_years": ages, "sex": "F", "ventricular_volume_ml": np.arange(27.0), "brain_volume_ml": 1}
    )
    table = table.assign(measured_lateral_ventricles_ml=np.arange(27.0) + 2, measured_brain_volume_ml=1.0)
    groups = differences.by_age_and_sex(table)
    assert groups["n"].tolist() == [12, 3, 12] and groups["n"].sum() == len(table)
    assert groups["ventricles, mean error (ml)"].tolist() == groups["ventricles, bias (ml)"].tolist() == [2, 2, 2]
    assert groups["ventricles, r"].round(6).tolist()[::2] == [1, 1] and np.isnan(groups["ventricles, r"].iloc[1])
    assert [name[0] for name in groups.index] == ["below 55", "55 to 65", "75 and more"]
