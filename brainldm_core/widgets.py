"""The covariate explorer: sliders in years and millilitres, and the brain they ask for.

In JupyterLab the sliders are live. On a page, where no kernel answers, the same request is shown as one picture.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from . import figures
from .covariates import COLUMNS, Ranges

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .sampling import Pipeline

    Draw = Callable[[Mapping[str, Any]], np.ndarray]

NAMES = {
    "age_years": ("age", "years", 1.0),
    "ventricular_volume_ml": ("ventricles", "ml", 1.0),
    "brain_volume_ml": ("brain", "ml", 5.0),
}
BEYOND = 0.25  # sliders go this fraction of the training range further on either side


@dataclass(frozen=True)
class Control:
    """One slider: its title and unit, where it ends, and the range that the training cohort had."""

    column: str
    title: str
    unit: str
    low: float
    high: float
    trained_low: float
    trained_high: float
    step: float

    @property
    def middle(self) -> float:
        """Where the slider starts: the middle of the training range, on a step."""
        return round((self.trained_low + self.trained_high) / 2 / self.step) * self.step


def controls(ranges: Ranges) -> list[Control]:
    """Sliders for age, ventricular and brain volume; they end a little outside the training range, never below 0."""
    found = []
    for column, (title, unit, step) in NAMES.items():
        low, high = ranges[column]
        beyond = BEYOND * (high - low)
        found.append(
            Control(
                column,
                title,
                unit,
                max(0.0, float(np.floor(low - beyond))),
                float(np.ceil(high + beyond)),
                low,
                high,
                step,
            )
        )
    return found


def outside(request: Mapping[str, Any], ranges: Ranges) -> list[str]:
    """What of a request lies outside the training range, in words; empty when nothing does."""
    said = []
    for control in controls(ranges):
        value = request[control.column]
        if not control.trained_low <= value <= control.trained_high:
            said.append(
                f"{control.title} {value:g} {control.unit} lies outside the training range "
                f"({control.trained_low:.0f} to {control.trained_high:.0f} {control.unit}): the model extrapolates"
            )
    return said


def is_live() -> bool:
    """Whether somebody sits at a kernel: a notebook, and not one that the runner executes for a page."""
    from .runner import NONCE

    if os.environ.get(NONCE):
        return False
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None


def quick_steps(pipeline: Pipeline) -> int:
    """Steps of the explorer: fewer than a release has, as somebody waits (chapter 4 shows the difference)."""
    return min(20, pipeline.profile.sampling.steps)


def drawer(pipeline: Pipeline, sample_id: int = 0, steps: int = 20, seed: int = 0) -> Draw:
    """A function from a request to its volume (D, H, W), always from the noise of one sample id.

    A batch of two keeps an answer quick (one alone takes a slow path on CPUs); the voxels are those of the
    release within one quantisation step.
    """
    import warnings

    import pandas as pd

    from .sampling import sample

    sampling = pipeline.profile.sampling.model_copy(update={"batch_size": 2})
    small = replace(pipeline, profile=pipeline.profile.model_copy(update={"sampling": sampling}))

    def draw(request: Mapping[str, Any]) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the explorer says it in words beside the picture
            return sample(
                small, pd.DataFrame([dict(request)], columns=list(COLUMNS)), [sample_id], steps=steps, seed=seed
            )[0]

    return draw


def explorer(pipeline: Pipeline, draw: Draw | None = None, live: bool | None = None) -> Any:
    """The explorer for a pipeline: live ipywidgets where there is a kernel to answer, else a picture.

    ``draw`` and ``live`` replace the sampler and the choice, for tests.
    """
    if is_live() if live is None else live:
        return live_explorer(pipeline.ranges, draw or drawer(pipeline, steps=quick_steps(pipeline)))
    return still_explorer(pipeline)


def live_explorer(ranges: Ranges, draw: Draw) -> Any:
    """Sliders (released, not dragged, they ask for a brain), three planes of the answer, and a line of warnings."""
    import ipywidgets as widgets

    wide = {"description_width": "90px"}
    sliders = {
        control.column: widgets.FloatSlider(
            value=control.middle, min=control.low, max=control.high, step=control.step, readout_format=".0f",
            description=f"{control.title} ({control.unit})", continuous_update=False, style=wide,
            layout={"width": "420px"},
        )
        for control in controls(ranges)
    }  # fmt: skip
    marks = [
        widgets.Label(f"trained on {control.trained_low:.0f} to {control.trained_high:.0f} {control.unit}")
        for control in controls(ranges)
    ]
    sex = widgets.ToggleButtons(options=[("female", "F"), ("male", "M")], description="sex", style=wide)
    picture, words = widgets.Image(format="png"), widgets.HTML()

    def show(_change: Any = None) -> None:
        request = {"sex": sex.value, **{column: slider.value for column, slider in sliders.items()}}
        words.value = "<br>".join(outside(request, ranges)) or "inside the training range"
        picture.value = _png(figures.three_planes(draw(request)[None], ["generated"]))

    for control in (sex, *sliders.values()):
        control.observe(show, names="value")
    show()
    rows = [widgets.HBox(list(pair)) for pair in zip(sliders.values(), marks, strict=True)]
    return widgets.VBox([sex, *rows, picture, words])


def still_explorer(pipeline: Pipeline, sample_id: int = 0, seed: int = 0) -> Figure:
    """The explorer without a kernel: ventricular volume by column, brain volume by row, one noise for all.

    The last column lies outside the training range (marked *).
    """
    import warnings

    import pandas as pd

    from .sampling import sample

    age, ventricles, brain = controls(pipeline.ranges)
    across = [_at(ventricles, place) for place in (0.05, 0.35, 0.65, 0.95, 1.2)]
    down = [_at(brain, place) for place in (0.85, 0.5, 0.15)]
    rows = [
        {"sex": "F", "age_years": age.middle, "ventricular_volume_ml": x, "brain_volume_ml": y}
        for y in down
        for x in across
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the last column is meant to lie outside, and its title says so
        volumes = sample(pipeline, pd.DataFrame(rows), [sample_id] * len(rows), steps=quick_steps(pipeline), seed=seed)
    volumes = volumes.reshape(len(down), len(across), *volumes.shape[1:])
    titles = [f"ventricles {x:.0f} ml" + (" *" if x > ventricles.trained_high else "") for x in across]
    kinds = {f"brain {y:.0f} ml": volumes[index] for index, y in enumerate(down)}
    return figures.rows_of(kinds, titles)


def _at(control: Control, place: float) -> float:
    """The value at a fraction of the training range, on a step of the slider."""
    return (
        round((control.trained_low + place * (control.trained_high - control.trained_low)) / control.step)
        * control.step
    )


def _png(figure: Figure) -> bytes:
    from io import BytesIO

    page = BytesIO()
    figure.savefig(page, format="png", bbox_inches="tight")
    return page.getvalue()
