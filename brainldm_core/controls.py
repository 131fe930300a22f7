"""Sliders as numbers: where they end, what the training cohort had, and the command that asks for the same brain.

Section 3.3 of the paper asks for values outside the training range. Nothing here needs a notebook.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .covariates import Ranges

NAMES = {
    "age_years": ("age", "years", 1.0),
    "ventricular_volume_ml": ("ventricles", "ml", 1.0),
    "brain_volume_ml": ("brain", "ml", 5.0),
}
MEASURED = {
    "ventricular_volume_ml": "measured_lateral_ventricles_ml",
    "brain_volume_ml": "measured_brain_volume_ml",
}
BEYOND = 0.25  # sliders go this fraction of the training range further on either side
OPTIONS = {"age_years": "--age", "sex": "--sex", "ventricular_volume_ml": "--ventricles", "brain_volume_ml": "--brain"}


@dataclass(frozen=True)
class Control:
    """One slider: its title and unit, where it ends, and the range that the training cohort had.

    ``ticks`` are values that a chapter speaks of, with what stands above them.
    """

    column: str
    title: str
    unit: str
    low: float
    high: float
    trained_low: float
    trained_high: float
    step: float
    ticks: tuple[tuple[float, str], ...] = ()

    @property
    def middle(self) -> float:
        """Where the slider starts: the middle of the training range, on a step."""
        return self.at(0.5)

    def at(self, place: float) -> float:
        """The value at a fraction of the training range (0: its low end), on a step of the slider."""
        return round((self.trained_low + place * (self.trained_high - self.trained_low)) / self.step) * self.step

    def share(self, value: float) -> float:
        """How far along the slider a value lies: 0 at its left end, 1 at its right."""
        return (value - self.low) / (self.high - self.low)

    def beyond(self, value: float) -> bool:
        """Whether a value lies outside the training range, whose ends belong to the inside."""
        return not self.trained_low <= value <= self.trained_high


def controls(ranges: Ranges, reach: Mapping[str, Sequence[float]] | None = None) -> list[Control]:
    """Sliders for age, ventricular and brain volume; they end a little outside the training range, never below 0.

    Args:
        reach: covariate -> values in the paper's normalised units that its slider has to reach, and bears as ticks.
            Such a slider may go below 0 ml, as the paper's panel of -0.5 does.
    """
    from .sweeps import physical

    found = []
    for column, (title, unit, step) in NAMES.items():
        low, high = ranges[column]
        wanted = list((reach or {}).get(column, ()))
        ticks = tuple((float(at), f"{c:g}") for at, c in zip(physical(ranges, column, wanted), wanted, strict=True))
        beyond = BEYOND * (high - low)
        first = min([low - beyond, *(at - step for at, _ in ticks)])
        last = max([high + beyond, *(at + step for at, _ in ticks)])
        # Ends on steps, so that every stop of the slider is a round number.
        first, last = math.floor(first / step) * step, math.ceil(last / step) * step
        found.append(Control(column, title, unit, first if ticks else max(0.0, first), last, low, high, step, ticks))
    return found


def number(value: float) -> str:
    """A value as a reader wants it: no digits after the point where they are 0, at most one."""
    return f"{round(value, 1) + 0.0:.10g}"


def said_outside(control: Control, value: float) -> str:
    """The warning of one covariate; empty inside the training range."""
    if not control.beyond(value):
        return ""
    return (
        f"{control.title} {number(value)} {control.unit} lies outside the training range "
        f"({number(control.trained_low)} to {number(control.trained_high)} {control.unit}): the model extrapolates"
    )


def outside(request: Mapping[str, Any], ranges: Ranges) -> list[str]:
    """What of a request lies outside the training range, in words; empty when nothing does."""
    return [said for control in controls(ranges) if (said := said_outside(control, request[control.column]))]


def command(
    request: Mapping[str, Any], person: int, sampler: str, steps: int, weights: Path | None = None, out: str = ""
) -> str:
    """The line that draws the same brain on a terminal: the first sample of seed ``person`` (law 3).

    Args:
        weights: folder of the run; None: the weights that ship.
        out: folder to write to; by default one that is named after the request.
    """
    words = []
    for column, option in OPTIONS.items():
        unit = "ml" if column.endswith("_ml") else ""
        value = request[column] if column == "sex" else f"{request[column]:.10g}{unit}"
        # argparse would take a value that begins with a minus for another option.
        words += [f"{option}={value}"] if value.startswith("-") else [option, value]
    words += ["--n", "1", "--seed", str(person), "--sampler", sampler]
    words += [] if sampler == "ddpm" else ["--steps", str(steps)]
    words += [] if weights is None else ["--weights", str(weights)]
    words += ["--out", out or f"brains/{_named(request)}-seed{person}-{sampler}"]
    return shlex.join(["brainldm", "sample", *words])


def _named(request: Mapping[str, Any]) -> str:
    """A request as the name of a folder, such as ``70y-F-45ml-1150ml``."""
    age, ventricles, brain = (f"{request[column]:.10g}" for column in NAMES)
    return f"{age}y-{request['sex']}-{ventricles}ml-{brain}ml"
