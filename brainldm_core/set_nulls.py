"""Null and ceiling rows of ``brainldm evaluate``: systems that are no models, as far as two folders allow them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from . import faults, nifti_sets
from .errors import BrainLDMError
from .faults import Change
from .nifti_sets import NiftiSet, first, requests

if TYPE_CHECKING:
    from .evaluate_folders import Question
    from .evaluation_work import Work
    from .sampling import Pipeline

FAULTY = ("real, blurred", "real, noisy", "real, few people")
NULL_VOLUMES, NULL_BYTES = 128, 2**30  # of a row that a model has to make


@dataclass(frozen=True)
class Altered:
    """A fault done to a volume (D, H, W), with noise of the volume's own; known by its name."""

    name: str
    change: Change = field(repr=False)

    def __call__(self, volume: np.ndarray) -> np.ndarray:
        return self.change(volume, np.random.default_rng(crc32(volume.tobytes())))


def known_faults(other: NiftiSet) -> dict[str, NiftiSet]:
    """Other real volumes with a fault that a reader can picture: the scale on which to read the samples' row."""
    some = first(other, NULL_VOLUMES)
    few = max(1, len(some) // 8)
    sets = (
        some.changed(Altered("blurred 0.5", partial(faults.blurred, voxels=0.5))),
        some.changed(Altered("noisy 0.03", partial(faults.noisy, level=0.03))),
        some.take(np.arange(len(some)) % few),
    )
    return dict(zip(FAULTY, sets, strict=True))


def nulls(question: Question, sets: dict[str, NiftiSet], work: Work) -> tuple[dict[str, NiftiSet], dict[str, str]]:
    """Systems that are no models, as far as they can be made here; and what could not be, and why.

    With training volumes and requests: a resampler, the training volume of the nearest covariates. With weights of
    this project: reconstructions of other real volumes, and draws of a Gaussian fitted to latents.
    """
    from .covariates import fit_ranges
    from .nulls import nearest_by_covariates

    systems, missing = {}, {}
    asked, why = requests(question.samples, sets["samples"])
    if "training" not in sets:
        missing["resampler"] = "it needs the generator's training volumes; give --training FOLDER"
    else:
        known, why_not = requests(question.training or question.real, sets["training"])
        if asked is None or known is None:
            missing["resampler"] = f"{why or why_not} ({'samples' if asked is None else 'training'})"
        else:
            twins = nearest_by_covariates(known, asked, fit_ranges(known))
            systems["resampler"] = sets["training"].take(twins)
    if question.weights is None:
        for name in ("reconstructions", "Gaussian in the latent"):
            missing[name] = "it needs a model of this project; give --weights RUN"
        return systems, missing
    return systems | _from_model(question, sets, work), missing


def _from_model(question: Question, sets: dict[str, NiftiSet], work: Work) -> dict[str, NiftiSet]:
    """Reconstructions of other real volumes and draws of a Gaussian in the latent, written and opened as sets."""
    import torch

    from .nulls import latent_gaussian
    from .samples import reconstruct
    from .sampling import load_pipeline
    from .training import encode_latents

    pipeline = load_pipeline(None if str(question.weights) == "shipped" else question.weights)
    other = sets["other real"]
    grid = pipeline.profile.grid
    if other.grid != tuple(grid.shape):
        shapes = ["x".join(map(str, shape)) for shape in (grid.shape, other.grid)]
        raise BrainLDMError(f"{question.weights}: its volumes have {shapes[0]} voxels and the sets {shapes[1]}")
    count = min(NULL_VOLUMES, NULL_BYTES // (4 * int(np.prod(other.grid))), len(other), len(sets["samples"]))

    def rebuilt() -> np.ndarray:
        return reconstruct(pipeline, torch.from_numpy(other[:count][:, None]))

    def drawn() -> np.ndarray:
        source = sets.get("training", other)
        source = source[: NULL_BYTES // (4 * int(np.prod(other.grid)))]
        latents = encode_latents(pipeline.autoencoder, torch.from_numpy(source[:, None]))[0]
        return latent_gaussian(pipeline, latents, count, question.seed)

    made = {"reconstructions": rebuilt, "Gaussian in the latent": drawn}
    return {name: _kept(work, name, make, other, pipeline) for name, make in made.items()}


def _kept(work: Work, name: str, make: Any, like: NiftiSet, pipeline: Pipeline) -> NiftiSet:
    """Volumes of a model on the grid of a set, in a folder of their own."""
    from .dataset import save_volume
    from .records import atomic_folder, settings_hash
    from .samples import participant

    key = settings_hash([like.key, pipeline.sha256])[:16]
    folder = work.folder / f"{name.replace(' ', '-').lower()}-{key}"
    if not folder.is_dir():
        with atomic_folder(folder) as draft:
            for number, volume in enumerate(make()):
                save_volume(draft / f"{participant(number)}_T1w.nii.gz", volume, like.affine)
    return nifti_sets.open_set(folder, ignore_affines=True)
