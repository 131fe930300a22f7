"""Training of the segmenter on images rendered from label maps: no scan is seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .anatomies import split_anatomies
from .label_maps import find_label_maps
from .loop import LOSSES, STATE, adamw, draw_rows, fit, step_generator
from .networks import build_segmenter, load_checkpoint, parameter_count, save_checkpoint
from .processes import prepare_accelerator, update
from .profiles import Optimisation
from .records import Record, read_record, sha256
from .rendering import TISSUES, VOXEL_MM, Person, read_person, render
from .segmentation import LICENCE
from .training import WEIGHTS

CHANNELS = (16, 32, 48, 48, 48)
SHAPE = (80, 96, 80)  # voxels of 2 mm
PEOPLE = 1  # a step; each gives two images, never one: one image alone is several times slower on a processor
PLAN = Optimisation(
    steps=20_000,  # an upper cap: the budget of seconds ends the training
    batch_size=2 * PEOPLE,
    learning_rate=0.002,
    warmup_steps=20,
    final_learning_rate_fraction=0.01,
    weight_decay=0.0001,
    gradient_clip=1.0,
    ema_decay=0.99,
)


def read_people(labels: Path, split: str) -> list[Person]:
    """The people of a split of a folder of label maps, split as simulated cohorts are.

    Raises:
        BrainLDMError: no folder, fewer than three maps, or one that is none.
    """
    paths = find_label_maps(labels)
    return [read_person(paths[name]) for name in split_anatomies(list(paths))[split]]


def segmentation_loss() -> nn.Module:
    """Dice and cross-entropy of logits and shares (B, 5, D, H, W), both least where the shares themselves are given."""
    from monai.losses import DiceCELoss

    return DiceCELoss(softmax=True, squared_pred=True, batch=True)  # squared: plain Dice would harden mixed voxels


def train_segmenter(
    labels: Path,
    folder: Path,
    seconds: float = 1800.0,
    seed: int = 0,
    plan: Optimisation = PLAN,
    channels: Sequence[int] = CHANNELS,
    shape: Sequence[int] = SHAPE,
    progress: bool = True,
) -> dict[str, Any]:
    """Train the segmenter on the training people of ``labels`` for ``seconds``, or return its record if that is done.

    It resumes where it was stopped. ``seconds`` are those of the steps, without the reading of the maps.
    """
    if (done := read_record(folder)) is not None:
        return done
    paths = find_label_maps(labels)
    names = split_anatomies(list(paths))["train"]
    settings = {"plan": plan.model_dump(mode="json"), "channels": list(channels), "shape": list(shape)}
    settings |= {"seconds": seconds, "people": names}
    inputs = {name: sha256(paths[name]) for name in names}
    record = Record(folder, "segmentation_training.train_segmenter", settings, inputs, seed)
    people = [read_person(paths[name]) for name in names]
    torch.manual_seed(seed)
    accelerator = prepare_accelerator()
    mine = [slice(None)]  # one process, all at once: the loss is one of the whole batch
    network = accelerator.prepare(build_segmenter(channels).to(memory_format=torch.channels_last_3d))
    optimiser = adamw(network.parameters(), plan)
    loss_of = segmentation_loss()

    def step(index: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        chosen = draw_rows(len(people), plan.batch_size // 2, seed, index)
        pairs = [render(people[row], shape, generator) for row in chosen]
        images, tissues = (torch.cat(parts).to(accelerator.device) for parts in zip(*pairs, strict=True))

        def segment(some: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            with accelerator.autocast():
                logits = network(images[some])
            loss = loss_of(logits.float(), tissues[some])
            return loss, {"loss": loss}

        return update(accelerator, optimiser, [network], segment, mine, plan.gradient_clip)

    key = {"settings": settings, "inputs": inputs, "seed": seed}
    bare = accelerator.unwrap_model(network)
    fitted = fit(
        folder, key, {"segmenter": bare}, {"segmenter": optimiser}, "segmenter", step, plan, seed, progress, seconds
    )
    training = {"seed": seed, "steps": fitted.steps, "seconds": round(fitted.seconds, 1), "people": names}
    config = {"kind": "segmenter", "channels": list(channels), "voxel_mm": VOXEL_MM, "tissues": list(TISSUES)}
    save_checkpoint(folder / WEIGHTS, fitted.weights, config | {"training": training})
    record.earlier_seconds = fitted.earlier_seconds
    precision = accelerator.mixed_precision
    finished = record.finish(
        [folder / WEIGHTS, folder / LOSSES], parameters=parameter_count(bare), precision=precision, **training
    )
    (folder / STATE).unlink(missing_ok=True)  # after the record: a kill in between loses no training
    return finished


def export_segmenter(folder: Path, out: Path) -> Path:
    """Write the averaged weights of a finished training in half precision, with its record and their licence."""
    tensors, config = load_checkpoint(Path(folder) / WEIGHTS, "segmenter")
    config |= {"licence": LICENCE, "record": read_record(folder)}
    save_checkpoint(out, {name: value.half() for name, value in tensors.items()}, config)
    return out


def check_on_people(labels: Path, split: str, draws: int = 4, seed: int = 1) -> list[dict[str, float]]:
    """Volumes (ml) asked of and found by the segmenter that ships, on images of people that it was not trained on."""
    from .segmentation import load_segmenter

    network, rows = load_segmenter(), []
    for person in read_people(labels, split):
        for draw in range(draws):
            images, tissues = render(person, (96, 112, 96), step_generator(seed, draw))
            with torch.inference_mode():
                found = network(images).softmax(1)
            for kind, truth, share in zip(("head", "brain only"), tissues, found, strict=True):
                rows.append({"person": person.name, "kind": kind} | compare(truth.numpy(), share.numpy()))
    return rows


def compare(truth: np.ndarray, found: np.ndarray) -> Mapping[str, Any]:
    """Volumes (ml) of ventricles, brain and head by shares (5, D, H, W), and the Dice overlap of the ventricles."""
    parts = {"lateral": slice(4, 5), "brain": slice(2, 4), "intracranial": slice(1, 5)}
    ml = VOXEL_MM**3 / 1000
    row = {
        f"{name}_{kind}_ml": float(shares[part].sum()) * ml
        for name, part in parts.items()
        for kind, shares in (("true", truth), ("found", found))
    }
    first, second = (shares.argmax(0) == 4 for shares in (truth, found))
    return row | {"dice": float(2 * (first & second).sum() / max(1, first.sum() + second.sum()))}
