"""Cross-talk, swaps and words about extrapolation, of answers that are known."""

import numpy as np
import pandas as pd
import pytest

from brainldm_core import interventions
from brainldm_core.conditioning import agreement


def test_words_about_extrapolation_follow_the_slopes():
    say = interventions.beyond_in_words
    assert "Above it, the slope is 0.48: the answer goes on" in say(
        "x", {"below": np.nan, "inside": 0.5, "above": 0.48}
    )
    assert "hardly follows" in say("x", {"below": 0.01, "inside": 0.5, "above": np.nan})
    assert "less than inside" in say("x", {"below": 0.25, "inside": 0.5, "above": np.nan})
    assert "turns round" in say("x", {"below": -0.5, "inside": 0.5, "above": np.nan})
    assert "further than inside" in say("x", {"below": 2.0, "inside": 0.5, "above": np.nan})
    for inside in (0.0, -1.0, np.nan):
        assert "says nothing of outside" in say("x", {"below": 1.0, "inside": inside, "above": 1.0})


TRUE = pd.DataFrame({"a": [0.5, 0.0, 0.1], "b": [0.2, 1.0, -0.3]}, index=["sex", "age_years", "brain_volume_ml"])
UNITS = {"sex": 1.0, "age_years": 10.0, "brain_volume_ml": 50.0, "a": 2.0, "b": 4.0}


def answers(noise_effect: float) -> pd.DataFrame:
    """What a linear model would answer to every covariate moved, from three noises."""
    rows = []
    for column, values in {"sex": ["F", "M"], "age_years": [50, 70], "brain_volume_ml": [1000, 1100, 1150]}.items():
        for noise in range(3):
            for value in values:
                x = (value == "M") * 1.0 if column == "sex" else value / UNITS[column]
                row = {"sex": "F", "age_years": 60, "brain_volume_ml": 1100, column: value, "moved": column}
                gain = {name: TRUE.loc[column, name] * (1 + noise_effect * (noise - 1)) for name in ("a", "b")}
                offset = 100 * noise
                rows.append(row | {"noise": noise} | {n: UNITS[n] * gain[n] * x + offset for n in gain})
    return pd.DataFrame(rows)


def test_cross_talk_recovers_the_matrix_of_a_linear_model_whatever_the_noise_adds():
    mean, error = interventions.cross_talk(answers(0.0), ["a", "b"], UNITS)
    pd.testing.assert_frame_equal(mean.loc[TRUE.index], TRUE, check_exact=False, atol=1e-9)
    assert (error.to_numpy() < 1e-9).all()
    mean, error = interventions.cross_talk(answers(0.5), ["a", "b"], UNITS)
    pd.testing.assert_frame_equal(mean.loc[TRUE.index], TRUE, check_exact=False, atol=1e-9)
    assert np.allclose(error.loc[TRUE.index], TRUE.abs() * 0.5 / np.sqrt(3))


def test_cross_talk_of_what_is_unknown_is_undefined():
    table = answers(0.0).assign(age_years=np.nan)
    mean, _ = interventions.cross_talk(table, ["a", "b"], UNITS | {"a": 0.0})
    assert mean.loc["age_years"].isna().all() and mean["a"].isna().all() and np.isfinite(mean.loc["sex", "b"])
    one = table[table["noise"] == 0]
    assert interventions.cross_talk(one, ["b"], UNITS)[1].isna().all(axis=None)


def test_largest_entry_off_the_diagonal():
    matrix = pd.DataFrame([[9.0, 0.1], [-0.4, 8.0]], index=["p", "q"], columns=["x", "y"])
    assert interventions.off_diagonal(matrix) == ("q", "x", -0.4)
    assert np.isnan(interventions.off_diagonal(matrix * np.nan)[2])


def test_swap_tells_request_from_noise():
    noise = np.array([0.0, 5.0, -3.0, 9.0])
    obeys = interventions.swap_test(np.stack([10 + 0 * noise, 40 + 0 * noise]), sign=1)
    assert obeys["follows the request"] == 1 and obeys["variance by request"] == pytest.approx(1)
    ignores = interventions.swap_test(np.stack([noise, noise]), sign=1)
    assert ignores["stays with the noise"] == 1 and ignores["variance by noise"] == pytest.approx(1)
    both = interventions.swap_test(np.stack([noise, noise + 6]), sign=1)
    # Pairs of noises that differ by less than 6: (0, 5), (0, -3), (5, 9).
    assert both["follows the request"] == pytest.approx(3 / 6) and both["stays with the noise"] == pytest.approx(3 / 6)
    assert both["variance by neither"] == pytest.approx(0, abs=1e-12)


def test_swap_against_the_request_is_neither_and_nothing_asked_is_undefined():
    found = np.array([[10.0, 10.0], [40.0, 40.0]])
    wrong = interventions.swap_test(found, sign=-1)
    assert wrong["follows the request"] == wrong["stays with the noise"] == 0
    assert np.isnan(interventions.swap_test(found, sign=0)["follows the request"])
    assert np.isnan(interventions.swap_test(np.ones((2, 3)), sign=1)["variance by noise"])


def test_words_about_regions_follow_slopes_and_intervals():
    x = np.arange(12.0)
    inside = agreement(x, x + 0.1 * (-1) ** x)
    outside = agreement(x, 0.3 * x + 0.1 * (-1) ** x)
    said = interventions.regions_in_words("ventricles", {"inside": inside, "outside": outside})
    assert "gives 1.00 ml inside the range (n = 12) and 0.30 ml outside it" in said and "do not overlap" in said
    assert said.startswith("**Ventricles**") and f"{outside.mae:.1f} ml outside" in said
    assert "slopes overlap" in interventions.regions_in_words("x", {"inside": inside, "outside": inside})
    assert "too few" in interventions.regions_in_words("x", {"inside": inside})
    flat = agreement(x, 0 * x)
    assert "no slope" in interventions.regions_in_words("x", {"inside": inside, "outside": flat})
