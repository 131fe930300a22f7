"""``brainldm sample``: designs on disk, the same volumes from the same ids, labels that fit, and quick starts."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import nibabel as nib
import pandas as pd
import pytest
from test_training import trained_run

from brainldm_core import cli, sampling
from brainldm_core.covariates import COLUMNS
from brainldm_core.dataset import load_cohort
from brainldm_core.samples import volume_name

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def draw(run, tmp_path, capsys):
    def draw(name, *words):
        options = ("--weights", run.folder, "--steps", 2, "--out", tmp_path / name)
        code = cli.main([str(word) for word in ("sample", *words, *options)])
        out, err = capsys.readouterr()
        assert code == 0, err
        table = pd.read_csv(tmp_path / name / "participants.tsv", sep="\t", na_values="n/a", keep_default_na=False)
        return tmp_path / name, table, out, err

    return draw


def volumes(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*_T1w.nii.gz")}


def test_ranges_go_on_as_a_series_and_a_table_gives_its_volumes_again(draw, tmp_path):
    asked = ("--age", "50:70", "--sex", "both", "--brain", "1100ml", "--seed", 5)
    whole, table, out, _ = draw("whole", *asked, "--n", 7)
    assert table["participant_id"].tolist() == [f"sub-{index:06d}" for index in range(1, 8)]
    assert table["age_years"].between(50, 70).all() and table["sex"].tolist() == list("FMFMFMF")
    assert table["ventricular_volume_ml"].isna().all() and (table["brain_volume_ml"] == 1100).all()
    assert "Requests: sex F and M in turn; age 50 to 70 years, drawn evenly; brain volume 1100 ml." in out
    assert "7 brains; look at" in out and "The first volume was drawn and written" in out and "all 7, measured" in out
    few, rows, *_ = draw("few", *asked, "--n", 3)
    assert volumes(few).items() < volumes(whole).items() and rows.equals(table.head(3))
    rest, rows, *_ = draw("rest", *asked, "--n", 4, "--first-id", 4)
    assert volumes(few) | volumes(rest) == volumes(whole)
    table.iloc[[5, 1]].to_csv(tmp_path / "again.tsv", sep="\t", index=False, na_rep="n/a")
    again, rows, out, _ = draw("again", "--cohort", tmp_path / "again.tsv", "--seed", 5)
    assert rows["participant_id"].tolist() == ["sub-000006", "sub-000002"]
    assert volumes(again).items() < volumes(whole).items()
    assert "columns that are not used: measured_" in out
    other, *_ = draw("other", *asked[:-1], 6, "--n", 1)
    assert volumes(other)["sub-000001_T1w.nii.gz"] != volumes(whole)["sub-000001_T1w.nii.gz"]


def test_what_was_asked_for_and_how_is_on_disk(draw):
    folder, table, out, err = draw(
        "how", "--age", "q0:q100", "--ventricles", "q50", "--n", 2, "--sampler", "unipc", "--seed", 9,
        "--guidance", 1.5,
    )  # fmt: skip
    sidecar = json.loads((folder / volume_name(2).replace(".nii.gz", ".json")).read_text())
    asked = {key: sidecar[key] for key in ("Sampler", "Steps", "Seed", "GuidanceScale", "SampleID")}
    assert asked == {"Sampler": "unipc", "Steps": 2, "Seed": 9, "GuidanceScale": 1.5, "SampleID": 2}
    assert sidecar["RequestedCovariates"]["age_years"] == table["age_years"][1]
    said = json.loads((folder / "dataset_description.json").read_text())["BrainLDM"]["Requests"]
    assert "(q50)" in said and "quantiles are those of the 6 training rows of cohort atlas" in said and said in out
    assert "extrapolating" not in err


def test_quantiles_are_those_of_the_training_cohort(draw, run):
    _, table, *_ = draw("quantiles", "--age", "q0:q100", "--ventricles", "q50", "--n", 5)
    rows = load_cohort(run.stage("cohort")).rows("train")
    assert table["ventricular_volume_ml"].tolist() == [round(rows["ventricular_volume_ml"].median(), 3)] * 5
    assert table["age_years"].between(rows["age_years"].min() - 1e-3, rows["age_years"].max() + 1e-3).all()


def test_rows_of_people_stay_together_and_what_is_given_singly_goes_before(draw, run):
    people = run.stage("cohort") / "participants.tsv"
    whole, table, out, _ = draw("like", "--like", people, "--n", 6, "--seed", 2)
    known = load_cohort(run.stage("cohort")).table[list(COLUMNS)]
    assert len(table.merge(known, on=list(COLUMNS))) == 6 and "whole rows of the 12 in participants.tsv" in out
    few, rows, *_ = draw("few", "--like", people, "--n", 2, "--first-id", 3, "--seed", 2)
    assert (
        volumes(few).items() < volumes(whole).items() and rows["age_years"].tolist() == table["age_years"][2:4].tolist()
    )
    _, rows, *_ = draw("women", "--like", people, "--sex", "F", "--n", 6, "--seed", 2)
    assert (rows["sex"] == "F").all() and rows["age_years"].equals(table["age_years"])


def test_a_design_is_drawn_row_by_row(draw, tmp_path):
    design = tmp_path / "design.tsv"
    design.write_text("age_years\tsex\n50\tF\nn/a\tM\n60\t\n")
    _, table, *_ = draw("all", "--cohort", design)
    assert table["age_years"].tolist()[::2] == [50, 60] and table["sex"].isna().tolist() == [False, False, True]
    _, part, *_ = draw("part", "--cohort", design, "--n", 1, "--first-id", 2, "--age", 55)
    assert part["participant_id"].tolist() == ["sub-000002"] and part["age_years"].tolist() == [55]


def test_out_of_range_requests_warn_once_and_are_drawn(draw, run):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        _, table, _, err = draw("far", "--age", "30:99", "--ventricles=-5ml", "--n", 6)
    assert err.count("outside the training range") == 2 and err.count("extrapolating") == 2
    assert "ventricular_volume_ml -5 is outside" in err and len(table) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--age", "82:44"], "the larger end comes first"),
        (["--age", "q200"], "not a quantile"),
        (["--seed", "-1"], "--seed -1: give a whole number from 0"),
        (["--first-id", "0"], "--first-id 0: give a whole number from 1"),
        (["--guidance", "nan"], "--guidance nan: give a number from 0"),
        (["--cohort", "nowhere.tsv"], "nowhere.tsv: cannot be read"),
        (["--like", "nowhere.tsv"], "nowhere.tsv: cannot be read"),
        (["--cohort", "design.tsv", "--n", "3"], "design.tsv: has 2 rows, and 1 to 3 are asked for"),
        (["--cohort", "design.tsv", "--first-id", "3"], "design.tsv: has 2 rows, and 3 to 2 are asked for"),
        (["--cohort", "named.tsv", "--first-id", "2"], "--first-id: named.tsv has ids of its own"),
    ],
)
def test_impossible_requests_are_one_line_before_weights_are_loaded(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("design.tsv").write_text("age_years\n50\n60\n")
    Path("named.tsv").write_text("participant_id\tage_years\nsub-000004\t50\n")
    monkeypatch.setattr(sampling, "load_pipeline", lambda *_, **__: pytest.fail("weights were loaded"))
    assert cli.main(["sample", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.startswith("brainldm: ") and err.count("\n") == 1
    assert not Path("brains").exists()


def test_tables_of_both_kinds_at_once_are_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["sample", "--cohort", "a.tsv", "--like", "b.tsv"])
    assert stopped.value.code == 2 and "not allowed with" in capsys.readouterr().err


def test_an_interrupt_while_drawing_leaves_nothing(run, tmp_path, monkeypatch, capsys):
    real, calls = sampling.sample, []

    def sample(*given, **more):
        calls.append(given)
        if len(calls) == 2:
            assert list(tmp_path.rglob("*_T1w.nii.gz")), "the first batch is on disk before the second is drawn"
            raise KeyboardInterrupt
        return real(*given, **more)

    monkeypatch.setattr(sampling, "sample", sample)
    size = run.profile.sampling.batch_size
    words = ["sample", "--n", size + 1, "--steps", 1, "--weights", run.folder, "--out", tmp_path / "brains"]
    assert cli.main([str(word) for word in words]) == 130
    assert len(calls) == 2 and not list(tmp_path.iterdir())


def test_help_and_a_draw_with_ddim_go_without_diffusers(run, tmp_path):
    code = "import sys\nfrom brainldm_core.cli import main\nsys.argv[1:] = {}\ntry: main()\nexcept SystemExit: pass\n"
    code += "found = {{name.split('.')[0] for name in sys.modules}}\nassert not found & {{{}}}, found & {{{}}}"
    help_only = "'torch', 'pandas', 'numpy', 'monai', 'diffusers'"
    words = ["sample", "--steps", "1", "--n", "1", "--weights", str(run.folder), "--out", str(tmp_path / "one")]
    drawing = "'diffusers', 'jsonschema', 'tensorboard', 'torchvision'"
    for given, banned in ((["sample", "--help"], help_only), (words, drawing)):
        done = subprocess.run(
            [sys.executable, "-c", code.format(given, banned, banned)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert "what to ask for:" not in done.stdout and "start and imports" in done.stdout
    assert nib.load(tmp_path / "one" / volume_name(1)).shape == run.profile.grid.shape
