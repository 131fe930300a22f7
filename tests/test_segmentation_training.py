"""Training of the segmenter: resumable, replayable, and exported small; on phantoms of a few steps."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from brainldm_core import segmentation, segmentation_training
from brainldm_core.errors import BrainLDMError
from brainldm_core.networks import build_segmenter, load_checkpoint
from brainldm_core.profiles import Optimisation

PLAN = Optimisation(steps=3, batch_size=2, learning_rate=0.01, ema_decay=0.5)
SMALL = {"channels": (4, 4, 8), "shape": (16, 16, 16), "progress": False}


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """Three people: a ball of white matter in cortex, with a ventricle in it."""
    folder = tmp_path_factory.mktemp("labels")
    radius = np.sqrt(sum((axis - 29.5) ** 2 for axis in np.ogrid[:60, :60, :60]))
    for number, limits in enumerate([(5, 14, 20), (6, 15, 21), (7, 16, 22)]):
        values = np.select([radius < limit for limit in limits], [4, 2, 3], 0).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.eye(4)), folder / f"person{number}.nii.gz")
    return folder


def test_the_network_holds_each_weight_once():
    network = build_segmenter((4, 8, 8))
    names = list(network.state_dict())
    assert not any(name.startswith("skip_layers") for name in names)
    assert len(names) == len(list(network.parameters()))
    volumes = torch.randn(2, 1, 8, 12, 16)
    assert network(volumes).shape == (2, 5, 8, 12, 16)


def test_trains_resumes_and_exports(labels, tmp_path):
    whole = segmentation_training.train_segmenter(labels, tmp_path / "whole", 600, plan=PLAN, **SMALL)
    assert whole["results"]["steps"] == 3 and len(whole["results"]["people"]) == 1
    assert segmentation_training.train_segmenter(labels, tmp_path / "whole", 600, plan=PLAN, **SMALL) == whole

    # Stopped after two steps, then gone on with: the same weights.
    calls, render = [], segmentation_training.render

    def stopping(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return render(*arguments)

    eager = PLAN.model_copy(update={"checkpoint_seconds": 1e-9})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation_training, "render", stopping)
        with pytest.raises(KeyboardInterrupt):
            segmentation_training.train_segmenter(labels, tmp_path / "parts", 600, plan=eager, **SMALL)
    segmentation_training.train_segmenter(labels, tmp_path / "parts", 600, plan=eager, **SMALL)
    first, second = (load_checkpoint(tmp_path / name / "weights.safetensors")[0] for name in ("whole", "parts"))
    assert all(torch.allclose(first[name], second[name], atol=0.02) for name in first)

    path = segmentation_training.export_segmenter(tmp_path / "whole", tmp_path / "segmenter.safetensors")
    _, config = load_checkpoint(path, "segmenter")
    assert config["licence"] == segmentation.LICENCE and config["record"]["results"]["steps"] == 3
    segmentation.load_segmenter.cache_clear()
    assert segmentation.load_segmenter(path)(torch.randn(2, 1, 8, 8, 8)).shape == (2, 5, 8, 8, 8)
    segmentation.load_segmenter.cache_clear()


def test_the_loss_is_least_at_the_shares_themselves():
    loss = segmentation_training.segmentation_loss()
    shares = torch.softmax(torch.randn(2, 5, 8, 8, 8), 1)
    best = loss(shares.log(), shares)
    for change in (-0.5, 0.5):
        logits = shares.log()
        logits[:, 4] += change
        assert loss(logits, shares) > best
    assert loss(2 * shares.log(), shares) > best  # harder than the truth


def test_without_label_maps_it_says_so(tmp_path):
    with pytest.raises(BrainLDMError, match="no such folder"):
        segmentation_training.train_segmenter(tmp_path / "none", tmp_path / "out")
