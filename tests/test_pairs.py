"""Means over random pairs: of different volumes, as single calls give them, read as seldom as the memory allows."""

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_metrics import volumes

from brainldm_core import metrics, pairs
from brainldm_core.errors import BrainLDMError


@given(st.integers(2, 40), st.integers(1, 900), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_pairs_are_of_different_volumes_and_none_comes_twice(n, pairs, seed):
    rows = metrics.draw_pairs(n, pairs, seed)
    assert len(rows) == min(pairs, n * (n - 1) // 2)
    assert rows.min() >= 0 and rows.max() < n and (rows[:, 0] != rows[:, 1]).all()
    assert len({frozenset(row) for row in rows.tolist()}) == len(rows)
    assert (rows == metrics.draw_pairs(n, pairs, seed)).all()


def test_pairs_of_very_many_volumes_are_drawn_evenly():
    rows = metrics.draw_pairs(100_000, 4000)
    assert len(rows) == 4000 and (rows[:, 0] != rows[:, 1]).all()
    assert np.abs(rows.mean(0) - 50_000).max() < 4 * 28_868 / np.sqrt(4000)


@pytest.mark.parametrize("metric", [metrics.ms_ssim, metrics.four_g_r_ssim])
def test_mean_over_pairs_is_that_of_single_calls(metric, monkeypatch):
    x = volumes(7)
    rows = metrics.draw_pairs(7, 12, seed=4)
    expected = np.mean([metric(x[i : i + 1], x[j : j + 1]).item() for i, j in rows])
    found = metrics.pair_mean(metric, x, pairs=12, seed=4)
    assert found.value == pytest.approx(expected, abs=1e-6) and (found.pairs, found.n) == (12, 7)
    assert found.low < found.value < found.high
    plain = metrics.pair_mean(lambda a, b: metric(a, b), x, pairs=12, seed=4)  # nothing shared between pairs
    monkeypatch.setattr(pairs, "CACHE_BYTES", 0)
    monkeypatch.setattr(pairs, "BATCH_VOXELS", 2 * 16 * 20 * 16)
    for other in (plain, metrics.pair_mean(metric, x, pairs=12, seed=4)):
        assert (other.value, other.error) == pytest.approx((found.value, found.error), abs=1e-6)


def test_error_of_a_mean_over_pairs_is_that_of_the_volumes():
    # For a metric f(x) + f(y) the mean over all pairs is twice the mean of f: its error is known.
    level = np.random.default_rng(0).uniform(size=30).astype(np.float32)
    x = torch.from_numpy(level)[:, None, None, None, None].expand(-1, 1, 7, 7, 7)
    found = metrics.pair_mean(lambda a, b: a[:, 0, 0, 0, 0] + b[:, 0, 0, 0, 0], x, pairs=435)
    assert found.value == pytest.approx(2 * level.mean(), rel=1e-6)
    assert found.error == pytest.approx(2 * level.std(ddof=1) / np.sqrt(30), rel=1e-6)
    assert found.high - found.value == pytest.approx(2.0452 * found.error, rel=1e-4)  # Student's t, 29 degrees


def test_few_volumes_have_a_mean_without_an_interval():
    found = metrics.pair_mean(metrics.ms_ssim, volumes(2))
    assert found.pairs == 1 and np.isnan([found.error, found.low, found.high]).all()
    for n, number in ((1, 10), (3, 0)):
        with pytest.raises(BrainLDMError, match="pair"):
            metrics.pair_mean(metrics.ms_ssim, volumes(n), number)


@given(st.integers(2, 30), st.integers(1, 300), st.integers(2, 12), st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_every_pair_is_visited_once_in_whatever_room(n, number, room, seed):
    rows = metrics.draw_pairs(n, number, seed)
    order = pairs.visiting_order(rows, room)
    assert sorted(order.tolist()) == list(range(len(rows)))
    if room >= n:
        assert order.tolist() == sorted(order.tolist())  # as drawn: batches, and so bits, do not change


@pytest.mark.parametrize("metric", [metrics.ms_ssim, metrics.four_g_r_ssim])
def test_a_set_on_demand_has_the_values_of_an_array(metric, on_demand):
    x = volumes(9)[:, 0].numpy()
    expected = metrics.pair_mean(metric, torch.from_numpy(x)[:, None], pairs=20)
    found = on_demand(x)
    assert (
        metrics.pair_mean(metric, found, pairs=20, device="cpu") == expected == metrics.pair_mean(metric, x, pairs=20)
    )
    assert sorted(found.reads) == list(range(9)) and found.largest == 1


@pytest.mark.parametrize(("n", "number", "room", "most"), [(200, 200, 12, 210), (30, 435, 8, 110), (30, 60, 2, 70)])
def test_volumes_are_read_as_seldom_as_the_memory_allows(n, number, room, most, on_demand, monkeypatch):
    x = on_demand(np.random.default_rng(0).random((n, 8, 8, 8), np.float32))
    rows = metrics.draw_pairs(n, number)

    def difference(one, two):
        return (one - two).abs().mean((1, 2, 3, 4))

    monkeypatch.setattr(pairs, "CACHE_BYTES", room * 8**3 * 4)
    monkeypatch.setattr(pairs, "BATCH_VOXELS", 1)
    values = pairs.pair_values(difference, x, rows)
    expected = np.abs(x.volumes[rows[:, 0]] - x.volumes[rows[:, 1]]).mean((1, 2, 3))
    assert np.allclose(values, expected, atol=1e-6)  # each at its own place, whatever the order
    distinct = len(np.unique(rows))
    assert distinct <= len(x.reads) <= most and len(x.reads) < 0.6 * min(rows.size, 2 * distinct * number / n)


def test_no_more_is_held_than_there_is_room_for(on_demand, monkeypatch):
    x = on_demand(volumes(40, (8, 8, 8))[:, 0].numpy())
    alive, most = [], 0

    def prepare(volume):
        nonlocal most
        alive.append(weakref.ref(part := volume.clone()))
        most = max(most, sum(ref() is not None for ref in alive))
        return (part,)

    def metric(one, two): ...

    monkeypatch.setitem(pairs.SPLIT, metric, (prepare, lambda a, b: (a[0] - b[0]).abs().amax((1, 2, 3, 4)), 1))
    monkeypatch.setattr(pairs, "CACHE_BYTES", 6 * 8**3 * 4)
    monkeypatch.setattr(pairs, "BATCH_VOXELS", 2 * 8**3)
    rows = metrics.draw_pairs(40, 100)
    values = pairs.pair_values(metric, x, rows)
    assert most <= 6 and np.allclose(values, np.abs(x.volumes[rows[:, 0]] - x.volumes[rows[:, 1]]).max((1, 2, 3)))


def test_sets_that_do_not_fit_are_refused(on_demand):
    x = volumes(3)[:, 0].numpy()
    for bad in (x[:, 0], 2 * x, x * np.nan, (255 * x).astype(np.uint8), x[:, None].repeat(2, 1)):
        with pytest.raises(BrainLDMError, match="volumes"):
            metrics.pair_mean(metrics.ms_ssim, on_demand(bad))
    late = x.copy()
    late[2] += 1  # met when its turn comes
    with pytest.raises(BrainLDMError, match="scale them first"):
        metrics.pair_mean(metrics.ms_ssim, on_demand(late))
    with pytest.raises(BrainLDMError, match="finer grid"):
        metrics.pair_mean(metrics.ms_ssim, on_demand(x[:, :6]))

    class Broken(on_demand):
        def __getitem__(self, index):
            return super().__getitem__(index)[:, :-1]

    with pytest.raises(BrainLDMError, match="gave some of shape"):
        metrics.pair_mean(metrics.ms_ssim, Broken(x))
