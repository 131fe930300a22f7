"""Weights that others give (law 6): opened after their checksum, as tensors only, and held once by their network."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from .errors import BrainLDMError
from .fetch import data_folder, fault
from .manifests import load_manifest


def checked(name: str, folder: Path | None = None) -> dict[str, Path]:
    """Files of a manifest by their names, each of them compared with its size and checksum before any is opened.

    Args:
        folder: where they lie; default where ``brainldm data fetch`` puts them.

    Raises:
        BrainLDMError: one is missing or is another file.
    """
    folder = data_folder() / name if folder is None else Path(folder)
    paths = {file.name: folder / file.name for file in load_manifest(name).files}
    for file in load_manifest(name).files:
        if (wrong := fault(file, paths[file.name])) == "missing":
            raise BrainLDMError(f"{paths[file.name]}: missing; get it with: brainldm data fetch {name}")
        elif wrong is not None:
            raise BrainLDMError(
                f"{paths[file.name]}: {wrong}, so it is not opened; delete it, then: brainldm data fetch {name}"
            )
    return paths


def read_state(path: Path, part: str | None = None) -> dict[str, torch.Tensor]:
    """Tensors of a file of torch by their names, on the CPU, without the ``module.`` of a data-parallel network.

    Args:
        part: key under which the file holds them; None: it holds nothing else.

    Raises:
        BrainLDMError: the file holds no tensors, or something else than tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = {name.removeprefix("module."): value for name, value in (content[part] if part else content).items()}
        if not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise TypeError
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise BrainLDMError(f"{path}: holds no weights that load ({type(error).__name__}); fetch it again") from None
    return state


def filled(build: Callable[[], nn.Module], state: dict[str, torch.Tensor], path: Path, what: str) -> nn.Module:
    """A network with these tensors for its weights, float32 and in evaluation mode; they are not copied.

    ``build`` is called without memory for weights. Counters of batches, which old files lack, are no weights.

    Raises:
        BrainLDMError: a tensor is missing, is too many, or has another shape.
    """
    with torch.device("meta"):
        network = build()
    counters = {name: torch.tensor(0) for name in network.state_dict() if name.endswith("num_batches_tracked")}
    weights = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    try:
        network.load_state_dict(counters | weights, assign=True)
    except RuntimeError as error:
        line = str(error).splitlines()[1].strip()
        raise BrainLDMError(f"{path}: is not {what} ({line}); fetch it again, or choose what fits it") from None
    return network.eval().requires_grad_(False)
