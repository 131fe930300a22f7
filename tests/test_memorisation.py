"""Copies of training brains are found, and an innocent model is not accused."""

from itertools import combinations

import numpy as np
import pytest
import torch

from brainldm_core import memorisation, neighbours
from brainldm_core.errors import BrainLDMError
from brainldm_core.memorisation import audit, nearest, plant_duplicates, power


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def test_nearest_is_what_a_loop_over_pairs_finds():
    samples, references = draw(0, 7, 3, 4) + 1000, draw(1, 9, 12).reshape(9, 3, 4) + 1000
    distance, index = nearest(torch.from_numpy(samples), references)
    for row in range(7):
        apart = [np.sqrt(((samples[row] - reference) ** 2).sum()) for reference in references]
        assert index[row] == np.argmin(apart) and distance[row] == pytest.approx(min(apart), rel=1e-12)
        assert neighbours.distances(samples, references, chunk=2)[row] == pytest.approx(apart, rel=1e-6)
    far, same = nearest(references[[4, 2]], references)
    assert far.tolist() == [0, 0] and same.tolist() == [4, 2]  # exactly 0 although the values are near 1000


def test_the_share_is_the_mean_over_all_subsets_of_equal_size():
    samples, training, held_out = draw(2, 6, 2), draw(3, 7, 2), draw(4, 3, 2)
    wins = []
    for subset in combinations(range(7), 3):
        wins.append(nearest(samples, training[list(subset)])[0] < nearest(samples, held_out)[0])
    assert audit(samples, training, held_out, draws=2).share == pytest.approx(np.mean(wins), abs=1e-12)
    turned = audit(samples, held_out, training, draws=2)  # fewer training than held-out subjects
    assert turned.share == pytest.approx(1 - np.mean(wins), abs=1e-12)


def test_an_innocent_model_is_not_accused():
    found = [audit(draw(s, 40, 5), draw(s + 500, 60, 5), draw(s + 900, 30, 5), draws=99, seed=s) for s in range(40)]
    shares = np.array([each.share for each in found])
    assert abs(shares.mean() - 0.5) < 4 * shares.std() / np.sqrt(len(shares))
    assert np.mean([each.low <= 0.5 <= each.high for each in found]) >= 0.9
    assert np.mean([each.innocent[0] <= each.share <= each.innocent[1] for each in found]) >= 0.85
    assert np.mean([each.p_value <= 0.05 for each in found]) <= 0.15
    assert np.mean([each.flagged for each in found]) < 0.08  # stated: 0.05
    assert np.mean([each.area for each in found]) == pytest.approx(0.5, abs=0.05)


def test_copies_give_one():
    training, held_out = draw(0, 40, 6), draw(1, 40, 6)
    for noise in (0.0, 0.02):
        copies, rows = plant_duplicates(training, 30, noise=noise, seed=2)
        found = audit(copies, training, held_out, draws=99)
        assert (found.share, found.flagged, found.area, found.p_value) == (1.0, 1.0, 1.0, 0.01)
        assert found.high == 1.0 and found.low > 0.5 and found.innocent[1] < 1
        assert (nearest(copies, training)[1] == rows).all()
    assert found.result(extractor="latents") == {
        "value": 1.0, "low": round(found.low, 4), "high": 1.0, "n": 30, "floor": 0.5, "extractor": "latents",
    }  # fmt: skip
    few = audit(plant_duplicates(training, 30, noise=0.02)[0], training, held_out[:19], draws=99)
    assert few.share < 1 and few.flagged == few.area == 1.0 and few.p_value <= 0.02  # most sources not in the subset


def test_a_tenth_of_copies_shows_in_the_flagged():
    training, held_out = draw(0, 300, 8), draw(1, 99, 8)
    mixed = np.concatenate([draw(2, 90, 8), plant_duplicates(training, 10, noise=0.02)[0].numpy()])
    found = audit(mixed, training, held_out, draws=99)
    assert (found.ratios[90:] < found.threshold).all()
    assert 0.10 <= found.flagged <= 0.2 and found.n == 100


