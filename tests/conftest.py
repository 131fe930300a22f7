"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real scans, named by BRAINLDM_TEST_DATA; the test is skipped where there is none."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("BRAINLDM_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip("no real scans here; name their folder in BRAINLDM_TEST_DATA")
    return folder


class OnDemand:
    """Volumes (N, D, H, W) that are only given when asked for, with the numbers of all that were asked for so far."""

    def __init__(self, volumes: np.ndarray) -> None:
        self.volumes, self.reads, self.largest = volumes, [], 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.volumes.shape

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        assert isinstance(index, slice) or isinstance(index, np.ndarray) and index.dtype.kind == "i"
        found = np.arange(len(self.volumes))[index].tolist()
        self.reads += found
        self.largest = max(self.largest, len(found))
        return self.volumes[index].copy()


@pytest.fixture(scope="session")
def on_demand() -> type[OnDemand]:
    """A set of volumes that counts its reads."""
    return OnDemand
