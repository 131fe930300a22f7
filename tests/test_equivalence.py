"""Equivalence: whole intervals inside a margin, enough pairs, and claims that are seldom wrong."""

import numpy as np
import pytest

from brainldm_core.equivalence import (
    equivalence,
    paired_distance,
    trial_table,
    trial_words,
    verdict,
)
from brainldm_core.errors import BrainLDMError
from brainldm_core.metrics import frechet_distance


def test_equivalence_needs_the_whole_interval_and_enough_pairs():
    rng = np.random.default_rng(0)
    differences = rng.normal(0.01, 0.1, 400)
    found = equivalence(differences, 0.05)
    half = 1.9659 * differences.std(ddof=1) / 20  # Student's t, 399 degrees
    assert found.difference == pytest.approx(differences.mean())
    assert (found.low, found.high) == pytest.approx((found.difference - half, found.difference + half), rel=1e-3)
    assert found.shown and not equivalence(differences, 0.012).shown
    assert not equivalence(differences + 0.1, 0.05).shown and not equivalence(differences - 0.1, 0.05).shown
    assert equivalence(differences[:256], 0.1).shown and not equivalence(differences[:255], 0.1).shown
    for bad, margin in (([1.0], 1), ([1, np.nan], 1), ([[1, 2]], 1), ([1, 2], 0), ([1, 2], np.nan)):
        with pytest.raises(BrainLDMError, match="margin"):
            equivalence(np.array(bad), margin)


def test_a_difference_as_large_as_the_margin_is_seldom_called_equivalent_and_none_mostly_is():
    rng = np.random.default_rng(1)
    at_the_margin = [equivalence(rng.normal(0.25, 1, 256), 0.25).shown for _ in range(1500)]
    none = [equivalence(rng.normal(0, 1, 256), 0.25).shown for _ in range(500)]
    assert 0.01 < np.mean(at_the_margin) < 0.045  # 2.5 % by the formula
    assert np.mean(none) > 0.9  # 95.8 %


def test_differences_that_share_a_request_count_once():
    rng = np.random.default_rng(2)
    request = np.repeat(np.arange(300), 4)
    differences = rng.normal(0, 1, 300)[request] + 0.1 * rng.normal(size=1200)
    together, alone = equivalence(differences, 0.2, request), equivalence(differences, 0.2)
    assert (together.n, alone.n) == (300, 1200) and together.difference == pytest.approx(alone.difference)
    assert together.high - together.low == pytest.approx(2 * (alone.high - alone.low), rel=0.05)
    assert equivalence(differences[:1000], 1, request[:1000]).n == 250
    assert not equivalence(differences[:1000], 1, request[:1000]).shown  # a thousand differences, 250 requests
    named = equivalence(differences, 0.2, [f"row {row}" for row in request])
    assert (named.n, named.low) == (300, pytest.approx(together.low))
    with pytest.raises(BrainLDMError, match="groups"):
        equivalence(differences, 0.2, request[:3])


def test_halves_of_paired_sets_give_the_interval_of_a_paired_mean():
    rng = np.random.default_rng(3)
    other = 5 * rng.normal(size=(400, 1))  # what both share is much larger than what tells them apart
    one = other + rng.normal(0.1, 0.5, (400, 1))
    found = paired_distance(lambda real, rows: rows.mean() - real.mean(), rng.normal(size=(300, 1)), one, other, 0.2)
    exact = equivalence((one - other)[:, 0], 0.2)
    assert found.difference == pytest.approx(exact.difference) and found.n == 400 and found.margin == 0.2
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.2 * (exact.high - exact.low))


def test_a_set_is_equivalent_to_itself_and_a_shifted_one_is_not():
    rng = np.random.default_rng(4)
    real, drawn = rng.normal(size=(300, 4)), rng.normal(size=(260, 4))
    same = paired_distance(frechet_distance, real, drawn, drawn.copy(), 1e-6, draws=20)
    assert (same.difference, same.low, same.high, same.shown) == (0, 0, 0, True)
    worse = paired_distance(frechet_distance, real, drawn + 0.5, drawn, 0.05, draws=50)
    assert worse.low > 0.05 and not worse.shown
    assert worse.difference == pytest.approx(frechet_distance(real, drawn + 0.5) - frechet_distance(real, drawn))
    back = paired_distance(frechet_distance, real, drawn, drawn + 0.5, 0.05, draws=50)
    assert (back.low, back.high) == pytest.approx((-worse.high, -worse.low), rel=0.5)
    assert set(same.record()) == {"n", "difference", "low", "high", "margin", "shown"}
    for one, margin in ((drawn[:9], 1), (drawn, 0), (drawn, np.nan)):
        with pytest.raises(BrainLDMError, match="margin"):
            paired_distance(frechet_distance, real, one, drawn, margin)


def a_trial() -> dict:
    """Two pairs of samplers: one shown in all, one in none; a third not drawn yet."""
    rng = np.random.default_rng(5)
    near = {"unit": "ml", **equivalence(rng.normal(0, 1, 256), 0.4).record()}
    unsure = {"unit": "", **equivalence(rng.normal(0.05, 1, 256), 0.1).record()}
    far = {"unit": "ml", **equivalence(rng.normal(-2, 1, 256), 0.4).record()}
    pairs = [("DDIM 50", "DDPM", {"brain": near}), ("DDIM 10", "DDIM 50", {"brain": far, "FID": unsure})]
    comparisons = [{"one": one, "other": other, "rows": rows} for one, other, rows in pairs]
    return {"comparisons": comparisons, "missing": ["DDIM 3: 4 of 64 pieces"]}


def test_a_trial_says_what_was_shown_and_what_was_not():
    trial = a_trial()
    assert [verdict(row) for pair in trial["comparisons"] for row in pair["rows"].values()] == [
        "shown",
        "differs",
        "not shown",
    ]
    table = trial_table(trial)
    assert table.index.tolist() == [
        ("DDIM 50 less DDPM", "brain (ml)"),
        ("DDIM 10 less DDIM 50", "brain (ml)"),
        ("DDIM 10 less DDIM 50", "FID"),
    ]
    assert table["as good as"].tolist() == ["shown", "differs", "not shown"] and set(table["n"]) == {256}
    row = trial["comparisons"][1]["rows"]["brain"]
    assert table.iloc[1]["difference [95 %]"] == f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
    first, second, missing = trial_words(trial).split("\n\n")
    assert first == "DDIM 50 is as good as DDPM in all 1 quantities together."
    assert "**not shown** to be as good as DDIM 50" in second and "Not shown: FID." in second and "Inside" not in second
    assert "Whole interval beyond the margin: brain." in second and "DDIM 3: 4 of 64" in missing


def test_without_a_trial_a_page_says_so():
    assert trial_table(None).empty and "No such trial has been published" in trial_words(None)


def test_halves_of_paired_sets_spread_at_least_as_new_sets_do():
    rng = np.random.default_rng(6)

    def sample():
        one = rng.normal(size=(64, 4)) + [0.5, 0, 0, 0]
        return rng.normal(size=(64, 4)), one, 0.9 * one + 0.3 * rng.normal(size=(64, 4))

    gaps = [
        frechet_distance(real, one) - frechet_distance(real, other)
        for real, one, other in (sample() for _ in range(200))
    ]
    low, high = np.quantile(gaps, [0.025, 0.975])
    found = [paired_distance(frechet_distance, *sample(), 1, draws=60) for _ in range(25)]
    assert 0.85 < np.mean([row.high - row.low for row in found]) / (high - low) < 1.6
    assert np.mean([row.low <= np.mean(gaps) <= row.high for row in found]) >= 0.88
