"""Covariates: units, encoding, strict tables, and the population they are drawn from."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd
import pytest

from brainldm_core import covariates as cov
from brainldm_core.errors import BrainLDMError

HEADER = "participant_id\tsession_id\tage_years\tsex\tventricular_volume_ml\tbrain_volume_ml\tintracranial_volume_ml\n"


@pytest.mark.parametrize("text", ["45", "45ml", " 45 ml ", "45000mm3", "0.045l", "45 cm³", "4.5e1"])
def test_volumes_are_parsed(text):
    assert cov.parse_quantity(text, "ml") == pytest.approx(45.0)


@pytest.mark.parametrize(("text", "value"), [("70", 70), ("70y", 70), ("70.5 years", 70.5), ("-3", -3)])
def test_ages_are_parsed(text, value):
    assert cov.parse_quantity(text, "years") == value


@pytest.mark.parametrize("text", ["", "ml", "45kg", "45 years", "nan", "inf", "1e999", "4 5", "45mlx"])
def test_wrong_quantities_are_refused(text):
    with pytest.raises(BrainLDMError, match="quantity in ml"):
        cov.parse_quantity(text, "ml")


def test_encoding_is_min_max_and_never_clamps():
    table = pd.DataFrame(
        {"age_years": [44, 82], "sex": ["F", "M"], "ventricular_volume_ml": [10, 50], "brain_volume_ml": [1100, 1300]}
    )
    ranges = cov.fit_ranges(table)
    values, present = cov.encode(table, ranges)
    assert values.dtype == present.dtype == np.float32
    np.testing.assert_array_equal(values, [[0, 0, 0, 0], [1, 1, 1, 1]])
    assert present.all()
    outside = pd.DataFrame({"ventricular_volume_ml": [-10.0, 90.0]})
    values, present = cov.encode(outside, ranges)
    np.testing.assert_allclose(values[:, 2], [-0.5, 2.0])
    np.testing.assert_array_equal(present, [[0, 0, 1, 0]] * 2)
    with pytest.warns(UserWarning, match="ventricular_volume_ml -10 to 90 is outside the training range 10 to 50"):
        assert len(cov.warn_outside(outside, ranges)) == 1


@pytest.mark.parametrize("gap", [None, math.nan, "n/a"])
def test_missing_values_have_no_presence(gap):
    ranges = {"sex": (0, 1), "age_years": (40, 80), "ventricular_volume_ml": (5, 50), "brain_volume_ml": (900, 1300)}
    table = pd.DataFrame([{"sex": gap, "age_years": gap, "ventricular_volume_ml": 20, "brain_volume_ml": 1000}])
    values, present = cov.encode(table, ranges)
    np.testing.assert_array_equal(present, [[0, 0, 1, 1]])
    np.testing.assert_array_equal(values[0, :2], [0, 0])


def test_constant_or_absent_columns_have_a_range():
    ranges = cov.fit_ranges(pd.DataFrame({"age_years": [50.0, 50.0], "sex": ["F", "F"]}))
    assert ranges["age_years"] == (50.0, 51.0)
    assert ranges["brain_volume_ml"] == (0.0, 1.0)


def test_a_good_table_is_typed(tmp_path):
    path = tmp_path / "participants.tsv"
    path.write_text(HEADER + "sub-1\tses-01\t20\tF\t5.8\t1149\t1211\nsub-1\tses-02\tn/a\tn/a\tn/a\tn/a\tn/a\n")
    table = cov.read_participants(path)
    assert table.loc[0, "age_years"] == 20.0
    assert math.isnan(table.loc[1, "brain_volume_ml"])
    assert table.loc[1, "sex"] == "n/a"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("sub-1\tses-1\t20\tF\t5\t1149\t1211\nsub-1\tses-1\t21\tF\t5\t1149\t1211\n", "already on line 2; keep one"),
        ("\tses-1\t20\tF\t5\t1149\t1211\n", "participant_id '' is missing"),
        ("sub-1\t\t20\tF\t5\t1149\t1211\n", "session_id '' is missing"),
        ("../x\tses-1\t20\tF\t5\t1149\t1211\n", "participant_id '../x' is missing or malformed"),
        ("sub-1\tses-1\t\tF\t5\t1149\t1211\n", "age_years is missing; write a number"),
        ("sub-1\tses-1\told\tF\t5\t1149\t1211\n", "age_years 'old' is not a number"),
        ("sub-1\tses-1\t-1\tF\t5\t1149\t1211\n", "age_years -1 is impossible"),
        ("sub-1\tses-1\t121\tF\t5\t1149\t1211\n", "age_years 121 is impossible"),
        ("sub-1\tses-1\tnan\tF\t5\t1149\t1211\n", "age_years nan is impossible"),
        ("sub-1\tses-1\t20\tX\t5\t1149\t1211\n", "sex 'X' is unknown; write F or M"),
        ("sub-1\tses-1\t20\tF\t0\t1149\t1211\n", "ventricular_volume_ml 0 is impossible"),
        ("sub-1\tses-1\t20\tF\t401\t1149\t1211\n", "ventricular_volume_ml 401 is impossible"),
        ("sub-1\tses-1\t20\tF\t5\t2501\t1211\n", "brain_volume_ml 2501 is impossible"),
        ("sub-1\tses-1\t20\tF\t5\tinf\t1211\n", "brain_volume_ml inf is impossible"),
        ("sub-1\tses-1\t20\tF\t5\t1149\t-3\n", "intracranial_volume_ml -3 is impossible"),
        ("sub-1\tses-1\t20\tF\t5\n", "line 2: has 5 cells"),
        ("", "has no rows"),
    ],
)
def test_bad_tables_are_refused_in_one_line(tmp_path, rows, message):
    path = tmp_path / "participants.tsv"
    path.write_text(HEADER + rows)
    with pytest.raises(BrainLDMError, match=re.escape(message)) as caught:
        cov.read_participants(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_covariates_are_refused_where_there_are_no_mask_channels(tmp_path):
    path = tmp_path / "participants.tsv"
    path.write_text(HEADER + "sub-1\tn/a\t20\tF\tn/a\t1149\t1211\n")
    cov.read_participants(path)
    with pytest.raises(BrainLDMError, match="ventricular_volume_ml is missing; this profile has no mask channels"):
        cov.read_participants(path, allow_missing=False)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00bad", b"participant_id\tage\n"])
def test_files_that_are_no_tables_are_refused(tmp_path, content):
    path = tmp_path / "participants.tsv"
    path.write_bytes(content)
    with pytest.raises(BrainLDMError, match=r"participants\.tsv"):
        cov.read_participants(path)
    with pytest.raises(BrainLDMError, match="cannot be read"):
        cov.read_participants(tmp_path / "absent.tsv")


def _statistics(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients (3, 3), residual SDs (3,) and residual correlations (3, 3) on [1, age, male]."""
    design = np.stack([np.ones(len(table)), table["age_years"], table["sex"] == "M"], axis=1).astype(float)
    outcomes = np.stack(
        [
            np.log(table["ventricular_volume_ml"]),
            table["brain_volume_ml"] / cov.REFERENCE_ICV_ML,
            table["intracranial_volume_ml"],
        ],
        axis=1,
    ).astype(float)
    beta, *_ = np.linalg.lstsq(design, outcomes, rcond=None)
    residual = outcomes - design @ beta
    return beta, residual.std(axis=0, ddof=3), np.corrcoef(residual.T)


