"""The brain alone from a whole head, by the network of deepbet (Fisch et al. 2023), which lies in its own package.

An optional extra, imported late: deepbet brings a desktop interface and a top-level package named ``data`` with it.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BrainLDMError
from .records import sha256

TOOL = "deepbet 1.0.2"
NETWORKS = {  # a TorchScript file is code: only those of this version are run
    "bbox_model.pt": "39a7b2b5f799faa1391ea97bfcdc0b9299f20d84f2316a4ff8918dc4685e40aa",
    "model.pt": "de8ee7c69654d0dd3935dc4a5d84571d8ecf4637a6bfc01df399c4c2bc86e0fd",
}
INSTALL = f"pip install {TOOL.replace(' ', '==')}"
SMALLEST_ML = 700.0  # adult brains with the fluid around them hold 1,000 to 2,000 ml


@lru_cache(maxsize=1)
def load_extractor() -> Any:
    """deepbet's extractor on the CPU, of which ``run(image)`` gives brain, mask and volume.

    Raises:
        BrainLDMError: deepbet is missing, broken or of another version.
    """
    try:
        deepbet = import_module("deepbet")
    except ImportError as error:
        raise BrainLDMError(f"--brain-extraction: needs deepbet ({error}); install it: {INSTALL}") from None
    folder = Path(deepbet.__file__).resolve().parents[1] / "data" / "models"
    for name, wanted in NETWORKS.items():
        if not (folder / name).is_file() or sha256(folder / name) != wanted:
            raise BrainLDMError(f"{folder / name}: is not the network of {TOOL}; install it: {INSTALL}")
    return deepbet.BrainExtraction(no_gpu=True)


def extract_brain(volume: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, float]:
    """Scan (D, H, W) of a whole head with 0 outside the brain, and the brain's volume (ml), inner fluid included.

    Raises:
        BrainLDMError: what was found cannot be a brain, or see ``load_extractor``.
    """
    import nibabel as nib
    import torch

    from .registration import BRAIN_LIMIT_ML

    extractor = load_extractor()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # workers stand side by side, and sums keep one order
    try:
        mask = extractor.run(nib.Nifti1Image(volume, affine))[1]
    except (AssertionError, ValueError, IndexError) as error:
        raise BrainLDMError(f"{TOOL} finds no brain ({error}); look at this scan") from None
    finally:
        torch.set_num_threads(threads)
    inside = np.asarray(mask.dataobj) > 0
    volume_ml = float(inside.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)
    if not SMALLEST_ML < volume_ml < BRAIN_LIMIT_ML:
        raise BrainLDMError(f"{TOOL} finds a brain of {volume_ml:.0f} ml, which is none; look at this scan")
    return volume * inside, volume_ml
