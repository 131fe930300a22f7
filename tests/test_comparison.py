"""Table 1 of a run, its rows for the scoreboard, verdicts on collapse, and answers made from numbers."""

import numpy as np
import pandas as pd
import pytest

from brainldm_core import answers, charts, comparison
from brainldm_core.evaluation import distribution_rows
from brainldm_core.features import offline_extractor
from brainldm_core.metrics import PairMean
from brainldm_core.profiles import load_profile
from brainldm_core.records import open_run, read_json
from brainldm_core.runner import finish_notebook
from brainldm_core.scoreboard import PAPER


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return open_run("smoke", "atlas", 0, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def volumes():
    """Six sets on the smoke grid: varied ones, one that is a single volume again and again, and a short one."""
    rng = np.random.default_rng(0)
    base = rng.random((16, 20, 16), dtype=np.float32)
    sets = {name: 0.8 * base + 0.2 * rng.random((8, 16, 20, 16), dtype=np.float32) for name in ("reference", "real")}
    sets |= {
        name: 0.5 * base + 0.5 * rng.random((8, 16, 20, 16), dtype=np.float32) for name in ("vaegan", "ldm_ddim50")
    }
    return sets | {
        "lsgan": np.repeat(base[None], 8, 0),
        "ldm_1000": sets["real"][:2] * 0.9,
        "reconstruction": sets["reference"],
    }


@pytest.fixture(scope="module")
def table(run, volumes):
    return comparison.table_1(run, volumes, pairs=12, draws=20)


def test_rows_are_in_the_papers_order_and_those_of_evaluation(run, volumes, table):
    assert list(table.index) == ["lsgan", "vaegan", "ldm_1000", "ldm_ddim50", "reconstruction", "real"]
    systems = {name: found for name, found in volumes.items() if name not in ("real", "reference")}
    rows = distribution_rows(
        volumes["reference"], volumes["real"], systems, offline_extractor(), ["ldm_1000"], 12, draws=20
    )
    for row in rows:
        assert table.loc[row["model"], "fid"] == row["fid"] and table.loc[row["model"], "n"] == row["n"]
    assert table.loc["ldm_1000", "n"] == 2 and (table.drop("ldm_1000")["n"] == 8).all()
    assert table.loc["reconstruction", "fid"] == pytest.approx(0, abs=1e-9)


def test_a_model_of_one_volume_has_no_row(run, volumes):
    found = comparison.table_1(run, volumes | {"ldm_1000": volumes["ldm_1000"][:1]}, pairs=3, draws=2)
    assert "ldm_1000" not in found.index and len(found) == 5


def test_results_hold_all_that_the_scoreboard_reads(run, table):
    rows = comparison.result_rows(run, table)
    wanted = {entry["result"] for entry in PAPER if entry["notebook"] == "08_evaluation"}
    assert wanted <= set(rows)
    fid, pairs = rows["fid_lsgan"], rows["ms_ssim_lsgan"]
    assert fid["n"] == 8 and pairs["n"] == 12 and fid["extractor"] == "offline-1"
    assert "not comparable with the paper's FID" in fid["note"] and fid["floor"] == rows["fid_real"]["value"]
    assert fid["low"] <= fid["value"] <= fid["high"] and pairs["floor"] == rows["ms_ssim_real"]["value"]
    assert "low" not in rows["fid_ldm_1000"], "two volumes have no interval"
    assert "DDIM of 4 steps" in rows["fid_ldm_ddim50"]["note"] and "DDIM" not in rows["fid_vaegan"]["note"]
    finish_notebook(run, "08_evaluation", rows)
    assert set(read_json(run.stage("results") / "08_evaluation.json")["results"]) == set(rows)


def test_the_page_has_the_papers_numbers_from_its_file(run, table):
    shown = comparison.beside_paper(run, table)
    assert shown.loc["LSGAN", "paper's FID"] == "0.0231" and shown.loc["VAE-GAN", "paper's MS-SSIM"] == "0.9671"
    assert (
        shown.loc["autoencoder alone", "paper's FID"] == "" and comparison.paper_value("fid", "reconstruction") is None
    )
    assert "[" in shown.loc["LSGAN", "FID"] and "[" not in shown.loc["LDM, 20 steps", "FID"]


@pytest.mark.parametrize("value, is_known", [(0.0, True), (np.float64(1), True), (None, False), (np.nan, False)])
def test_zero_is_known(value, is_known):
    assert comparison.known(value) is is_known


def test_intervals_keep_a_low_end_of_zero(run, table):
    part = table.copy()
    part.loc["lsgan", "fid_low"] = 0.0
    assert comparison.intervals(run, part, "fid")["LSGAN"][1] == 0.0
    assert np.isnan(comparison.intervals(run, part, "fid")["LDM, 20 steps"][1])


def test_one_volume_again_and_again_is_called_collapse(volumes):
    real = comparison.alikeness(volumes["real"], 12)
    one = comparison.alikeness(volumes["lsgan"], 12)
    share = comparison.spread(volumes["lsgan"]).mean() / comparison.spread(volumes["real"]).mean()
    assert share == pytest.approx(0, abs=1e-5) and one.value == pytest.approx(1, abs=1e-4)
    assert "has collapsed" in comparison.collapse_words("LSGAN", float(share), one, real)


@pytest.mark.parametrize(
    "low, high, words",
    [
        (0.8, 0.9, "lost variety"),
        (0.5, 0.7, "intervals overlap"),
        (0.1, 0.2, "noise would do that too"),
        (np.nan, np.nan, "nothing can be said"),
    ],
)
def test_verdicts_follow_the_intervals(low, high, words):
    real = PairMean(0.6, 0.02, 0.55, 0.65, 10, 8)
    assert words in comparison.collapse_words("M", 0.9, PairMean((low + high) / 2, 0.02, low, high, 10, 8), real)


def test_nearer_needs_intervals_apart():
    one = pd.Series({"fid": 1.0, "fid_low": 0.5, "fid_high": 1.5})
    two = pd.Series({"fid": 3.0, "fid_low": 2.0, "fid_high": 4.0})
    assert answers.nearer(one, two, "fid") is True and answers.nearer(two, one, "fid") is False
    assert answers.nearer(one, two, "fid", goal=3.0) is False
    assert answers.nearer(one, two.replace(2.0, 1.2), "fid") is None
    assert answers.nearer(one, two.replace(2.0, np.nan), "fid") is None


def test_each_question_is_answered_from_the_table(run, table, monkeypatch):
    agreement = type("A", (), {"r": 0.876, "n": 8, "mae": 3.21, "slope": 0.5})
    line = type("A", (), {"r": 0.654})
    found = {"samples": agreement, "real": agreement, "regression": line}
    monkeypatch.setattr(
        answers, "agreements", lambda run, kinds, *_: ({}, {name: found[name] for name in kinds.values()})
    )
    text = answers.answers(run, table)
    assert [line[:3] for line in text.splitlines()] == [f"{place}. " for place in range(1, 6)]
    assert (
        "the network is shown 0.654" in text
        and "r = 0.876" in text
        and "3.2 ml" in text
        and "Against LSGAN" in text
        and "171 times fewer" in text
    )
    assert "no set of synthetic brains" in text and f"{table.loc['ldm_ddim50', 'fid']:.3g}" in text
    assert 160 * 224 * 160 / (3 * 20 * 28 * 20) == pytest.approx(171, abs=0.5)
    assert load_profile("paper").latent_shape == (3, 20, 28, 20)


def test_dots_draw_every_value_and_the_goal():
    figure = charts.dots({"FID": ({"a": (1.0, 0.5, 1.5), "b": (2.0, np.nan, np.nan)}, 0.3)}, "real")
    axis = figure.axes[0]
    assert [line.get_xdata()[0] for line in axis.lines] == [0.5, 1.0, 2.0, 0.3]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["a", "b"]
