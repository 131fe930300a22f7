"""The training loop: resumable, averaged, and replayable.

Every random draw of a step comes from (seed, step) alone, so a resumed run continues as if it had never stopped, and
several processes draw what one would.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm import tqdm

from .errors import BrainLDMError
from .networks import load_checkpoint, save_checkpoint
from .processes import agree
from .profiles import Optimisation
from .records import write_text

if TYPE_CHECKING:
    from accelerate import Accelerator

STATE, LOSSES, EVENTS = "state.safetensors", "losses.csv", "tensorboard"
Step = Callable[[int, torch.Generator], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Fit:
    """Outcome of a training: averaged weights, seconds of work before this process and in all, and steps in all."""

    weights: dict[str, torch.Tensor]
    earlier_seconds: float
    seconds: float
    steps: int


def adamw(parameters: Iterable[nn.Parameter], settings: Optimisation, rate: float | None = None) -> torch.optim.AdamW:
    """The optimiser of a training's settings, at another learning ``rate`` if there is one."""
    rate = settings.learning_rate if rate is None else rate
    return torch.optim.AdamW(parameters, rate, settings.momenta, weight_decay=settings.weight_decay, fused=True)


def learning_rate(settings: Optimisation, base: float, step: int, spent: float | None = None) -> float:
    """Linear warm-up, then a cosine from ``base`` down to its final fraction.

    The cosine goes by steps, or by ``spent``, the share of a budget of seconds that is used up.
    """
    if step < settings.warmup_steps:
        return base * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    done = done if spent is None else min(1.0, spent)
    floor = settings.final_learning_rate_fraction
    return base * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of all random draws of a step; also seeds the global one, which some layers use."""
    mixed = (seed * 1_000_003 + step * 7_919 + 17) % 2**63
    torch.manual_seed(mixed)
    return torch.Generator().manual_seed(mixed)


def draw_rows(count: int, batch: int, seed: int, step: int) -> torch.Tensor:
    """Rows of a step's batch: every epoch visits each of ``count`` rows once, in an order of its own."""
    rows = []
    for place in range(step * batch, (step + 1) * batch):
        epoch, index = divmod(place, count)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
        rows.append(order[index])
    return torch.stack(rows)


