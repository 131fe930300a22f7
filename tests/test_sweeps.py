"""Requests that share a noise: what is moved and what is not, units, and what the sampler is given."""

import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from brainldm_core import brain_age, samples, sampling, sweeps
from brainldm_core.covariates import COLUMNS, encode
from brainldm_core.dataset import save_volume, volume_path, write_tables
from brainldm_core.profiles import load_profile
from brainldm_core.records import Record, open_run

RANGES = {
    "sex": (0.0, 1.0),
    "age_years": (44.0, 82.0),
    "ventricular_volume_ml": (5.0, 105.0),
    "brain_volume_ml": (900.0, 1300.0),
}


@pytest.fixture
def rows() -> pd.DataFrame:
    """Five people, one of whom has no ventricular volume."""
    return pd.DataFrame(
        {
            "sex": ["F", "F", "M", "F", "M"],
            "age_years": [50.0, 60.0, 70.0, 80.0, 55.0],
            "ventricular_volume_ml": [10.0, np.nan, 30.0, 50.0, 20.0],
            "brain_volume_ml": [1200.0, 1150.0, 1100.0, 1050.0, 1180.0],
        }
    )


def test_typical_request_is_the_median_and_the_more_frequent_sex(rows):
    typical = sweeps.typical_request(rows)
    assert typical == {"sex": "F", "age_years": 60, "ventricular_volume_ml": 25, "brain_volume_ml": 1150}
    unknown = sweeps.typical_request(rows.assign(sex="n/a", age_years=np.nan))
    assert np.isnan(unknown["sex"]) and np.isnan(unknown["age_years"]) and unknown["brain_volume_ml"] == 1150


def test_spread_stays_inside_the_cohort(rows):
    values = sweeps.spread(rows, "brain_volume_ml", 5, 0, 1)
    assert values == pytest.approx([1050, 1087.5, 1125, 1162.5, 1200])
    inner = sweeps.spread(rows, "ventricular_volume_ml", 3)
    assert len(inner) == 3 and 10 < inner[0] < inner[1] < inner[2] < 50
    assert sweeps.spread(rows, "sex", 9) == ["F", "M"]
    assert np.isnan(sweeps.spread(rows.assign(age_years=np.nan), "age_years", 4)).tolist() == [True] * 4


def test_a_sweep_moves_one_covariate(rows):
    base = sweeps.typical_request(rows)
    table = sweeps.sweep_requests(base, "ventricular_volume_ml", [10, 20, 90])
    assert table["ventricular_volume_ml"].tolist() == [10, 20, 90] and set(table["moved"]) == {"ventricular_volume_ml"}
    assert (table[["sex", "age_years", "brain_volume_ml"]].nunique() == 1).all()
    assert base["ventricular_volume_ml"] == 25


def test_pushed_rows_keep_all_but_one_covariate_and_spread_over_the_values(rows):
    table = sweeps.pushed(rows, "ventricular_volume_ml", [60.0, 70.0, 80.0])
    assert table["ventricular_volume_ml"].tolist() == [60, 70, 80] and set(table["moved"]) == {"ventricular_volume_ml"}
    kept = ["sex", "age_years", "brain_volume_ml"]
    pd.testing.assert_frame_equal(table[kept], rows[kept].head(3))
    few = sweeps.pushed(rows.tail(3), "brain_volume_ml", list(range(12)))  # fewer people than values
    assert few["brain_volume_ml"].iloc[[0, -1]].tolist() == [0, 11] and few.index.tolist() == [0, 1, 2]


def test_cross_talk_moves_every_covariate_once(rows):
    base = sweeps.typical_request(rows)
    table = sweeps.cross_talk_requests(base, rows)
    assert table["moved"].tolist() == [column for column in COLUMNS for _ in range(2)]
    for column, part in table.groupby("moved"):
        assert part[column].nunique() == 2
        assert all(part[other].nunique() == 1 for other in COLUMNS if other != column)


def test_requests_that_differ_much_are_rows_of_the_table(rows):
    two = sweeps.apart(rows, "ventricular_volume_ml")
    assert two["ventricular_volume_ml"].tolist() == [10, 50] and two["age_years"].tolist() == [50, 80]
    assert len(sweeps.apart(rows.assign(ventricular_volume_ml=np.nan), "ventricular_volume_ml")) == 2


