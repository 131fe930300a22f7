"""Quick start of a command: what its process need not import, and how long ago it began."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OPTIONAL = (
    *("IPython", "PIL", "bs4", "huggingface_hub", "ignite", "jsonschema", "matplotlib", "mlflow", "nibabel", "psutil"),
    *("requests", "scipy", "skimage", "sklearn", "tensorboard", "torchvision", "transformers"),
)
"""Packages that MONAI imports where they are installed and does without where they are not."""


@contextmanager
def without(names: tuple[str, ...]) -> Iterator[None]:
    """Imports inside the block do not find these packages, unless they are imported already; afterwards they do."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # None: Python's own sign for a package that cannot be imported
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def import_networks(own_process: bool) -> None:
    """Import the networks, in a process of our own no more than they need: seconds become tenths of a second.

    monai-generative imports all of MONAI, which needs NumPy and torch alone but imports whatever else it may use. As
    MONAI then goes without these extras for good, this is for a command that draws and ends, not for a notebook.
    """
    with without(OPTIONAL if own_process else ()):
        import generative.networks.nets  # noqa: F401


def seconds_since_start() -> float:
    """Seconds since this process began, the start of Python included; to a hundredth of a second."""
    try:
        began = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, AttributeError):  # not Linux: since this module was imported
        return time.perf_counter() - _IMPORTED


_IMPORTED = time.perf_counter()
