"""The audit of a run in two spaces finds copies of its own training scans; charts are drawn."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_training import trained_run

from brainldm_core import audit_charts, audits, differences, features, sampling
from brainldm_core.dataset import Cohort, load_cohort

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run = trained_run(tmp_path_factory.mktemp("runs"))
    pipeline, cohort = sampling.load_pipeline(run.folder, "cpu"), load_cohort(run.stage("cohort"))
    scans = [cohort.volumes(split)[:, 0].numpy() for split in ("train", "test")]
    return pipeline, cohort, scans, audits.spaces(run, pipeline, features.offline_extractor(), *scans)


def test_copies_are_traced_in_both_spaces(made):
    pipeline, cohort, (known, unseen), found = made
    who = audits.subjects(cohort)
    assert [len(names) for names in who.values()] == [len(known), len(unseen)]
    for space in found.values():
        assert np.allclose(space.embed(known), space.training, atol=1e-2 * np.abs(space.training).max())
    table, last = audits.planted(found, pipeline, known, who, {"decoded": None, "copy": {}}, count=3)
    assert (table.loc["copy", ["latents: traced", "features: traced"]] == 1).all() and (table["n"] == 3).all()
    assert all(row.n == 3 and row.ratios.max() < 0.5 for row in last.values())
    near = audits.nearest_scans(found["latents"], unseen, known, unseen)
    assert np.array_equal(near["nearest held out"], unseen) and len(near["nearest in training"]) == len(unseen)


def test_charts_are_drawn(made):
    _, cohort, (known, unseen), found = made
    ratios = {key: row.ratios for key, row in audits.audit_all(found, unseen, audits.subjects(cohort)).items()}
    assert audit_charts.distance_ratios({key: ({"samples": row}, 0.8) for key, row in ratios.items()}).axes
    power = np.abs(np.random.default_rng(0).normal(1, 0.1, (4, 6))) + 0.1
    assert len(audit_charts.spectra(np.arange(1, 7) / 10, {"real": power, "samples": power}).axes) == 2
    regions = [differences.regional_volumes(part, cohort.affine) for part in (known, unseen)]
    table = differences.compare_sets(*regions, {name: name for name in regions[0]})
    assert len(audit_charts.effects(table.replace([np.inf, -np.inf], 9).fillna(1)).axes[0].get_yticklabels()) == 12


def people_of(anatomies, count, spread, rng):
    """Rows (N, 6) of people bent from anatomies (A, 6), and whose anatomy each has."""
    names = np.repeat(np.arange(len(anatomies)), count)
    return anatomies[names] + spread * rng.normal(size=(len(names), 6)), [f"a{name}" for name in names]


def anatomy_cohort(known, unseen):
    """A made-up table of people with the anatomies they were bent from."""
    rows = [("train", name) for name in known] + [("test", name) for name in unseen]
    table = pd.DataFrame(rows, columns=["split", "anatomy"])
    return Cohort(Path(), table.assign(participant_id=[f"sub-{row:04d}" for row in range(len(table))]), np.eye(4))


def test_a_model_of_the_training_anatomies_is_known_although_it_copies_nobody():
    rng = np.random.default_rng(0)
    anatomies = rng.normal(size=(24, 6))
    known, names = people_of(anatomies[:12], 20, 0.25, rng)
    unseen, others = people_of(anatomies[12:], 5, 0.25, rng)
    cohort = anatomy_cohort(names, [f"held {name}" for name in others])
    innocent, _ = people_of(rng.normal(size=(12, 6)), 5, 0.25, rng)
    found = {"rows": audits.Space("rows", lambda rows: rows, known, unseen)}
    table = audits.by_anatomy(found, cohort, innocent, draws=199)
    bent, strangers = table.loc["people of training anatomies"].iloc[0], table.loc["samples"].iloc[0]
    assert (bent["anatomies, training"], bent["held out"], bent["n"]) == (12, 12, 60)
    assert bent["scans of each"] == 5 and bent["traced"] > 0.9 and np.isnan(strangers["traced"])
    assert bent["share"] > 0.9 > bent["to"] and bent["p_value"] <= 0.01
    assert strangers["innocent from"] <= strangers["share"] <= strangers["to"] and strangers["p_value"] > 0.05
    # At the level of people: nobody is copied, and strangers are not called copies.
    level = audits.subjects(cohort)
    people = audits.audit_all(found, innocent, level, draws=9)["rows"]
    assert people.subjects == (240, 60) and people.flagged <= 0.15  # of people in twelve anatomies, 0.05 is stated
    level.pop("held_out_kin")  # without it, held-out people look unlike others: their kin lie nearest
    assert audits.audit_all(found, innocent, level, draws=9)["rows"].flagged > 0.5
    words = audits.anatomies_in_words(cohort, table)
    assert "finding nothing proves nothing" not in words
    assert "beyond what an innocent" in words and "There are 12 training and 12 held-out anatomies" in words


def test_one_anatomy_has_no_level_of_its_own():
    found = {"rows": audits.Space("rows", lambda rows: rows, np.eye(4, 6), np.eye(2, 6))}
    one = anatomy_cohort(["atlas"] * 4, ["atlas"] * 2)
    table = audits.by_anatomy(found, one, np.eye(2, 6))
    assert table.empty and "bent from one anatomy" in audits.anatomies_in_words(one, table)
    shared = anatomy_cohort(["a", "b", "a", "b"], ["a", "c"])
    assert "3 anatomies, of which training and test share" in audits.anatomies_in_words(shared, pd.DataFrame())
    people = Cohort(Path(), one.table.drop(columns="anatomy"), np.eye(4))
    assert audits.by_anatomy(found, people, np.eye(2, 6)).empty
    assert "every participant has an anatomy of their own" in audits.anatomies_in_words(people, pd.DataFrame())