def ema_update(average: dict[str, torch.Tensor], network: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of weights, with the decay warmed up so that the first steps are forgotten."""
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, value in network.state_dict().items():
            average[name].lerp_(value.float(), 1 - decay) if value.is_floating_point() else average[name].copy_(value)


@contextmanager
def stop_on_sigterm():
    """Turn SIGTERM (a cluster's notice) into an event, so that the loop saves its state before it leaves."""
    asked = threading.Event()
    main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, lambda *_: asked.set()) if main else None
    try:
        yield asked
    finally:
        if main:
            signal.signal(signal.SIGTERM, previous)


def fit(
    folder: Path,
    key: dict[str, Any],
    networks: dict[str, nn.Module],
    optimisers: dict[str, torch.optim.Optimizer],
    averaged: str,
    step: Step,
    settings: Optimisation,
    seed: int,
    progress: bool = True,
    budget: float | None = None,
    *,
    accelerator: Accelerator | None = None,
    batch_names: Callable[[int], str] | None = None,
) -> Fit:
    """Run ``step`` until ``settings.steps``, saving state as it goes; return the averaged weights.

    Of several processes the main one writes; all have the same weights, averages and clock.

    Args:
        key: what this training is made from; a state made from anything else is refused.
        averaged: name of the network whose weights are averaged (``ema_decay`` 0: its last weights).
        step: does one optimiser step and returns the losses to log.
        budget: seconds after which training ends, those before a resume included; ``steps`` is then an upper cap.
        batch_names: says which scans a step's batch has, for the error of a loss that is not finite.

    Raises:
        BrainLDMError: a loss is not finite (step and batch are named), or the saved state is of another training.
    """
    main = accelerator is None or accelerator.is_main_process
    average = {name: value.detach().clone() for name, value in networks[averaged].state_dict().items()}
    base = {name: optimiser.param_groups[0]["lr"] for name, optimiser in optimisers.items()}
    first, seconds, rows = _restore(folder, key, networks, optimisers, average)
    cap = settings.steps if budget is None or seconds < budget else first
    total, title = (settings.steps, folder.name) if budget is None else (None, f"{folder.name}, {budget:.0f} s")
    with (
        stop_on_sigterm() as asked,
        tensorboard(folder, first, main and first < cap) as events,
        tqdm(total=total, initial=first, desc=title, disable=None if progress and main else True) as bar,
    ):
        begin = time.perf_counter()
        saved = now = 0.0
        for index in range(first, cap):
            spent = None if budget is None else (seconds + now) / budget
            for name, optimiser in optimisers.items():
                optimiser.param_groups[0]["lr"] = learning_rate(settings, base[name], index, spent)
            found = step(index, step_generator(seed, index))
            losses, stop, now = agree(accelerator, found, asked.is_set(), time.perf_counter() - begin)
            if not all(map(math.isfinite, losses.values())):
                names = f"; its batch: {batch_names(index)}" if batch_names else ""
                raise BrainLDMError(
                    f"{folder}: loss is not finite at step {index} (seed {seed}, {losses}){names}; if all scans are "
                    "sound, lower learning_rate in the profile, delete that folder and start again"
                )
            ema_update(average, networks[averaged], settings.ema_decay, index)
            rows.append({"step": index, **losses, "seconds": round(seconds + now, 3)})
            bar.update()
            bar.set_postfix({name: f"{loss:.3f}" for name, loss in losses.items()}, refresh=False)
            for name, loss in losses.items() if events else ():
                events.add_scalar(name, loss, index)
            last = index == settings.steps - 1 or (budget is not None and seconds + now >= budget)
            if stop or now - saved > settings.checkpoint_seconds or last:
                if events:
                    events.flush()
                if main:
                    _save(folder, key, networks, optimisers, average, index + 1, seconds + now, rows)
                saved = now
                if stop:
                    if accelerator is not None:
                        accelerator.wait_for_everyone()  # who leaves first ends the others
                    raise SystemExit(143)
            if last:
                break
        return Fit(average, seconds, seconds + time.perf_counter() - begin, len(rows))


@contextmanager
def tensorboard(folder: Path, first: int, wanted: bool = True):
    """A writer of TensorBoard's events where it is installed, else None; it replaces points from step ``first`` on."""
    if not wanted or importlib.util.find_spec("tensorboard") is None:
        yield None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / EVENTS), purge_step=first) as events:
        yield events


def _save(folder, key, networks, optimisers, average, step, seconds, rows) -> None:
    tensors = {f"average/{name}": value for name, value in average.items()}
    for owner, network in networks.items():
        tensors |= {f"{owner}/{name}": value for name, value in network.state_dict().items()}
    for owner, optimiser in optimisers.items():
        for index, values in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{owner}/{index}/{name}": value for name, value in values.items()}
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / LOSSES, table.getvalue())
    # State last: it names the step up to which the loss table is believed.
    save_checkpoint(folder / STATE, tensors, {"kind": "state", "key": key, "step": step, "seconds": seconds})


def _restore(folder, key, networks, optimisers, average) -> tuple[int, float, list[dict]]:
    if not (folder / STATE).exists():
        return 0, 0.0, []
    tensors, config = load_checkpoint(folder / STATE, "state")
    if config["key"] != key:
        raise BrainLDMError(f"{folder}: holds the state of another training; delete that folder to start again")
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        owner, rest = name.split("/", 1)
        parts.setdefault(owner, {})[rest] = value
    for name, value in parts["average"].items():
        average[name].copy_(value)
    for owner, network in networks.items():
        network.load_state_dict(parts[owner])
    for owner, optimiser in optimisers.items():
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in parts.get("optimiser", {}).items():
            whose, index, entry = name.split("/")
            if whose == owner:
                state.setdefault(int(index), {})[entry] = value
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    with open(folder / LOSSES, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) < config["step"]]
    return config["step"], config["seconds"], rows
