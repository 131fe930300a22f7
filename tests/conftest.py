"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real scans, named by BRAINLDM_TEST_DATA; the test is skipped where there is none."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("BRAINLDM_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip("no real scans here; name their folder in BRAINLDM_TEST_DATA")
    return folder
