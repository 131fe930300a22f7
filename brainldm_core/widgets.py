"""The covariate explorer: sliders in years and millilitres, and the brain they ask for.

In JupyterLab the sliders are live. On a page, where no kernel answers, the same request is shown as one picture.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import figures
from .controls import MEASURED, Control, controls
from .covariates import COLUMNS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from .live import Draw, Source
    from .sampling import Pipeline

QUICK = ("dpmpp", 10)  # sampler and steps while somebody waits; chapter 4 sets them beside DDIM
SAMPLE_ID = 1  # the first volume of ``brainldm sample``: its noise comes from this and the seed


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


def drawer(pipeline: Pipeline) -> Draw:
    """A function of request, person, sampler and steps that draws the volume (D, H, W) of ``brainldm sample --n 1``.

    A person is a seed. A batch of two keeps an answer quick (one alone takes a slow path on CPUs); the voxels are those
    of the command within one quantisation step.
    """
    import pandas as pd

    from .sampling import sample

    sampling = pipeline.profile.sampling.model_copy(update={"batch_size": 2})
    small = replace(pipeline, profile=pipeline.profile.model_copy(update={"sampling": sampling}))

    def draw(
        request: Mapping[str, Any],
        person: int = 0,
        sampler: str = QUICK[0],
        steps: int = QUICK[1],
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        rows = pd.DataFrame([dict(request)], columns=list(COLUMNS))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the explorer says it in words beside the picture
            return sample(small, rows, [SAMPLE_ID], sampler, steps, seed=person, progress=progress)[0]

    return draw


def measurer(pipeline: Pipeline, patient: bool = False) -> Callable[[np.ndarray], dict[str, float]] | None:
    """What measures a drawn volume (D, H, W) as ``brainldm sample`` does; None where that takes seconds.

    ``patient``: measure all the same.
    """
    from .morphometry import choose
    from .samples import measure_drawn, quantise

    if choose(pipeline.profile.grid.affine) != "intensity" and not patient:
        return None
    return lambda volume: dict(*measure_drawn(pipeline, quantise(volume[None]) / np.float32(255)).to_dict("records"))


def source(pipeline: Pipeline, weights: Path | str | None = None, patient: bool = False) -> Source:
    """What the live widgets know of a pipeline; ``weights`` is where it was loaded from, None being what ships.

    ``patient``: as in ``measurer``.
    """
    from .live import Source
    from .notebooks import project_root

    if weights is not None and (full := Path(weights).resolve()).is_relative_to(project_root()):
        weights = full.relative_to(project_root())  # commands are typed there
    settings = pipeline.profile.diffusion
    facts = (pipeline.ranges, pipeline.profile.grid.affine, settings.timesteps, drawer(pipeline))
    return Source(*facts, measurer(pipeline, patient), weights and Path(weights))


def explorer(
    pipeline: Pipeline,
    weights: Path | str | None = None,
    reach: Mapping[str, Sequence[float]] | None = None,
    live: bool | None = None,
) -> Any:
    """The explorer for a pipeline: live ipywidgets where there is a kernel to answer, else a picture.

    Args:
        weights: the run's folder that the pipeline was loaded from; None: the weights that ship.
        reach: as in ``controls.controls``: how far beyond the training range the sliders go.
        live: replaces the choice, for tests.
    """
    if is_live() if live is None else live:
        from .live import live_explorer

        return live_explorer(source(pipeline, weights), reach)
    return still_explorer(pipeline, reach)


def still_explorer(pipeline: Pipeline, reach: Mapping[str, Sequence[float]] | None = None, person: int = 0) -> Figure:
    """The explorer without a kernel: ventricular volume by column, brain volume by row, one noise for all.

    Under each slice the measured ventricles and brain (ml). What lies outside the training range is marked * (in the
    last column; with ``reach``, wherever its values lead).
    """
    import pandas as pd

    from .sampling import sample

    age, ventricles, brain = controls(pipeline.ranges, reach)
    across = _places(ventricles, (0.05, 0.35, 0.65, 0.95, 1.2))
    down = _places(brain, (0.85, 0.5, 0.15))[::-1]
    rows = [
        {"sex": "F", "age_years": age.middle, "ventricular_volume_ml": x, "brain_volume_ml": y}
        for y in down
        for x in across
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are meant to lie outside, and their titles say so
        volumes = sample(pipeline, pd.DataFrame(rows), [SAMPLE_ID] * len(rows), *QUICK, seed=person)
    measure = measurer(pipeline)
    found = [_found(measure(volume)) if measure else "" for volume in volumes]
    titles, kinds = [_said(ventricles, x) for x in across], {}
    for index, y in enumerate(down):
        row = slice(index * len(across), (index + 1) * len(across))
        kinds[_said(brain, y)] = (volumes[row], [""] * len(across) if index else titles, found[row])
    return figures.panels(kinds)


def _found(measured: Mapping[str, float]) -> str:
    """Measured ventricles and brain in ml, as they stand under a slice; nothing where nothing could be measured."""
    return " | ".join(f"{measured[name]:.0f}" for name in MEASURED.values() if name in measured)


def _places(control: Control, usual: Sequence[float]) -> list[float]:
    """Values of a still picture: the usual shares of the training range; with ticks, those and its middle."""
    if not control.ticks:
        return sorted(control.at(place) for place in usual)
    return sorted({control.middle, *(at for at, _ in control.ticks)})


def _said(control: Control, value: float) -> str:
    return f"{control.title} {value:.0f} {control.unit}" + (" *" if control.beyond(value) else "")


def knobs(
    pipeline: Pipeline,
    base: Mapping[str, Any],
    samples: Mapping[str, tuple[Any, Any]],
    turned: pd.DataFrame,
    live: bool | None = None,
) -> Any:
    """Turn one volume of a request and see the measured one follow: live, or with the points of a finished sweep.

    Args:
        base: the request that all others keep.
        samples: quantity (``ventricles``, ``brain``) -> requested and measured column of samples drawn before.
        turned: a sweep as ``sweeps.draw`` gives it, shown where no kernel answers.
    """
    from .live import live_knobs
    from .live_pictures import following

    if is_live() if live is None else live:
        return live_knobs(source(pipeline, patient=True), base, samples)
    found = {control.column: control for control in controls(pipeline.ranges) if control.title in samples}
    trail = [
        (found[row["moved"]].title, row[row["moved"]], row[MEASURED[row["moved"]]], "one noise")
        for row in turned.to_dict("records")
    ]
    return following({c.title: (c, *map(np.asarray, samples[c.title])) for c in found.values()}, trail)
