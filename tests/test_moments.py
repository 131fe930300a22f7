"""Moments of features: those of the whole table however it was cut, FID from them, and files that run no code."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_metrics import gaussians

from brainldm_core import features, metrics, moments
from brainldm_core.errors import BrainLDMError


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 30), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_moments_are_those_of_the_table_however_it_was_cut(sizes, gathered, seed):
    table = gaussians(sum(sizes), 2, 4, seed)[0] + 5
    parts = np.split(table, np.cumsum(sizes)[:-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "MERGED_ROWS", gathered)
        found = metrics.feature_moments(parts)
    steps = metrics.feature_moments(parts[:1])
    for part in parts[1:]:
        steps = steps.update(part)
    expected = np.cov(table, rowvar=False) if len(table) > 1 else np.zeros((4, 4))
    for one in (found, steps):
        assert one.n == len(table) and one.covariance.dtype == torch.float64
        assert np.allclose(one.mean, table.mean(0), rtol=1e-12, atol=1e-12)
        assert np.allclose(one.covariance, expected, rtol=1e-10, atol=1e-12)


def test_digits_are_not_lost_far_from_the_origin():
    table = np.random.default_rng(0).normal(size=(4000, 3)) + 1e7
    found = metrics.feature_moments(np.array_split(table, 50))
    exact = np.cov(table - 1e7, rowvar=False)
    assert np.allclose(found.covariance, exact, atol=1e-7)
    plain = table.T @ table / 4000 - np.outer(table.mean(0), table.mean(0))  # sums of squares lose them
    assert np.abs(plain - exact).max() > 1e-3


@pytest.mark.parametrize(
    ("n", "m", "width", "rel"),
    [(200, 150, 6, 1e-9), (300, 90, 40, 1e-9), (8, 12, 30, 1e-6), (5, 90, 20, 1e-6), (150, 100, 256, 1e-6)],
)
def test_frechet_distance_from_moments_is_that_of_tables(n, m, width, rel):
    a, b = gaussians(n, m, width)
    expected = metrics.frechet_distance(a, b)
    one, two = (metrics.feature_moments(np.array_split(table, 3)) for table in (a, b))
    for pair in ((one, two), (a, two), (one, torch.from_numpy(b))):
        assert metrics.frechet_distance(*pair) == pytest.approx(expected, rel=rel)
    assert metrics.frechet_distance(one, one) == pytest.approx(0, abs=1e-9 * float(one.covariance.trace()))


def test_rank_is_known_from_the_number_of_rows():
    """Rounding gives the covariance of few rows more directions than they have; their roots are far from small."""
    a, _ = gaussians(6, 2, 200)
    found = metrics.feature_moments([1e3 * a])
    assert found.root().shape == (5, 200)
    assert torch.allclose(found.root().T @ found.root(), found.covariance, rtol=1e-9, atol=1e-6)
    same = np.repeat(a[:3], 40, 0)  # many rows of rank 2
    assert metrics.frechet_distance(metrics.feature_moments([same]), a) == pytest.approx(
        metrics.frechet_distance(same, a), rel=1e-6
    )


def test_moments_of_a_set_on_demand(on_demand):
    volumes = on_demand(np.random.default_rng(0).random((11, 16, 16, 16), np.float32))
    extractor = features.offline_extractor()
    found = metrics.feature_moments(features.extract_batches(extractor, volumes, batch=4, device="cpu"), extractor)
    assert volumes.reads == list(range(11)) and volumes.largest == 4
    table = features.extract(extractor, volumes.volumes, batch=4)
    assert np.allclose(found.covariance, np.cov(table.astype(float), rowvar=False), rtol=1e-9, atol=1e-15)
    assert (found.extractor, found.sha256) == (extractor.name, extractor.sha256)


def test_saved_moments_are_the_same_and_know_their_extractor(tmp_path):
    extractor, other = (features.Extractor(name, name * 64, False, lambda x: x) for name in "ab")
    table, path = gaussians(30, 2, 7)[0], tmp_path / "real.npz"
    one = metrics.feature_moments([table], extractor)
    one.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["real.npz"]
    found = metrics.load_moments(path)
    assert found.n == 30 and torch.equal(found.mean, one.mean) and torch.equal(found.covariance, one.covariance)
    assert (found.extractor, found.sha256) == ("a", "a" * 64)
    assert metrics.frechet_distance(found, one.update(table + 1)) > 0
    with pytest.raises(BrainLDMError, match=r"features of a \(aaaaaaaaaaaa\) and b"):
        metrics.frechet_distance(found, metrics.feature_moments([table], other))
    assert metrics.frechet_distance(found, table + 2) == pytest.approx(4 * 7)  # a table does not say whose it is
    with pytest.raises(BrainLDMError, match="7 and 3 a volume"):
        metrics.frechet_distance(found, table[:, :3])


class _Evil:
    def __reduce__(self):
        return (pytest.fail, ("code of a file was run",))


def test_files_that_hold_no_moments_are_refused(tmp_path):
    path = tmp_path / "real.npz"
    with pytest.raises(BrainLDMError, match="no such file"):
        metrics.load_moments(path)
    good = {"n": 5, "mu": np.zeros(2), "sigma": np.eye(2), "extractor": "a", "sha256": "b"}
    evil = np.empty(2, object)
    evil[:] = [_Evil(), _Evil()]
    changes = [{"mu": evil}, {"n": 0}, {"n": "many"}, {"sigma": np.eye(3)}, {"sigma": np.full((2, 2), np.nan)}]
    changes += [{"mu": np.zeros((1, 2))}, {"mu": np.array(["a", "b"])}, {"mu": np.zeros(2, np.float32)}]
    for change in changes:
        np.savez(path, **good | change)
        with pytest.raises(BrainLDMError, match="holds no moments"):
            metrics.load_moments(path)
    np.savez(path, mu=good["mu"], sigma=good["sigma"])  # as others write it: without n its rank is not known
    with pytest.raises(BrainLDMError, match="holds no moments"):
        metrics.load_moments(path)
    np.savez(path, **good)
    whole, one = path.read_bytes(), np.eye(2).tobytes()
    assert whole.count(one) == 1
    for content in (b"", b"words", whole[:-40], pickle.dumps(_Evil()), whole.replace(one, one[::-1])):
        path.write_bytes(content)
        with pytest.raises(BrainLDMError, match="holds no moments"):
            metrics.load_moments(path)


def test_features_that_do_not_fit_are_refused():
    for bad in ([], [np.zeros(4)], [np.zeros((0, 4))], [np.full((2, 4), np.nan)]):
        with pytest.raises(BrainLDMError, match="features"):
            metrics.feature_moments(bad)
    one = metrics.feature_moments([np.zeros((1, 4))])
    with pytest.raises(BrainLDMError, match="at least 2"):
        metrics.frechet_distance(one, np.eye(4))
