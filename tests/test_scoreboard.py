"""The scoreboard: numbers come from results files of this run, and what is not comparable says why."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from brainldm_core import scoreboard
from brainldm_core.errors import BrainLDMError
from brainldm_core.profiles import load_profile
from brainldm_core.records import Record, open_run, write_json
from brainldm_core.runner import finish_notebook
from brainldm_core.scoreboard import PAPER, build_scoreboard, read_scoreboard, scoreboard_markdown

TABLE_1 = {
    "lsgan": (0.0231, 0.9997, 0.9969),
    "vaegan": (0.1576, 0.9671, 0.8719),
    "ldm_1000": (0.0076, 0.6555, 0.3883),
    "ldm_ddim50": (0.0080, 0.6704, 0.3957),
    "real": (0.0005, 0.6536, 0.3909),
}
FID = {"value": 0.31, "n": 64, "low": 0.2, "high": 0.4, "floor": 0.05, "extractor": "offline-1", "note": "tiny"}


def begin(root, profile="smoke", cohort="atlas", **facts):
    run = open_run(profile, cohort, 0, root)
    write_json(run.stage("cohort") / "dataset_description.json", {"BrainLDM": facts})
    return run


def row(rows, name):
    return next(row for row in rows if row["name"] == name)


def test_the_papers_numbers_have_their_place_and_source():
    values = {(entry["notebook"], entry["result"]): entry["value"] for entry in PAPER}
    assert len(values) == len(PAPER) == 23
    for model, numbers in TABLE_1.items():
        for metric, value in zip(("fid", "ms_ssim", "four_g_r_ssim"), numbers, strict=True):
            assert values["08_evaluation", f"{metric}_{model}"] == value
    assert values["05_conditioning", "ventricles_r"] == 0.972 and values["05_conditioning", "brain_age_r"] == 0.692
    assert values["04_ddim_acceleration", "seconds_ldm_1000"] == 142.3
    assert values["04_ddim_acceleration", "seconds_ldm_ddim50"] == 7.6
    assert values["02_autoencoder", "parameters"] == 13_766_248
    assert values["03_latent_diffusion", "parameters"] == 553_168_899
    assert values["09_synthetic_dataset", "volumes"] == 100_000 and values["01_data", "scans"] == 31_740
    for entry in PAPER:
        assert entry["source"] and entry["mark"] in "PR" and entry["needs"], entry["name"]
        assert set(entry["needs"]) <= set(scoreboard._CHECKS) and ("n" not in entry["needs"] or entry["n"])
        assert entry["notebook"] in scoreboard.__doc__, "its key is documented"
    assert len({entry["name"] for entry in PAPER}) == len(PAPER)


def test_the_papers_numbers_travel_with_the_package_and_weigh_little():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["brainldm_core"]
    folder = Path(scoreboard.__file__).parent
    assert any(path.name == "paper.yaml" for pattern in patterns for path in folder.glob(pattern))
    code = "import sys, brainldm_core.scoreboard; assert not {'torch', 'pandas', 'scipy', 'nibabel'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_empty_run_has_a_row_for_every_number(tmp_path):
    run = begin(tmp_path, simulated=True, brain_only=True)
    rows = build_scoreboard(run.folder)
    assert [row["name"] for row in rows] == [entry["name"] for entry in PAPER]
    assert all(row["ours"] is None and row["why_not"] == "not measured" and not row["comparable"] for row in rows)
    assert json.loads((run.stage("results") / "scoreboard.json").read_text()) == {"run": "smoke-atlas", "rows": rows}
    assert read_scoreboard(run.folder) == rows
    text = scoreboard_markdown(rows)
    assert text.count("not measured") == len(PAPER) and text.count("\n|") == len(PAPER) + 1


def test_numbers_come_from_the_files_with_all_that_belongs_to_them(tmp_path):
    run = begin(tmp_path, simulated=True, brain_only=True)
    finish_notebook(run, "08_evaluation", {"fid_lsgan": FID, "ms_ssim_real": {"value": 0.65, "n": 1000}, "other": 3})
    finish_notebook(run, "02_autoencoder", {"parameters": 40_000})
    rows = build_scoreboard(run.folder, write=False)
    assert not (run.stage("results") / "scoreboard.json").exists()
    fid = row(rows, "FID, LSGAN")
    assert fid == {
        "name": "FID, LSGAN", "paper": 0.0231, "paper_spread": None, "paper_n": None, "source": "table 1", "mark": "P",
        "ours": 0.31, "unit": "", "n": 64, "low": 0.2, "high": 0.4, "floor": 0.05, "extractor": "offline-1",
        "note": "tiny", "profile": "smoke", "cohort": "atlas (simulated, brain only)", "run": "smoke-atlas",
        "comparable": False,
        "why_not": "simulated brains, brain only, not whole heads of UK Biobank; voxels of 10 mm, not 1 mm; "
        "features of offline-1, not of MedicalNet",
    }  # fmt: skip
    assert row(rows, "parameters, autoencoder")["why_not"] == "networks of profile smoke, not the paper's"
    assert sum(row["ours"] is not None for row in rows) == 3
    text = scoreboard_markdown(rows)
    assert "| FID, LSGAN | 0.0231 [P] | 0.31 [0.2, 0.4] | 64 | 0.05 | no: simulated brains" in text
    assert "| sampling a volume, 1000 steps (s) | 142.3 ± 1.6 [P] | not measured |" in text
    assert "| 13,766,248 [R] | 40,000 |" in text and "cohort atlas (simulated, brain only)" in text
    finish_notebook(run, "08_evaluation", {"fid_lsgan": FID | {"value": 0.32}})
    assert row(build_scoreboard(run.folder), "FID, LSGAN")["ours"] == 0.32


def test_what_agrees_with_the_paper_is_comparable(tmp_path):
    run = begin(tmp_path, "paper", "ukbiobank", simulated=False, brain_only=False)
    results = {
        "fid_real": {"value": 0.0006, "n": 500, "extractor": "MedicalNet ResNet-50"},
        "ms_ssim_real": {"value": 0.66, "n": 1000},
        "ms_ssim_lsgan": {"value": 0.99, "n": 999},
        "ms_ssim_vaegan": {"value": 0.99},
        "fid_lsgan": {"value": 0.02},
    }
    finish_notebook(run, "08_evaluation", results)
    finish_notebook(run, "03_latent_diffusion", {"parameters": 553_168_899})
    finish_notebook(run, "04_ddim_acceleration", {"seconds_ldm_ddim50": {"value": 7.7, "unit": "s", "n": 10}})
    rows = build_scoreboard(run.folder)
    assert {row["name"] for row in rows if row["comparable"]} == {
        "FID, real images", "MS-SSIM, real images", "parameters, diffusion UNet",
    }  # fmt: skip
    assert row(rows, "MS-SSIM, LSGAN")["why_not"] == "n 999, not 1,000"
    assert row(rows, "MS-SSIM, VAE-GAN")["why_not"] == "n unknown, not 1,000"
    assert row(rows, "FID, LSGAN")["why_not"] == "features of an unnamed extractor, not of MedicalNet"
    fast = row(rows, "sampling a volume, DDIM 50 steps")
    assert fast["why_not"] == "on unknown hardware, not on a TITAN RTX"
    record = Record(run.stage("samples"), "test", {}, {}).finish()
    record["hardware"] = {"accelerator": "NVIDIA TITAN RTX"}
    write_json(run.stage("samples") / "record.json", record)
    assert row(build_scoreboard(run.folder), fast["name"])["comparable"]
    assert "| 7.6 ± 0.2 [P] | 7.7 | 10 |  | yes |" in scoreboard_markdown(build_scoreboard(run.folder))


def test_another_seed_shares_the_cohort(tmp_path):
    begin(tmp_path, simulated=True, brain_only=True)
    other = open_run("smoke", "atlas", 2, tmp_path)
    rows = build_scoreboard(other.folder)
    assert {(row["run"], row["cohort"]) for row in rows} == {("smoke-atlas-seed2", "atlas (simulated, brain only)")}


def test_a_profile_of_ones_own_needs_no_file(tmp_path):
    own = load_profile("smoke").model_copy(update={"name": "own"})
    run = open_run(own, "oasis", 0, tmp_path)
    rows = build_scoreboard(run.folder)
    assert rows[0]["profile"] == "own" and rows[0]["cohort"] == "oasis"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "damaged JSON"),
        ("[1]", "is not of 08_evaluation in run smoke-atlas"),
        ({"run": "tiny-atlas", "notebook": "08_evaluation", "results": {}}, "is not of 08_evaluation in run smoke"),
        ({"run": "smoke-atlas", "notebook": "07_baselines", "results": {}}, "is not of 08_evaluation in run smoke"),
        (
            {"run": "smoke-atlas", "notebook": "08_evaluation", "results": {"fid_real": {"value": "0.1"}}},
            "result 'fid_real' has value '0.1', not a number",
        ),
    ],
)
def test_results_that_are_not_this_runs_are_refused(tmp_path, content, words):
    run = begin(tmp_path)
    path = run.stage("results") / "08_evaluation.json"
    path.parent.mkdir()
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(BrainLDMError, match=words):
        build_scoreboard(run.folder)
    assert not (run.stage("results") / "scoreboard.json").exists()


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(BrainLDMError, match="not a run"):
        build_scoreboard(tmp_path)
    begin(tmp_path).folder.rename(tmp_path / "renamed")
    with pytest.raises(BrainLDMError, match="renamed: holds run smoke-atlas"):
        build_scoreboard(tmp_path / "renamed")
    with pytest.raises(BrainLDMError, match="no such file"):
        read_scoreboard(tmp_path)
