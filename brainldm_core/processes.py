"""Several processes at one training, one GPU each: who writes, and which rows of a step's batch are whose.

``torchrun`` and ``accelerate launch`` start them, on one node or on several. The batch of a step is the same for any
number of them: every process draws all of it and computes its own rows, and gradients are averaged. A process takes its
rows in micro-batches where memory is short (``accumulation`` of the profile).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BrainLDMError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import nn

    from .profiles import Optimisation

PATIENCE = timedelta(hours=12)  # the others wait while the main process caches latents or writes a checkpoint

LossOf = Callable[[slice], "tuple[torch.Tensor, dict[str, torch.Tensor]]"]
"""Loss of some rows of a step's batch, and its parts to log."""


def count() -> int:
    """How many processes were started together; asked before torch is imported."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this process is the one that writes and speaks; asked before torch is imported."""
    return count() == 1 or int(os.environ.get("RANK", 0)) == 0


def prepare_accelerator() -> Accelerator:
    """Accelerate on a GPU or this processor, in bf16 where that is faster, with the processes started together."""
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs

    from .networks import mixed_precision

    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    handlers = [InitProcessGroupKwargs(timeout=PATIENCE)]
    return Accelerator(
        mixed_precision=mixed_precision(device),
        cpu=device.type == "cpu",
        kwargs_handlers=handlers if count() > 1 else None,
    )


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold a lock file for all processes started together: the main one takes it, the others wait until it has it."""
    from .runner import locked

    if count() == 1:
        with locked(lock):
            yield
        return
    with locked(lock) if is_main() else ExitStack():
        accelerator = prepare_accelerator()
        accelerator.wait_for_everyone()
        yield
        accelerator.end_training()


def parts(accelerator: Accelerator, plan: Optimisation) -> list[slice]:
    """Rows of a step's batch that this process computes, a slice for each micro-batch.

    Raises:
        BrainLDMError: the batch cannot be divided.
    """
    processes = accelerator.num_processes
    size, rest = divmod(plan.batch_size, processes * plan.accumulation)
    if rest:
        raise BrainLDMError(
            f"batch_size {plan.batch_size} cannot be divided among {processes} processes with accumulation "
            f"{plan.accumulation}; set a batch_size in the profile that {processes * plan.accumulation} divides"
        )
    first = accelerator.process_index * plan.accumulation
    return [slice(place * size, (place + 1) * size) for place in range(first, first + plan.accumulation)]


def update(
    accelerator: Accelerator,
    optimiser: torch.optim.Optimizer,
    networks: Sequence[nn.Module],
    loss_of: LossOf,
    rows: Sequence[slice],
    clip: float,
) -> dict[str, torch.Tensor]:
    """One optimiser step on networks by the mean loss over slices of rows, gradients clipped to the norm ``clip``.

    Gradients are averaged over processes once, with those of the last slice. Returns the mean of what there is to log.
    """
    optimiser.zero_grad(set_to_none=True)
    logged: list[dict[str, torch.Tensor]] = []
    for place, some in enumerate(rows):
        with ExitStack() as silent:
            for network in networks if place < len(rows) - 1 else ():
                silent.enter_context(accelerator.no_sync(network))
            loss, found = loss_of(some)
            accelerator.backward(loss / len(rows))
        logged.append({name: value.detach() for name, value in found.items()})
    accelerator.clip_grad_norm_([value for network in networks for value in network.parameters()], clip)
    optimiser.step()
    return {name: sum(found[name] for found in logged) / len(rows) for name in logged[0]}


def agree(
    accelerator: Accelerator | None, losses: dict[str, torch.Tensor], stop: bool, seconds: float
) -> tuple[dict[str, float], bool, float]:
    """Losses averaged over processes, whether any of them was asked to stop, and the seconds of the main one.

    Clocks and signals differ between processes; what they decide on must not.
    """
    if accelerator is None or accelerator.num_processes == 1:
        return {name: loss.item() for name, loss in losses.items()}, stop, seconds
    import torch

    mine = [loss.item() / accelerator.num_processes for loss in losses.values()]
    mine += [float(stop), seconds * accelerator.is_main_process]
    *means, stops, seconds = accelerator.reduce(
        torch.tensor(mine, dtype=torch.float64, device=accelerator.device), "sum"
    ).tolist()
    return dict(zip(losses, means, strict=True)), stops > 0, seconds
