"""Tables of requests: what a reader would write, what he would get wrong, and rows that stay rows."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from brainldm_core import design_tables
from brainldm_core.covariates import COLUMNS
from brainldm_core.errors import BrainLDMError
from brainldm_core.release import draw_requests

DESIGN = "sex\tage_years\tventricular_volume_ml\nF\t50\t15\nM\tn/a\t\nF\t70.5\t45\n"


def write(folder, text, name="design.tsv", encoding="utf-8"):
    (folder / name).write_text(text, encoding=encoding)
    return folder / name


def test_a_design_has_rows_with_gaps(tmp_path):
    table, ids, unused = design_tables.read_design(write(tmp_path, DESIGN))
    assert list(table) == list(COLUMNS) and ids is None and unused == []
    assert table["age_years"].tolist()[::2] == [50.0, 70.5] and table.isna().sum().tolist() == [0, 1, 1, 3]
    assert table["sex"].tolist() == ["F", "M", "F"]


def test_a_table_of_volumes_gives_their_ids_and_names_what_it_does_not_use(tmp_path):
    text = "participant_id\tage_years\tsex\tgroup\tmeasured_brain_ml\nsub-000012\t50\tF\ta\t1\nsub-3\t60\tM\tb\t2\n"
    table, ids, unused = design_tables.read_design(write(tmp_path, text))
    assert ids == [12, 3] and unused == ["group", "measured_brain_ml"] and table["age_years"].tolist() == [50, 60]
    table, ids, unused = design_tables.read_design(write(tmp_path, text.replace("sub-3", "sub-IXI3")))
    assert ids is None and unused[0] == "participant_id"
    assert design_tables.read_design(write(tmp_path, text.replace("sub-3", "sub-1234567")))[1] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age\tsex\n50\tF\n", "column 'age' is not known; if it is age_years, in years, rename it so"),
        ("ventricular_volume_mm3\n45000\n", "if it is ventricular_volume_ml, in ml, rename it so"),
        ("age_years\tGender\n50\tF\n", "column 'Gender' is not known; if it is sex, F or M"),
        ("group\tsite\na\tb\n", "asks for nothing; give one or more of the columns sex, age_years"),
        ("age_years,sex\n50,F\n", "its header has no tabs"),
        ("age_years\tage_years\n50\t60\n", "a column name appears twice"),
        ("participant_id\tage_years\nsub-01\t50\nsub-1\t60\n", "line 3: sub-1 is already on line 2"),
        ("age_years\nNaN\n", "line 2: age_years NaN is impossible"),
        ("age_years\nold\n", "line 2: age_years 'old' is not a number"),
        ("age_years\n-4\n", "line 2: age_years -4 is impossible"),
        ("age_years\tventricular_volume_ml\n50\t45000\n", "line 2: ventricular_volume_ml 45000 is impossible"),
        ("age_years\tsex\n50\tfemale\n", "line 2: sex 'female' is unknown"),
        ("age_years\tsex\n50\n", "line 2: has 1 cells and the header 2"),
        ("age_years\n", "has no rows"),
        ("", "has no rows"),
    ],
)
def test_wrong_designs_are_refused_in_one_line(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(BrainLDMError, match=re.escape(message)) as caught:
        design_tables.read_design(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [design_tables.read_design, design_tables.read_people])
def test_files_that_are_no_tables_or_in_other_units_are_refused(tmp_path, read):
    with pytest.raises(BrainLDMError, match="is not UTF-8 text"):
        read(write(tmp_path, "participant_id\tsex\tage_years\nsub-1\tF\t50\n", encoding="utf-16"))
    with pytest.raises(BrainLDMError, match="cannot be read"):
        read(tmp_path / "nowhere.tsv")
    people = write(tmp_path, "participant_id\tsex\tage_years\tbrain_volume_ml\nsub-1\tF\t50\t1100\n")
    sidecar = people.with_suffix(".json")
    for unit in ("ml", "mL", "cm3"):
        sidecar.write_text(json.dumps({"brain_volume_ml": {"Units": unit}, "age_years": {"Units": "year"}}))
        assert read(people) is not None
    for unit in ("mm3", "voxels"):
        sidecar.write_text(json.dumps({"brain_volume_ml": {"Units": unit}}))
        with pytest.raises(BrainLDMError, match=f"says that brain_volume_ml is in {unit}; convert"):
            read(people)
    sidecar.write_text("{")
    with pytest.raises(BrainLDMError, match="damaged JSON"):
        read(people)


def test_people_of_ours_of_bids_and_of_uk_biobank(tmp_path):
    ours = "participant_id\tage_years\tsex\tventricular_volume_ml\tbrain_volume_ml\nsub-1\t91\tF\t20\t1100\n"
    assert design_tables.read_people(write(tmp_path, ours)).iloc[0].tolist() == ["F", 91.0, 20.0, 1100.0]
    bids = "participant_id\tage\tsex\nsub-1\t600\tfemale\n"
    path = write(tmp_path, bids)
    path.with_suffix(".json").write_text(json.dumps({"age": {"Units": "months"}}))
    assert design_tables.read_people(path).iloc[0].tolist()[:2] == ["F", 50.0]
    fields = "participant_id\t21003-2.0\t31-0.0\t25004-2.0\t25009-2.0\nsub-1000001\t63\t1\t31250\t1480000\n"
    found = design_tables.read_people(write(tmp_path, fields, "participants.tsv"))
    assert found.iloc[0].tolist() == ["M", 63.0, 31.25, 1480.0]  # cubic mm became ml
    with pytest.raises(BrainLDMError, match=r"\(sub-1, n/a\) is already on line 2"):
        design_tables.read_people(write(tmp_path, ours + ours.splitlines()[1] + "\n"))


def test_rows_drawn_from_people_are_their_rows(tmp_path):
    rng = np.random.default_rng(0)
    text = "participant_id\tage_years\tsex\tventricular_volume_ml\tbrain_volume_ml\n"
    for index in range(40):
        age = 45 + index
        text += f"sub-{index}\t{age}\t{'FM'[index % 2]}\t{age - 30 + rng.normal():.2f}\t{1500 - 5 * age:.1f}\n"
    people = design_tables.read_people(write(tmp_path, text))
    drawn = draw_requests(people, 500, 3)
    whole = {tuple(row) for row in people.itertuples(index=False)}
    assert {tuple(row) for row in drawn.itertuples(index=False)} <= whole
    assert drawn["age_years"].corr(drawn["ventricular_volume_ml"]) > 0.99
    pd.testing.assert_frame_equal(draw_requests(people, 60, 3), drawn.head(60))
