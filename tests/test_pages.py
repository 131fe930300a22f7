"""Sentences that pages print about themselves."""

import numpy as np
import pandas as pd

from brainldm_core import pages
from brainldm_core.profiles import Expectation, load_profile
from brainldm_core.records import Record, open_run


def test_banner_states_the_run_from_its_records(tmp_path):
    run = open_run("smoke", "atlas", 3, tmp_path)
    record = Record(run.stage("autoencoder"), "test", {}, {}, 3, earlier_seconds=300.0).finish()
    text = pages.banner(run, "cohort", "autoencoder", subjects=6).data
    assert "smoke-atlas-seed3" in text and "16 × 20 × 16 voxels of 10 mm" in text
    assert record["commit"] in text and record["date"][:10] in text
    assert "training the autoencoder 5 min" in text and "making the cohort" not in text
    assert "| Training scans | 6 |" in text and str(tmp_path) not in text


def test_caution_is_for_small_cohorts_only():
    assert "So few scans teach a network little" in pages.caution(7).data
    assert "So few" not in pages.caution(pages.FEW_SCANS).data


def test_floors_bind_the_simulated_cohort_only(tmp_path):
    profile = load_profile("smoke").model_copy(update={"expected": {"r": Expectation(value=0.7, source="test")}})
    atlas, scans = (open_run(profile, cohort, 0, tmp_path) for cohort in ("atlas", "oasis"))
    assert pages.meets(atlas, "r", 0.71) and not pages.meets(atlas, "r", 0.69)
    assert pages.meets(scans, "r", 0.1) and pages.meets(atlas, "unknown", -1)
    assert not pages.meets(atlas, "r", float("nan"))
    assert pages.expected(atlas, "r") == {"expected": 0.7} and pages.expected(scans, "r") == {}


def test_results_that_are_no_numbers_are_dropped():
    rows = {"a": {"value": 1.0}, "b": {"value": float("nan")}}
    assert list(pages.finite(rows)) == ["a"]


def test_durations_and_machines_in_words():
    assert pages.duration(9.94) == "9.94 s" and pages.duration(600) == "10 min"
    facts = {"processor": "CPU", "cores": 2, "memory_gib": 23.6}
    assert pages.machine(facts) == "CPU (2 cores, 24 GiB of memory)"
    assert pages.machine(facts | {"accelerator": "GPU"}).startswith("GPU")


def test_manifest_of_a_folder_without_one(tmp_path):
    assert "no manifest" in pages.manifest(open_run("smoke", "mine", 0, tmp_path)).data
    assert "published | yes" in pages.manifest(open_run("smoke", "atlas", 0, tmp_path)).data
    assert "published | no" in pages.manifest(open_run("smoke", "oasis", 0, tmp_path)).data


def test_samples_are_read_back(tmp_path):
    run = open_run("smoke", "atlas", 0, tmp_path)
    folder = run.stage("samples")
    folder.mkdir(parents=True)
    np.savez(folder / "ddim.npz", volumes=np.array([[[[0, 255]]]], np.uint8))
    (folder / "ddim.tsv").write_text(
        "participant_id\tventricular_volume_ml\tmeasured_lateral_ventricles_ml\nsub-1\t20\t18.6\n", encoding="utf-8"
    )
    volumes, table = pages.samples(run, "ddim")
    assert volumes.tolist() == [[[[0.0, 1.0]]]]
    assert pages.asked_and_measured(table) == ["20 → 19"]
    panels, found = pages.agreements(
        run, {"ddim": "samples"}, "ventricular_volume_ml", "measured_lateral_ventricles_ml"
    )
    assert found["samples"].n == 1 and "no correlation" in panels["samples"][2]


def test_numbers_and_panels_in_words():
    assert (
        pages.number(0.456) == "0.46" and pages.number(-0.001) == "0.00" and pages.number(float("nan")) == "undefined"
    )
    table = pd.DataFrame({"asked": [12.4, None], "found": [11.6, 0.0]}, index=[1, 0])
    volumes, above, below = pages.panel_row(np.arange(2), table, ("asked", "found"))
    assert volumes.tolist() == [1, 0] and above == ["asked 12 ml", "not asked"]
    assert below == ["measured 12 ml", "measured 0 ml"]