def test_partial_requests_need_mask_channels():
    request = {"sex": "F", "age_years": 70.0, "ventricular_volume_ml": 40.0, "brain_volume_ml": 1100.0}
    masked = sweeps.partial_requests(SimpleNamespace(profile=load_profile("tiny")), request)
    assert list(masked) == ["everything", "ventricles alone", "age alone", "nothing"]
    _, present = encode(pd.DataFrame(masked.values()), RANGES)
    assert present.tolist() == [[1, 1, 1, 1], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert list(sweeps.partial_requests(SimpleNamespace(profile=load_profile("paper")), request)) == ["everything"]


def test_normalised_units_are_those_inside_the_model():
    values = [-0.5, 0.0, 1.0, 1.9]
    ml = sweeps.physical(RANGES, "ventricular_volume_ml", values)
    assert ml == pytest.approx([-45, 5, 105, 195])
    vectors, _ = encode(pd.DataFrame({"ventricular_volume_ml": ml}), RANGES)
    assert vectors[:, 2] == pytest.approx(values)


def test_the_papers_panels_in_its_own_millilitres():
    table = sweeps.in_both_units({"ventricular_volume_ml": [1.5], "brain_volume_ml": [-0.5]}, RANGES)
    # 6.99568 + 1.5 x 164.37932 and 1144.24 - 0.5 x 649.67
    assert table["in the paper (ml)"].tolist() == pytest.approx([253.56466, 819.405])
    assert table["here (ml)"].tolist() == pytest.approx([155, 700])


def test_requests_outside_the_range_become_sentences(rows):
    far = rows.assign(age_years=[90.0] * 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = sweeps.outside(far, RANGES)
        assert sweeps.outside(rows, RANGES) == []
    assert len(said) == 1 and "age_years" in said[0] and "44 to 82" in said[0]


def test_draw_gives_every_request_every_noise_and_is_quiet(rows, monkeypatch):
    profile = load_profile("smoke")
    pipeline = SimpleNamespace(profile=profile, ranges=RANGES)
    seen = {}

    def sample(pipeline, table, ids, steps, eta, seed):
        warnings.warn("age_years 90 is outside the training range 44 to 82: extrapolating", stacklevel=2)
        seen.update(table=table, ids=ids, steps=steps, seed=seed)
        return np.arange(len(ids), dtype=np.float32)[:, None, None, None] * np.ones(profile.grid.shape, np.float32)

    def measure_all(volumes, affine):
        return pd.DataFrame({"measured_brain_volume_ml": volumes[:, 0, 0, 0]})

    monkeypatch.setattr(sampling, "sample", sample)
    monkeypatch.setattr(samples, "measure_all", measure_all)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        volumes, table = sweeps.draw(
            pipeline,
            rows.iloc[[3, 1]].set_axis([0, 0]),
            [7, 8, 9],
            seed=4,
            age=lambda v: 2 * v[:, 0, 0, 0].astype(float),
        )
    assert seen["ids"] == [7, 8, 9] * 2 and seen["seed"] == 4 and seen["steps"] == profile.sampling.steps
    assert table["age_years"].tolist() == [80] * 3 + [60] * 3 and table["noise"].tolist() == [7, 8, 9] * 2
    assert table["measured_brain_volume_ml"].tolist() == list(range(6)) and len(volumes) == 6
    assert table["measured_age_years"].tolist() == [0, 2, 4, 6, 8, 10]
    assert "measured_age_years" not in sweeps.draw(pipeline, rows, [0])[1]
    volumes, table = sweeps.draw(pipeline, rows, [5, 6, 7, 8, 8], crossed=False)  # a noise each
    assert seen["ids"] == table["noise"].tolist() == [5, 6, 7, 8, 8] and len(volumes) == 5
    assert table["age_years"].tolist() == rows["age_years"].tolist()


@pytest.fixture
def run(tmp_path):
    """A finished cohort of four scans; tests set their ages."""
    run = open_run("smoke", "mine", 0, tmp_path)
    folder, names = run.stage("cohort"), [f"sub-{index}" for index in range(4)]
    table = pd.DataFrame(
        {"participant_id": names, "session_id": "n/a", "split": ["train", "train", "validation", "test"]}
    )

    def with_ages(*ages):
        write_tables(folder, table.assign(age_years=ages))
        Record(folder, "test", {}, {}).finish()
        return run

    for name in names:
        save_volume(volume_path(folder, name), np.eye(20)[:16, :, None] * np.ones(16), run.profile.grid.affine)
    return with_ages


@pytest.mark.parametrize("ages", [(np.nan,) * 4, (61.0,) * 4, (50.0, 60.0, 55.0, np.nan)])
def test_a_cohort_without_ages_has_no_age_network_and_reads_nothing(run, ages):
    made = run(*ages)
    assert "no ages" in sweeps.ensure_brain_age(made)["results"]["skipped"]
    assert (made.stage("brain_age") / "record.json").exists()
    assert np.isnan(sweeps.age_reader(made)(np.zeros((3, 2, 2, 2)))).tolist() == [True] * 3


def test_a_cohort_with_ages_is_read_by_its_network(run, monkeypatch):
    monkeypatch.setattr(brain_age, "train_brain_age", lambda run: {"results": {"trained": run.name}})
    monkeypatch.setattr(brain_age, "predict_age", lambda run, volumes: np.arange(len(volumes)))
    made = run(50.0, 60.0, np.nan, 70.0)
    assert sweeps.ensure_brain_age(made)["results"] == {"trained": "smoke-mine"}
    assert sweeps.age_reader(made)(np.zeros((2, 1, 1, 1))).tolist() == [0, 1]


def test_departures_from_the_paper_in_words():
    profile = load_profile("tiny")
    plain = profile.model_copy(update={"sampling": profile.sampling.model_copy(update={"guidance_scale": 1.0})})
    assert "without guidance" in sweeps.departures(plain)
    strong = {"guidance_scale": 3.0, "guided": ("brain_volume_ml",)}
    guided = profile.model_copy(update={"sampling": profile.sampling.model_copy(update=strong)})
    assert "guidance of 3 for `brain_volume_ml`" in sweeps.departures(guided)
    assert "mean latent" in sweeps.departures(guided) and "mean" not in sweeps.departures(load_profile("paper"))
