"""Is this normal? Verdicts on analytic curves, and which published runs a run is compared with."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from brainldm_core import curves
from brainldm_core.profiles import load_profile
from brainldm_core.records import open_run, write_json


def constant(value: float, steps: int = 200) -> pd.DataFrame:
    return pd.DataFrame({"step": np.arange(steps), "loss": value})


def decay(steps: int, scale: float = 1.0) -> pd.DataFrame:
    step = np.arange(steps)
    return pd.DataFrame({"step": step, "loss": scale * np.exp(-step / 100)})


@pytest.mark.parametrize(
    "value, words",
    [(0.68, "lower than"), (0.70, "within"), (1.50, "within"), (1.52, "higher than")],
)
def test_normal_is_the_range_of_the_published_widened_by_itself_and_a_tenth(value, words):
    # From 1.0 to 1.2, widened by 0.2 and by a tenth of 1.1.
    verdict, ours, (low, high) = curves.judge(constant(value), "loss", {"a": constant(1.0), "b": constant(1.2)})
    assert verdict == f"{words} the published runs" and ours == pytest.approx(value)
    assert (low, high) == pytest.approx((0.69, 1.51))


@pytest.mark.parametrize("steps", [1, 40, 200, 390, 400, 900])
def test_runs_are_compared_at_the_same_steps(steps):
    published = {"a": curves.thin(decay(400))}
    assert curves.judge(decay(steps), "loss", published)[0] == "within the published runs"
    assert curves.judge(decay(steps, 1.2), "loss", published)[0] == "higher than the published runs"
    assert curves.judge(decay(steps, 0.8), "loss", published)[0] == "lower than the published runs"


def test_the_last_tenth_is_what_counts():
    table = decay(400)
    table.loc[table["step"] < 350, "loss"] = 7.0
    assert curves.judge(table, "loss", {"a": decay(400)})[0] == "within the published runs"


def test_a_loss_that_begins_late_or_is_not_known_is_said_to_be_so():
    late = constant(1.0).assign(late=np.where(np.arange(200) < 120, np.nan, 2.0))
    assert curves.judge(late[:100], "late", {"a": curves.thin(late)})[0] == "has not begun"
    assert curves.judge(late, "late", {"a": curves.thin(late)})[0] == "within the published runs"
    assert curves.judge(late, "loss", {})[0] == "no published run of this profile"
    assert curves.judge(late, "late", {"a": constant(1.0)})[0] == "no published run of this profile"


def test_thinning_keeps_means_and_begins_where_a_loss_does():
    table = decay(1000).assign(late=np.where(np.arange(1000) < 500, np.nan, 3.0), seconds=1.0)
    thinned = curves.thin(table, 100)
    assert len(thinned) == 100 and list(thinned) == ["step", "loss", "late"]
    assert thinned["loss"].mean() == pytest.approx(table["loss"].mean())
    assert thinned["step"].iloc[0] == 4.5 and thinned["loss"].iloc[0] == pytest.approx(table["loss"][:10].mean())
    assert thinned["late"].isna().sum() == 50 and (thinned["late"].dropna() == 3).all()
    assert len(curves.thin(table[:7], 100)) == 7 and not len(curves.thin(table[:0], 100))


@pytest.fixture
def published(tmp_path):
    """Published runs of the smoke profile: two of its settings, and one of others."""
    settings = load_profile("smoke").settings()
    for name, rate in (("smoke-atlas", None), ("smoke-atlas-seed1", None), ("smoke-atlas-seed2", 0.5)):
        for training, stage in (("diffusion", "diffusion"), ("lsgan", "baselines")):
            section = dict(settings[stage]) | ({"seconds": 12.5} if stage == "baselines" else {})
            if rate:
                section["training"] = section["training"] | {"learning_rate": rate}
            write_json(tmp_path / name / "records" / f"{stage}.json", {"settings": section})
            path = tmp_path / name / "losses" / f"{training}.csv"
            path.parent.mkdir(exist_ok=True)
            curves.thin(decay(300)).to_csv(path, index=False)
    return tmp_path


def test_only_runs_of_the_same_settings_are_compared(published, tmp_path):
    run = open_run("smoke", "atlas", 0, tmp_path / "runs")
    for training in ("diffusion", "lsgan"):
        assert list(curves.published_losses(run, training, published)) == ["smoke-atlas", "smoke-atlas-seed1"]
    assert not curves.published_losses(run, "autoencoder", published)
    assert not curves.published_losses(open_run("tiny", "atlas", 0, tmp_path / "runs"), "diffusion", published)


@pytest.mark.parametrize("cohort, note", [("atlas", "grey: published runs"), ("ward", "another cohort (atlas)")])
def test_the_figure_has_both_and_the_verdict(published, tmp_path, cohort, note):
    run = open_run("smoke", cohort, 5, tmp_path / "runs")
    path = curves.losses_path(run, "diffusion")
    path.parent.mkdir(parents=True)
    decay(300, 2.0).to_csv(path, index=False)
    figure = curves.is_this_normal(run, "diffusion", {"loss": "loss"}, published)
    (axis,) = figure.axes
    assert axis.get_title() == "loss\nhigher than the published runs"
    assert len(axis.lines) == 4 and len(axis.lines[0].get_xdata()) == 100  # two published, raw, running mean
    assert note in figure.get_suptitle()
    assert curves.verdicts(run, "diffusion", {"loss": "loss"}, published)["loss"][0] == "higher than the published runs"
    figure = curves.is_this_normal(run, "diffusion", {"loss": "loss"}, tmp_path / "none")
    assert figure.axes[0].get_title() == "loss\nno published run of this profile" and not figure.get_suptitle()


def test_the_published_runs_of_tiny_have_the_settings_that_ship(tmp_path):
    run = open_run("tiny", "atlas", 0, tmp_path)
    found = {training: len(curves.published_losses(run, training)) for training in curves.STAGES}
    assert found == {"autoencoder": 3, "diffusion": 3, "brain_age": 1, "lsgan": 3, "vaegan": 3}
