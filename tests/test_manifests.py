"""Manifests: schema, terms of use, and tables of data sets turned into our covariates."""

from __future__ import annotations

import json
import re

import jsonschema
import numpy as np
import pandas as pd
import pytest
import yaml

from brainldm_core import covariates as cov
from brainldm_core import manifests
from brainldm_core.errors import BrainLDMError

OASIS = "participant_id\tsession_id\tage\tsex\tbrain_mask_ml\tbrain_ml\tlateral_ventricles_ml\n"


def read(path, text, manifest=None, strict=True):
    path.write_text(text)
    table = manifests.map_columns(cov.read_table(path), path, manifest)
    return cov.check_table(table, path, allow_missing=not strict)


def test_every_manifest_follows_the_schema_that_lies_beside_it():
    schema = json.loads((manifests.FOLDER / "schema.json").read_text())
    assert schema == json.loads(json.dumps(manifests.json_schema()))
    cohorts = {"anatomies", "atlas", "heads", "ixi", "oasis", "ukbiobank"}
    others = {"brain-ldm-bundle", "ldm-100k", "lpips", "medicalnet", "neurite-oasis", "sfcn", "synthseg-labels"}
    assert set(manifests.manifest_names()) == cohorts | others
    for name in manifests.manifest_names():
        jsonschema.validate(yaml.safe_load((manifests.FOLDER / f"{name}.yaml").read_text()), schema)
        manifest = manifests.load_manifest(name)
        assert set(cov.COLUMNS) <= set(manifest.columns) or (name in others and not manifest.columns)
        assert (manifest.kind in manifests.COHORTS) == (name in cohorts)
        assert manifest.files or manifest.obtain or manifest.kind == "simulated"


def test_only_what_may_be_shown_is_publishable():
    assert manifests.publishable("atlas")[0] and manifests.publishable("anatomies")[0]
    assert not manifests.publishable("heads")[0], "they have faces"
    for name, word in {
        "oasis": "non-commercial",
        "OASIS": "non-commercial",
        "ukbiobank": "restricted",
        "ixi": "faces",
        "my_patients": "no manifest",
        "sfcn": "no manifest",  # a folder that happens to have the name of weights
        "SFCN": "no manifest",
    }.items():
        allowed, reason = manifests.publishable(name)
        assert not allowed
        assert word in reason


def test_unknown_and_broken_manifests_are_refused(tmp_path, monkeypatch):
    with pytest.raises(BrainLDMError, match="'nobody' has no manifest; choose one of anatomies, atlas"):
        manifests.load_manifest("nobody")
    good = (manifests.FOLDER / "oasis.yaml").read_text()
    monkeypatch.setattr(manifests, "FOLDER", tmp_path)
    for text, message in [
        (good.replace("access: open", "access: perhaps"), "access: Input should be"),
        (good.replace("licence:", "license:"), "license: Extra inputs"),
        (good.replace("  sex:", "  gender:"), "column 'gender' is unknown"),
        ("{", "is not YAML"),
    ]:
        (tmp_path / "oasis.yaml").write_text(text)
        with pytest.raises(BrainLDMError, match=re.escape(message)) as caught:
            manifests.load_manifest("oasis")
        assert "\n" not in str(caught.value)


def test_oasis_volumes_are_normalised_for_head_size(tmp_path):
    text = OASIS + "sub-1\tses-01\t20\tF\t1211\t1149\t5.8\nsub-2\tses-01\tn/a\tM\tn/a\t1149\t5.8\n"
    table = read(tmp_path / "participants.tsv", text, manifests.load_manifest("oasis"), strict=False)
    assert table.loc[0, "brain_volume_ml"] == pytest.approx(1149 / 1211 * 1369)
    assert table.loc[0, "ventricular_volume_ml"] == 5.8
    assert table.loc[0, "intracranial_volume_ml"] == 1211
    assert np.isnan(table.loc[1, "brain_volume_ml"])