def test_draws_are_reproducible_and_plausible():
    table = cov.draw_covariates(500, np.random.default_rng(3))
    pd.testing.assert_frame_equal(table, cov.draw_covariates(500, np.random.default_rng(3)))
    assert table["age_years"].between(44, 82).all()
    for column, (low, high) in cov.LIMITS.items():
        assert table[column].between(low, high).all()
    raw = table["brain_volume_ml"] / cov.REFERENCE_ICV_ML
    assert raw.between(0.75, 0.95).all()


def test_draws_have_the_joint_statistics_of_real_people(shared_data):
    path = shared_data / "ixi_covariates_291.csv"
    if not path.exists():
        pytest.skip("no covariates of real people here")
    people = pd.read_csv(path)
    real = pd.DataFrame(
        {
            "age_years": people["Age"],
            "sex": people["Sex"],
            "ventricular_volume_ml": people[["InfLatR", "InfLatL", "LatR", "LatL"]].sum(axis=1) / 1000,
            "brain_volume_ml": people["TotalBrain"] / people["ICV"] * cov.REFERENCE_ICV_ML,
            "intracranial_volume_ml": people["ICV"] / 1000,
        }
    )
    drawn = cov.draw_covariates(2000, np.random.default_rng(0))
    (beta_real, sd_real, corr_real), (beta, sd, corr) = _statistics(real), _statistics(drawn)
    # Four standard errors of a slope: age has an SD of 9.5 years, the share of men one of 0.47.
    for outcome in range(3):
        error = sd_real[outcome] / math.sqrt(2000)
        assert abs(beta[1, outcome] - beta_real[1, outcome]) < 4 * error / 9.5
        assert abs(beta[2, outcome] - beta_real[2, outcome]) < 4 * error / 0.47
    np.testing.assert_allclose(sd, sd_real, rtol=0.05)
    np.testing.assert_allclose(corr, corr_real, atol=0.07)
    assert abs(drawn["age_years"].std() - real["age_years"].std()) < 1.5
    assert abs(drawn["age_years"].mean() - real["age_years"].mean()) < 3
    heads = [table["intracranial_volume_ml"] for table in (real, drawn)]
    brains = [table["brain_volume_ml"] * head for table, head in zip((real, drawn), heads, strict=True)]
    with_head = [np.corrcoef(brain, head)[0, 1] for brain, head in zip(brains, heads, strict=True)]
    assert with_head[1] == pytest.approx(with_head[0], abs=0.02)
    for column in ("ventricular_volume_ml", "brain_volume_ml"):
        want = np.corrcoef(real["age_years"], real[column])[0, 1]
        assert np.corrcoef(drawn["age_years"], drawn[column])[0, 1] == pytest.approx(want, abs=0.08)
