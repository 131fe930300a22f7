"""Rows of the table of models: each number against its metric, equal n, honest intervals and notes."""

import json

import numpy as np
import pytest
import torch
from test_features import blobs

from brainldm_core import evaluation, features, metrics
from brainldm_core.errors import BrainLDMError
from brainldm_core.evaluation import distribution_rows


def means():
    """An extractor that is quick and easy to recompute: mean intensities of the eight octants."""
    pool = torch.nn.functional.adaptive_avg_pool3d
    return features.Extractor("octants", "f" * 64, False, lambda x: pool(x, 2).flatten(1))


@pytest.fixture(scope="module")
def sets():
    return {"real": blobs(14, 0), "other": blobs(12, 1), "model": blobs(11, 2) * 0.9, "few": blobs(5, 3)}


@pytest.fixture(scope="module")
def rows(sets):
    systems = {"model": sets["model"], "few": sets["few"]}
    return distribution_rows(sets["real"], sets["other"], systems, means(), own_n=["few"], pairs=30, k=3, draws=40)


def test_each_number_is_that_of_its_metric(sets, rows):
    assert [row["model"] for row in rows] == ["real", "model", "few"]
    extractor, real = means(), features.extract(means(), sets["real"])
    for row, name, n in zip(rows, ("other", "model", "few"), (11, 11, 5), strict=True):
        volumes = sets[name][:n]
        found = features.extract(extractor, volumes)
        assert (row["n"], row["n_reference"], row["k"], row["ms_ssim_scales"]) == (n, 14, 3, 2)
        assert row["fid"] == pytest.approx(metrics.frechet_distance(real, found), rel=1e-6)
        floor = metrics.frechet_distance(real, features.extract(extractor, sets["other"][:n]))
        assert row["fid_floor"] == pytest.approx(floor, rel=1e-6)
        assert row["kid"] == pytest.approx(metrics.kernel_distance(real, found), abs=1e-9)
        other = features.extract(extractor, sets["other"][:11])
        width = metrics.median_bandwidth(real, other)
        assert row["mmd_bandwidth"] == width and row["mmd"] == metrics.mmd(real, found, width)
        for key, value in metrics.prdc(real, found, 3).items():
            assert row[key] == value
        tensor = torch.from_numpy(volumes)[:, None]
        for metric in (metrics.ms_ssim, metrics.four_g_r_ssim):
            mean, key = metrics.pair_mean(metric, tensor, 30), metric.__name__
            assert [row[key], row[f"{key}_low"], row[f"{key}_high"]] == pytest.approx([mean.value, mean.low, mean.high])
        assert row["pairs"] == min(30, n * (n - 1) // 2)
        for key in ("fid", "kid", "mmd", "ms_ssim", "four_g_r_ssim"):
            assert row[f"{key}_low"] <= row[key] <= row[f"{key}_high"]
        assert row["extractor"] == "octants" and row["extractor_sha256"] == "f" * 64
        assert "not comparable with the paper's FID" in row["note"]
    assert rows[0]["fid"] == rows[0]["fid_floor"] < rows[1]["fid"]
    json.dumps(rows, allow_nan=False)


def test_one_n_for_all_but_those_that_keep_their_own(sets):
    systems = {"model": sets["model"], "few": sets["few"]}
    found = distribution_rows(sets["real"], sets["other"], systems, means(), pairs=3, draws=2)
    assert [row["n"] for row in found] == [5, 5, 5]
    assert [row["k"] for row in found] == [4, 4, 4]  # fewer neighbours than the five asked for
    # A system that is larger than the floor's set cannot have a floor of its number.
    found = distribution_rows(sets["real"], sets["few"], {"model": sets["model"]}, means(), ["model"], 3, draws=2)
    assert [row["n"] for row in found] == [5, 5]


def test_rows_repeat_and_do_not_touch_the_global_random_state(sets, rows):
    state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    systems = {"model": sets["model"], "few": sets["few"]}
    again = distribution_rows(sets["real"], sets["other"], systems, means(), own_n=["few"], pairs=30, k=3, draws=40)
    assert again == rows
    assert torch.equal(state, torch.random.get_rng_state()) and (numpy_state == np.random.get_state()[1]).all()


def test_two_volumes_are_enough_for_values_without_intervals(sets):
    tiny = {name: volumes[:2] for name, volumes in sets.items()}
    (real, model) = distribution_rows(tiny["real"], tiny["other"], {"model": tiny["model"]}, means())
    for row in (real, model):
        assert row["n"] == 2 and row["k"] == row["pairs"] == 1 and np.isfinite(row["fid"])
        assert row["fid_low"] is row["kid_high"] is row["ms_ssim_low"] is row["four_g_r_ssim_high"] is None
    json.dumps([real, model], allow_nan=False)


def test_collapse_shows_in_every_number(sets):
    collapsed = np.clip(np.repeat(sets["model"][:1], 11, 0) / 0.9, 0, 1)
    real, model = distribution_rows(
        sets["real"], sets["other"], {"gan": collapsed}, features.offline_extractor(), pairs=40, draws=10
    )
    assert model["ms_ssim"] > 0.999 > real["ms_ssim_high"] and model["four_g_r_ssim"] > real["four_g_r_ssim_high"]
    assert model["fid"] > 2 * real["fid"] and model["recall"] < real["recall"] and model["coverage"] < real["coverage"]


def test_half_samples_have_the_spread_of_samples():
    """Halves of one sample spread as whole samples do: the interval is about as wide as that of 200 new samples."""
    rng = np.random.default_rng(0)

    def sample():
        return rng.normal(size=(60, 3)), rng.normal(size=(60, 3)) + [1, 0, 0]

    values = [metrics.frechet_distance(*sample()) for _ in range(200)]
    low, high = np.quantile(values, [0.025, 0.975])
    found = [evaluation._distance("fid", metrics.frechet_distance, *sample(), 60, 0) for _ in range(30)]
    width = np.mean([row["fid_high"] - row["fid_low"] for row in found])
    assert 0.75 < width / (high - low) < 1.35
    held = np.mean([row["fid_low"] <= np.mean(values) <= row["fid_high"] for row in found])
    assert held >= 0.8


def test_foreign_features_on_another_grid_do_not_compare(sets):
    own = features.Extractor("MedicalNet", "a" * 64, True, means().function)
    assert "on 16x20x16 voxels: not comparable" in evaluation.fid_note(own, sets["real"])
    assert "not comparable" not in evaluation.fid_note(own, np.empty((0, 160, 224, 160)))
    assert "not comparable" in evaluation.fid_note(means(), np.empty((0, 160, 224, 160)))


def test_sets_that_do_not_fit_are_refused(sets):
    real, other, model = sets["real"], sets["other"], sets["model"]
    for systems, own, words in (
        ({"real": model}, (), "none is 'real'"),
        ({"model": model}, ("other",), "own_n must name systems"),
        ({"model": model[:1]}, (), "model: volumes"),
        ({"model": model[:, :-1]}, (), "reference's grid"),
        ({"model": model[:, None]}, (), "reference's grid"),
        ({"model": model * 2}, (), r"\[0, 1\]"),
        ({"model": model * np.nan}, (), r"\[0, 1\]"),
    ):
        with pytest.raises(BrainLDMError, match=words):
            distribution_rows(real, other, systems, means(), own)
    with pytest.raises(BrainLDMError, match="reference: volumes"):
        distribution_rows(real[0], other, {}, means())
