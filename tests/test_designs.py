"""Designs: ranges, quantiles with known answers, and draws that hang on seed and id alone."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from test_sampling import RANGES
from test_training import blob_run

from brainldm_core import designs
from brainldm_core.dataset import load_cohort
from brainldm_core.designs import End
from brainldm_core.errors import BrainLDMError
from brainldm_core.sampling import Pipeline


def never(column, per_cent):
    raise AssertionError("no quantile was asked for")


@pytest.mark.parametrize(
    ("text", "unit", "low", "high"),
    [
        ("70", "years", 70, 70),
        ("44:82", "years", 44, 82),
        ("44 y:82 years", "years", 44, 82),
        ("10:60ml", "ml", 10, 60),
        ("10000:60000mm3", "ml", 10, 60),  # a unit at one end holds for both
        ("0.01l:.06", "ml", 10, 60),
        ("1e1:6e1", "ml", 10, 60),
        ("10ml:0.06l", "ml", 10, 60),
        ("-20:10", "ml", -20, 10),  # below zero extrapolates, as a panel of the paper does
    ],
)
def test_ranges_are_parsed_in_units(text, unit, low, high):
    first, last = designs.parse_range(text, unit)
    assert (first.value, last.value) == pytest.approx((low, high))
    assert not first.quantile and not last.quantile


def test_quantiles_are_parsed_in_per_cent():
    assert designs.parse_range("q10", "years") == (End(10, True), End(10, True))
    assert designs.parse_range("Q2.5:q97.5", "ml") == (End(2.5, True), End(97.5, True))
    assert designs.parse_range("q10:60ml", "ml") == (End(10, True), End(60))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("82:44", "the larger end comes first; write 44:82"),
        ("q90:q10", "the larger end comes first; write q10:q90"),
        ("1:2:3", "not a range; write its two ends"),
        ("44:", "not a quantity in years"),
        (":", "not a quantity in years"),
        ("44:nan", "not a quantity in years"),
        ("44:82ml", "not a quantity in years"),
        ("q101", "not a quantile; write q0 to q100"),
        ("q-1", "not a quantile"),
        ("qten", "not a quantile"),
        ("q0.9", "in per cent; write q90"),
    ],
)
def test_what_is_no_range_is_refused(text, message):
    with pytest.raises(BrainLDMError, match=message):
        designs.parse_range(text, "years")


def test_quantiles_of_known_rows():
    rows = pd.DataFrame({"age_years": [*range(40, 91), None], "brain_volume_ml": None})
    assert designs.quantile(rows, "age_years", 10) == 45 and designs.quantile(rows, "age_years", 50) == 65
    assert designs.quantile(rows, "age_years", 0) == 40 and designs.quantile(rows, "age_years", 100) == 90
    with pytest.raises(BrainLDMError, match="brain_volume_ml: the training cohort has no values"):
        designs.quantile(rows, "brain_volume_ml", 50)
    assert designs.resolve((End(10, True), End(60)), "age_years", lambda *of: designs.quantile(rows, *of)) == (45, 60)
    with pytest.raises(BrainLDMError, match="age_years q10:44: is 45 to 44 years, the larger end first"):
        designs.resolve((End(10, True), End(44)), "age_years", lambda *of: designs.quantile(rows, *of))


def test_ranges_are_drawn_evenly_and_by_seed_and_id_alone():
    asked = {
        "sex": "both",
        "age_years": designs.parse_range("44:82", "years"),
        "ventricular_volume_ml": designs.parse_range("45ml", "ml"),
    }
    ids = list(range(1, 2001))
    table, words = designs.fill(pd.DataFrame(index=ids), asked, ids, 7, never)
    ages = np.sort(table["age_years"])
    assert 44 <= ages[0] and ages[-1] <= 82
    assert np.abs((ages - 44) / 38 - (np.arange(2000) + 0.5) / 2000).max() < 0.035  # Kolmogorov: 1.5 / sqrt(n)
    assert (table["ventricular_volume_ml"] == 45).all() and table["sex"].tolist() == ["F", "M"] * 1000
    assert words == ["sex F and M in turn", "age 44 to 82 years, drawn evenly", "ventricular volume 45 ml"]
    few, _ = designs.fill(pd.DataFrame(index=range(5)), asked, ids[:5], 7, never)
    pd.testing.assert_frame_equal(few, table.head(5))
    later, _ = designs.fill(pd.DataFrame(index=range(3)), asked, [5, 4, 2000], 7, never)
    assert later.equals(table.iloc[[4, 3, 1999]].reset_index(drop=True))
    other, _ = designs.fill(pd.DataFrame(index=range(5)), asked, ids[:5], 8, never)
    assert not np.isclose(other["age_years"], few["age_years"]).any()
    both = {"age_years": asked["age_years"], "brain_volume_ml": designs.parse_range("1000:1400", "ml")}
    pair, _ = designs.fill(pd.DataFrame(index=ids), both, ids, 7, never)
    assert pair["age_years"].tolist() == table["age_years"].tolist()  # whatever else is asked for
    assert abs(np.corrcoef(pair["age_years"], pair["brain_volume_ml"])[0, 1]) < 0.07


def test_what_is_asked_for_goes_before_a_tables_own_values():
    table = pd.DataFrame({"sex": ["F", "M"], "age_years": [50.0, 60.0]}, index=[4, 9])
    asked = {"age_years": (End(50, True), End(50, True))}
    filled, words = designs.fill(table, asked, [1, 2], 0, lambda column, per_cent: 61.5)
    assert filled["age_years"].tolist() == [61.5, 61.5] and filled["sex"].tolist() == ["F", "M"]
    assert words == ["age 61.5 years (q50)"]
    assert table["age_years"].tolist() == [50.0, 60.0]


def test_quantiles_are_of_a_runs_training_rows_else_of_the_population(tmp_path):
    pipeline = Pipeline(None, None, None, RANGES, 1.0, {}, {})
    run = blob_run(tmp_path / "runs", seed=3)
    rows, whose = designs.training_rows(pipeline, run.folder)
    assert rows.equals(load_cohort(run.stage("cohort")).rows("train")) and len(rows) == 6
    assert whose == "the 6 training rows of cohort atlas"
    people, said = designs.training_rows(pipeline, None)
    assert len(people) == designs.PEOPLE and "291 people of the IXI data set" in said
    for column in designs.UNITS:
        low, high = RANGES[column]
        assert low <= designs.quantile(people, column, 0) < designs.quantile(people, column, 100) <= high
    shutil.rmtree(run.stage("cohort"))  # weights that were copied elsewhere
    assert designs.training_rows(pipeline, run.folder)[1] == said
    assert json.loads((run.folder / "run.json").read_text())["seed"] == 3
