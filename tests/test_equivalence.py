"""Equivalence: whole intervals inside a margin, enough pairs, and claims that are seldom wrong."""

import numpy as np
import pytest

from brainldm_core.equivalence import equivalence
from brainldm_core.errors import BrainLDMError


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