def test_uk_biobank_codes_and_units(tmp_path):
    text = "participant_id\t31-0.0\t21003-2.0\t25004-2.0\t25009-2.0\n"
    text += "sub-1\t0\t63\t35000\t1500000\nsub-2\t1\t50\t9000\t1.4e6\n"
    table = read(tmp_path / "participants.tsv", text, manifests.load_manifest("ukbiobank"))
    assert table["sex"].tolist() == ["F", "M"]
    assert table["ventricular_volume_ml"].tolist() == [35.0, 9.0]
    assert table["brain_volume_ml"].tolist() == [1500.0, 1400.0]
    assert table["session_id"].tolist() == ["n/a", "n/a"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("sub-1\tses-01\told\tF\t1211\t1149\t5.8", "line 2: age_years 'old' is not a number"),
        ("sub-1\tses-01\t200\tF\t1211\t1149\t5.8", "age_years 200 is impossible"),
        ("sub-1\tses-01\t20\tmale\t1211\t1149\t5.8", "sex 'male' is unknown; write F or M"),
        ("sub-1\tses-01\t20\tF\t1211\t1349\t5.8", "brain 1349 ml in a head of 1211 ml (brain_mask_ml) is impossible"),
        ("sub-1\tses-01\t20\tF\t0\t1149\t5.8", "in a head of 0 ml"),
        ("sub-1\tses-01\t20\tF\t1211\tabc\t5.8", "brain_volume_ml 'abc' is not a number"),
        ("sub-1\tses-01\t20\tF\t1211\tnan\t5.8", "brain nan ml"),
        ("sub-1\tses-01\t20\tF\t1211\t1149\t5800", "ventricular_volume_ml 5800 is impossible"),
        ("sub-1\tses-01\t20\tF\t1211\t1149\t-5", "ventricular_volume_ml -5 is impossible"),
        ("sub-1\tses-01\t20\tF\t1211\t1149\t", "ventricular_volume_ml is missing"),
        ("sub-1\tses-01\t20\tF\t1211\t1149\tn/a", "this profile has no mask channels"),
    ],
)
def test_impossible_cells_are_refused(tmp_path, row, message):
    path = tmp_path / "participants.tsv"
    with pytest.raises(BrainLDMError, match=re.escape(message)) as caught:
        read(path, OASIS + row + "\n", manifests.load_manifest("oasis"))
    assert str(path) in str(caught.value)


def test_a_missing_column_is_named(tmp_path):
    with pytest.raises(BrainLDMError, match="has no column lateral_ventricles_ml, from which ventricular_volume_ml"):
        read(tmp_path / "t.tsv", "participant_id\tage\tsex\tbrain_mask_ml\tbrain_ml\n" + "sub-1\t20\tF\t1211\t1149\n",
             manifests.load_manifest("oasis"))  # fmt: skip
    with pytest.raises(BrainLDMError, match="has no column age, from which age_years"):
        read(tmp_path / "t.tsv", "participant_id\tsex\nsub-1\tF\n")


def test_bids_names_and_units_serve_without_a_manifest(tmp_path):
    text = "participant_id\tage\tsex\nsub-1\t600\tfemale\nsub-2\tn/a\tM\n"
    path = tmp_path / "participants.tsv"
    with pytest.raises(BrainLDMError, match="age_years 600 is impossible"):
        read(path, text, strict=False)
    (tmp_path / "participants.json").write_text('{"age": {"Units": "months"}}')
    table = read(path, text, strict=False)
    assert table.loc[0, "age_years"] == pytest.approx(50)
    assert table["sex"].tolist() == ["F", "M"]
    assert table["brain_volume_ml"].isna().all()
    (tmp_path / "participants.json").write_text('{"sex": {"Levels": {"1": "male", "2": "female"}}}')
    assert read(path, "participant_id\tage\tsex\nsub-1\t60\t2\n", strict=False)["sex"].tolist() == ["F"]
    for broken, message in [("[]", "not a BIDS description"), ("{", "not a BIDS"), ('{"age": {"Units": "ml"}}', "mls")]:
        (tmp_path / "participants.json").write_text(broken)
        with pytest.raises(BrainLDMError, match=message):
            read(path, text, strict=False)


def test_our_own_names_serve_without_a_manifest(tmp_path):
    text = "participant_id\tage_years\tsex\tventricular_volume_ml\tbrain_volume_ml\nsub-1\t60\tF\t20\t1100\n"
    table = read(tmp_path / "participants.tsv", text)
    assert table.loc[0, ["age_years", "ventricular_volume_ml", "brain_volume_ml"]].tolist() == [60, 20, 1100]


def test_real_tables_pass(shared_data, tmp_path):
    path = shared_data / "oasis" / "participants.tsv"
    table = cov.check_table(
        manifests.map_columns(cov.read_table(path), path, manifests.load_manifest("oasis")), path, allow_missing=False
    )
    assert len(table) == 10
    people = pd.read_csv(shared_data / "ixi_covariates_291.csv", dtype=str)
    people.insert(0, "participant_id", "sub-" + people["ID"].str.extract(r"^(IXI\d+)")[0])
    people.to_csv(tmp_path / "participants.tsv", sep="\t", index=False)
    path = tmp_path / "participants.tsv"
    table = cov.check_table(
        manifests.map_columns(cov.read_table(path), path, manifests.load_manifest("ixi")), path, allow_missing=False
    )
    assert table["brain_volume_ml"].mean() == pytest.approx(1185.4, abs=0.1)
    assert table["ventricular_volume_ml"].mean() == pytest.approx(22.13, abs=0.01)
