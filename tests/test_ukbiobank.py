"""Exports of UK Biobank's fields become a table of participants."""

from __future__ import annotations

import re

import numpy as np
import pytest

from brainldm_core import cli, manifests, ukbiobank
from brainldm_core.covariates import check_table, read_table
from brainldm_core.errors import BrainLDMError

FIELDS = "eid,31-0.0,21003-0.0,21003-2.0,25004-2.0,25009-2.0"
ROWS = "\n1000001,0,50,63,35000,1500000\n1000002,1,44,50.5,,NA\n\n1000003,1,60,,,\n"


@pytest.mark.parametrize(
    "text",
    [
        FIELDS + ROWS,
        re.sub(r"(\d+)-(\d)\.(\d)", r"f.\1.\2.\3", FIELDS).replace("eid", "f.eid").replace(",", "\t")
        + ROWS.replace(",", "\t"),
        "eid,p31,p21003_i0,p21003_i2,p25004_i2,p25009_i2"
        + ROWS.replace(",0,50", ",Female,50").replace(",1,", ",Male,"),
        '"participant.eid","participant.p31","participant.p21003_i2","participant.p25009_i2","participant.p25004_i2"'
        + '\r\n"1000001","0","63","1500000","35000"\r\n"1000002","1","50.5","",""\r\n"1000003","1","","",""\r\n',
    ],
)
def test_fields_of_uk_biobank_become_a_table(text, tmp_path):
    (tmp_path / "fields.csv").write_bytes(text.encode("utf-8-sig"))
    out = tmp_path / "participants.tsv"
    assert ukbiobank.write_participants(tmp_path / "fields.csv", out) == (2, 1)
    assert set(read_table(out).columns) == {"participant_id", "31-0.0", "21003-2.0", "25004-2.0", "25009-2.0"}
    table = check_table(manifests.map_columns(read_table(out), out, manifests.load_manifest("ukbiobank")), out)
    assert table["participant_id"].tolist() == ["sub-1000001", "sub-1000002"]
    assert table["sex"].tolist() == ["F", "M"] and table["age_years"].tolist() == [63, 50.5]
    assert table.loc[0, ["ventricular_volume_ml", "brain_volume_ml"]].tolist() == [35, 1500]
    assert np.isnan(table.loc[1, ["ventricular_volume_ml", "brain_volume_ml"]].astype(float)).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: has no column eid"),
        (FIELDS.replace("25004-2.0", "25004-3.0") + ROWS, "line 1: has no column 25004-2.0; export it once"),
        (FIELDS.replace("21003-0.0", "p21003_i2") + ROWS, "line 1: has two columns 21003-2.0"),
        (FIELDS + ROWS + "1000001,0,50,63,35000,1500000", "line 6: eid 1000001 is already on line 2"),
        (FIELDS + ROWS + "abc,0,50,63,35000,1500000", "line 6: eid 'abc' is not a number"),
        (FIELDS + ROWS + "1000004,0,50", "line 6: has 3 cells, the header 6"),
        (FIELDS + ROWS + "1000004,0,50,sixty,35000,1500000", "line 6: age_years 'sixty' is not a number"),
        (FIELDS + ROWS + "1000004,7,50,60,35000,1500000", "line 6: sex '7' is unknown"),
        (FIELDS + ROWS + "1000004,0,50,60,35,1500000", "line 6: ventricular_volume_ml 0.035 is impossible"),
        (FIELDS + "\n1000003,1,60,,,\n", "has nobody with an age at the imaging visit"),
        (FIELDS + '\n1000003,"1', "cannot be read as a table"),
    ],
)
def test_wrong_fields_name_file_and_line(text, message, tmp_path):
    path = tmp_path / "fields.csv"
    path.write_text(text)
    with pytest.raises(BrainLDMError, match=re.escape(message)) as caught:
        ukbiobank.write_participants(path, tmp_path / "participants.tsv")
    assert str(path) in str(caught.value) and not (tmp_path / "participants.tsv").exists()


def test_table_command_overwrites_nothing(tmp_path, capsys):
    (tmp_path / "fields.csv").write_text(FIELDS + ROWS)
    out = ["--out", str(tmp_path / "participants.tsv")]
    words = ["data", "table", "ukbiobank", str(tmp_path / "fields.csv"), *out]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.endswith("2 people; 1 without an age at the imaging visit were left out\n")
    assert cli.main(words) == 2 and "exists already" in capsys.readouterr().err
    (tmp_path / "participants.tsv").unlink()
    assert cli.main([*words[:3], str(tmp_path / "nothing.csv"), *out]) == 2
    assert "nothing.csv: cannot be read as a table" in capsys.readouterr().err
