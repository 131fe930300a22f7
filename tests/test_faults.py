"""Broken generators have the fault that they are named after, and no other."""

import numpy as np
import pytest

from brainldm_core import faults, spectra
from brainldm_core.errors import BrainLDMError


@pytest.fixture(scope="module")
def people():
    """Soft textured balls (30, 16, 20, 16) of different radii, and the radii."""
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.arange(side) - (side - 1) / 2 for side in (16, 20, 16)), indexing="ij")
    distance, radii = np.sqrt(sum(axis**2 for axis in axes)), rng.uniform(4, 7, 30)
    shapes = 0.7 / (1 + np.exp(2 * (distance - radii[:, None, None, None])))
    grain = rng.normal(0, 0.02, shapes.shape) * (shapes > 0.1)
    return np.clip(shapes + grain, 0, 1).astype(np.float32), radii


def test_a_gaussian_takes_power_by_its_formula(people):
    wave = 0.5 + 0.2 * np.cos(2 * np.pi * np.arange(64) / 8)[:, None, None] * np.ones((64, 8, 8))
    soft = faults.blurred(wave.astype(np.float32), None, voxels=1.0)[8:-8, 4, 4] - 0.5
    inner = faults.blurred(np.ones((64, 8, 8), np.float32), None, voxels=1.0)[8:-8, 4, 4]
    expected = np.exp(-2 * (np.pi / 8) ** 2)  # amplitude at 1/8 cycle a voxel: exp(-2 pi^2 f^2 s^2)
    assert np.ptp(soft / inner) / 0.4 == pytest.approx(expected, rel=0.02)
    volumes, _ = people
    blurred = [np.stack([faults.blurred(v, None, s) for v in volumes[:4]]) for s in (0, 0.4, 0.8)]
    fine, *less = (spectra.power_spectrum(part, 1.0)[1][:, -1] for part in blurred)
    assert (less[0] < fine).all() and (less[1] < less[0]).all()


def test_noise_darkness_checkers_and_holes_are_what_they_say(people):
    volume, rng = people[0][0], np.random.default_rng(1)
    head = volume > spectra.HEAD
    grain = faults.noisy(volume, rng, 0.03) - volume
    assert grain[head].std() == pytest.approx(0.03, rel=0.1) and not grain[~head].any()
    assert faults.dimmed(volume, rng, 0.1) == pytest.approx(0.9 * volume, rel=1e-6)
    board = faults.checkered(np.full((4, 4, 4), 0.5, np.float32), rng, 0.1)
    assert board[0, 0, 0] == pytest.approx(0.5 * 1.1**3) and board[1, 1, 1] == pytest.approx(0.5 * 0.9**3)
    assert board[::2, 1::2, ::2] == pytest.approx(np.full((2, 2, 2), 0.5 * 1.1**2 * 0.9))
    gone = (faults.holed(volume, rng, 2.0) == 0) & (volume > 0)
    assert 8 <= gone.sum() <= 33  # a ball of radius 2 has 33 voxels
    assert not faults.holed(np.zeros((4, 4, 4), np.float32), rng, 2.0).any()  # nothing to make a hole in
    ratio = faults.varied(volume, rng, 0.05)[head] / volume[head]
    assert np.ptp(ratio) < 1e-6 and 0 < abs(ratio[0] - 1) <= 0.05


def test_every_fault_shows_and_was_asked_for_whom_it_says(people):
    volumes, radii = people
    rows, seen = np.arange(0, 16), np.arange(16, 30)
    made = {(each.name, each.severity): each for each in faults.standard_faults(rows, seen, radii[:, None], 10.0)}
    assert len({name for name, _ in made}) == 9 and ("blurred", "3 mm") in made
    for each in made.values():
        assert len(each.shown) == len(each.asked) == len(rows)
        found = each.volumes(volumes)
        assert found.shape == volumes[rows].shape and found.dtype == np.float32 and 0 <= found.min() <= found.max() <= 1
        assert np.array_equal(found, each.volumes(volumes))  # the same again
    plain = [name for name, each in made.items() if np.array_equal(each.volumes(volumes), volumes[rows])]
    assert {name for name, _ in plain} == {"covariate-blind"}
    assert (made["covariate-blind", "100%"].asked != rows).all()
    assert (made["covariate-blind", "25%"].asked != rows).sum() == 4
    few = made["mode-collapsed", "4 people"]
    assert set(few.shown) <= set(rows[:4]) and set(rows[:4]) <= set(few.shown)  # each of the few is nearest to itself
    assert set(made["memorised", "all, 5% changed"].shown) <= set(seen)
    assert np.isin(made["memorised", "50% exact"].shown, seen).sum() == 8
    short = made["tail missing", "30%"]
    assert radii[short.shown].max() <= np.quantile(radii[rows], 0.7) and (short.asked == rows).all()


def test_wrong_people_are_told():
    values = np.ones((6, 1))
    for rows, seen in (([0, 1], [1, 2]), ([0], [1, 2])):
        with pytest.raises(BrainLDMError, match="give at least 2 each, nobody twice"):
            faults.standard_faults(rows, seen, values, 1.0)
