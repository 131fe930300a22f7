"""Healthy people are left in peace at the rate that is stated, and each fault is caught by the metric made for it."""

import numpy as np
import pandas as pd
import pytest

from brainldm_core import audit_charts, features, sensitivity, verdicts
from brainldm_core.audits import Space
from brainldm_core.faults import standard_faults
from brainldm_core.sensitivity import METRICS
from brainldm_core.verdicts import OUTSIDE

AFFINE = np.diag([10.0, 10.0, 10.0, 1.0])
MEASURED = "measured_brain_volume_ml"


def balls(count, seed):
    """Textured balls (count, 16, 20, 16) of different shapes."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.arange(side) - (side - 1) / 2 for side in (16, 20, 16)), indexing="ij")
    volumes = []
    for _ in range(count):
        distance = np.sqrt(sum((axis / rng.uniform(0.85, 1.15)) ** 2 for axis in axes))
        shape = 0.7 / (1 + np.exp(2 * (distance - rng.uniform(5, 6.5))))
        volumes.append(shape + 0.02 * rng.standard_normal(shape.shape) * (shape > 0.1))
    return np.clip(volumes, 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def bench():
    """Sixty healthy people, thirty held out, sets of twenty; requests are what is measured; and where it is judged."""
    extractor, people, others = features.offline_extractor(), balls(60, 0), balls(30, 1)

    def coarse(volumes):
        return np.asarray(volumes, float).reshape(-1, 4, 4, 5, 4, 4, 4).mean((2, 4, 6)).reshape(len(volumes), -1)

    def seen(volumes):
        return features.extract(extractor, np.asarray(volumes, np.float32))

    spaces = {
        name: Space(name, embed, embed(people), embed(others))
        for name, embed in (("latents", coarse), ("features", seen))
    }
    known = sensitivity.portray(people, spaces, AFFINE, "training")
    held_out = sensitivity.portray(others, spaces, AFFINE, "held_out")
    requests = pd.DataFrame({"brain_volume_ml": known.measured[MEASURED], "ventricular_volume_ml": np.nan})
    return sensitivity.Bench(known, held_out, requests, people, 20), spaces


@pytest.fixture(scope="module")
def healthy(bench):
    return bench[0].healthy(120)


@pytest.fixture(scope="module")
def judged(bench, healthy):
    judge, spaces = bench
    rows, seen = judge.draw(np.random.default_rng(5))
    found = standard_faults(rows, seen, judge.people.measured[[MEASURED]].to_numpy(), 10.0)
    return sensitivity.judge_faults(judge, found, seen, spaces, AFFINE)


def test_healthy_people_are_left_in_peace(bench, healthy):
    limit = verdicts.family_limit(verdicts.standardised(healthy, healthy))
    judge, _ = bench
    fresh = sensitivity.Bench(judge.people, judge.reference, judge.requests, judge.volumes, judge.n, seed=9)
    fresh.__dict__.update(pairs=judge.pairs, similarities=judge.similarities)
    fresh = verdicts.standardised(fresh.healthy(120), healthy).abs()
    known = fresh.notna().any()
    assert known.sum() >= len(METRICS) - 2  # these balls have no ventricles
    assert (fresh.loc[:, known] > OUTSIDE).mean().mean() < 0.09  # stated: 0.05
    assert (fresh > limit).any(axis=1).mean() < 0.15  # stated: 0.05
    assert (fresh > OUTSIDE).any(axis=1).mean() > 0.2  # what the limit is for


def test_a_draw_of_healthy_people_is_judged_like_any_system(bench, healthy):
    judge, spaces = bench
    rows, seen = judge.draw(np.random.default_rng(0))
    plain = judge.judge(judge.people[rows], judge.requests.iloc[rows], seen)
    again = judge.system(judge.volumes[rows], judge.requests.iloc[rows], seen, judge.people[rows])
    assert {name: again[name] for name in plain} == pytest.approx(plain, nan_ok=True) and set(again) == set(METRICS)
    table = pd.DataFrame([plain], pd.MultiIndex.from_tuples([("a", "1")]))
    more = sensitivity.with_models(
        table, judge, {"b": (judge.volumes[rows], judge.requests.iloc[rows], judge.people[rows])}, seen
    )
    assert list(more.index) == [("b", ""), ("a", "1")] and more.loc[("b", ""), "FID"] == plain["FID"]
    portrait = sensitivity.portray(judge.volumes[rows], spaces, AFFINE)
    assert portrait.noise == pytest.approx(judge.people[rows].noise)
    assert portrait.features == pytest.approx(judge.people[rows].features, abs=1e-5)
    assert portrait.measured.equals(judge.people[rows].measured)


def test_every_fault_is_caught_by_what_was_made_for_it(healthy, judged):
    distances = verdicts.standardised(judged, healthy)
    limit = verdicts.family_limit(verdicts.standardised(healthy, healthy))
    caught = distances.abs() > limit
    assert distances.loc[("blurred", "6 mm"), "finest power"] < -limit
    assert distances.loc[("noisy", "0.03 grey values"), "noise level"] > limit
    assert distances.loc[("too dark", "10%"), "finest power"] < -limit
    assert distances.loc[("checkerboard", "3%"), "finest power"] > limit
    assert distances.loc[("mode-collapsed", "1 person"), "recall"] < -limit
    assert caught.loc[("memorised", "all, 5% changed"), "copies (share)"] and not caught.loc["memorised"]["FID"].all()
    assert judged.loc[("memorised", "50% exact"), "copies (flagged)"] >= 0.5
    deaf = ("covariate-blind", "100%")
    assert abs(judged.loc[deaf, "brain (r)"]) < 0.6 and caught.loc[deaf].sum() == 1  # pictures are right
    assert not caught.loc[deaf, "FID"] and caught.loc[deaf, "brain (r)"]
    words = verdicts.in_words(caught)
    assert len(words) == 9 and any(line.startswith("**covariate-blind**: caught from") for line in words)
    seen = verdicts.what_is_seen(caught)
    rows = {line.split(" | ")[0].strip("| "): line for line in seen.splitlines()[2:]}
    assert list(rows) == list(METRICS)
    assert rows["FID"].endswith("covariate-blind |") and "covariate-blind (" in rows["brain (r)"]
    marks = verdicts.marked(judged, distances, limit)
    assert marks.loc[deaf, "brain (r)"].endswith("●") and "●" not in marks.loc[deaf, "FID"]
    assert marks.loc[deaf, "ventricles (r)"] == "–"


def test_the_map_is_drawn(healthy, judged):
    figure = audit_charts.sensitivity(verdicts.standardised(judged, healthy), 3.0)
    assert len(figure.axes[0].get_yticklabels()) == len(judged) and figure.axes[0].lines
    apart = pd.DataFrame({"FID": [np.inf, np.nan, 1.0]}, pd.MultiIndex.from_tuples([("a", "1"), ("a", "2"), ("b", "")]))
    axis = audit_charts.sensitivity(apart, 3.0).axes[0]
    assert sum(line.get_marker() == "o" for line in axis.lines) == 1 and [text.get_text() for text in axis.texts] == [
        "–"
    ]