def test_subjects_are_the_unit():
    people, noise = draw(0, 30, 6), draw(1, 30, 4, 6) * 0.01
    scans = (people[:, None] + noise).reshape(120, 6)  # four scans a person
    names, held_out = np.repeat(np.arange(30), 4), draw(3, 30, 6)
    by_person = audit(draw(4, 50, 6), scans, held_out, names, [f"h{index}" for index in range(30)], draws=99)
    assert by_person.subjects == (30, 30)
    assert by_person.share == pytest.approx(audit(draw(4, 50, 6), people, held_out, draws=9).share, abs=0.05)
    twice = np.repeat(held_out, 2, axis=0)  # a person's own second scan must not make the person look unlike others
    names = np.repeat(np.arange(30), 2)
    threshold = audit(draw(4, 50, 6), scans, twice, None, names, draws=9).threshold
    assert threshold == pytest.approx(audit(draw(4, 50, 6), scans, held_out, draws=9).threshold)
    with pytest.raises(BrainLDMError, match="subject 7: is in training and held out"):
        audit(draw(4, 5, 6), people[:8], held_out[:2], list(range(8)), [7, 99])


def test_equal_distances_are_nobodys_fault():
    training = draw(0, 20, 3)
    shares = [audit(draw(1, 30, 3), training, training, draws=1, seed=seed).share for seed in range(40)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05)


def test_planted_copies_are_what_they_say():
    volumes = torch.from_numpy(draw(0, 12, 1, 5, 6, 7)).float()
    copies, rows = plant_duplicates(volumes, 12, seed=1)
    assert torch.equal(copies, volumes[torch.from_numpy(rows)]) and sorted(rows) == list(range(12))
    noisy, _ = plant_duplicates(volumes, 12, noise=0.3, seed=1)
    assert float((noisy - copies).std()) == pytest.approx(0.3 * float(volumes.std()), rel=0.05)
    moved, _ = plant_duplicates(volumes, 12, shift=1, seed=1)
    for one, other in zip(copies, moved, strict=True):
        turns = [
            torch.roll(one, steps, (1, 2, 3))
            for steps in np.array(np.meshgrid(*[[-1, 1]] * 3)).T.reshape(-1, 3).tolist()
        ]
        assert any(torch.equal(other, turn) for turn in turns)
    bright, _ = plant_duplicates(volumes, 12, gain=0.1, seed=1)
    factors = (bright / copies).flatten(1)
    assert float(factors.std(1).max()) < 1e-5 and 0.02 < float((factors.mean(1) - 1).abs().max()) <= 0.1
    assert torch.equal(noisy, plant_duplicates(volumes, 12, noise=0.3, seed=1)[0])


def test_power_falls_with_the_noise_and_states_its_false_positives():
    latents = torch.from_numpy(draw(0, 60, 2, 4, 4, 4)).float()
    held_out = torch.from_numpy(draw(1, 60, 2, 4, 4, 4)).float()
    levels = [{"noise": 0.01}, {"noise": 0.3}, {"noise": 3.0}, {"noise": 0.01, "gain": 0.05}]
    table = power(latents, held_out, levels, count=40)
    assert [row["found"] for row in table[:2]] == [1, 1] and table[3]["found"] == table[3]["traced"] == 1
    assert table[2]["found"] < 0.5 and table[2]["traced"] < 0.9
    assert table[0] == {"noise": 0.01, "found": 1.0, "traced": 1.0, "n": 40, "false_positive_rate": 0.05}
    blind = power(
        latents, held_out, levels[:1], embed=lambda rows: rows[:, :1, :1, 0, 0] * 0 + torch.rand(len(rows), 1, 1)
    )
    assert blind[0]["found"] < 0.5  # a space that does not see the brain finds no copies
    too_few = power(latents, held_out[:10], levels[:1], false_positive_rate=0.05)
    assert too_few[0]["found"] == 0  # ten held-out subjects cannot promise one in twenty


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: nearest(draw(0, 3, 4), draw(1, 3, 5)), "samples have 4 values each and references 5"),
        (lambda: nearest(draw(0, 3, 4) * np.nan, draw(1, 3, 4)), "samples: .* not all finite"),
        (lambda: nearest(draw(0, 3, 4), draw(1, 0, 4)), "references: .* none"),
        (lambda: audit(draw(0, 3, 4), draw(1, 3, 4), draw(2, 3, 4), [1, 2]), "2 names for 3 references"),
        (lambda: plant_duplicates(draw(0, 3, 4), 4), "4 planted copies of 3 rows: choose 1 to 3"),
        (lambda: plant_duplicates(draw(0, 3, 4), 2, shift=1), "no three axes"),
    ],
)
def test_rows_that_do_not_fit_are_told(call, words):
    with pytest.raises(BrainLDMError, match=words):
        call()


def test_chance_that_a_subset_misses():
    from math import comb

    expected = [comb(9 - near, 4) / comb(9, 4) for near in range(10)]
    assert memorisation._none_chosen(9, 4) == pytest.approx(expected)
