"""The covariate explorer where a kernel answers: sliders in, a brain, its volumes and the command for it out.

One released slider is one brain. Requests that come in while one is drawn are answered together, by the last of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from . import live_pictures as pictures
from .controls import MEASURED, Control, command, controls, number, said_outside
from .covariates import Ranges
from .errors import BrainLDMError
from .live_controls import Panel, copy_field, request_panel

Draw = Callable[..., np.ndarray]
"""(request, person, sampler, steps, progress) -> volume (D, H, W) in [0, 1]; progress(steps done, steps in all)."""

WAIT = 0.15  # seconds without another request before a brain is drawn
BANNER = (
    '<div style="border-left:5px solid {colour};background:{tint};padding:4px 10px;line-height:1.45">'
    "<b>{title}</b> {words}</div>"
)
PLAIN, LOUD = "rgba(0,114,178,.12)", "rgba(213,94,0,.2)"


@dataclass(frozen=True)
class Source:
    """What the widgets know of a model: ranges, grid, how to draw a brain from it and, where quick, to measure one."""

    ranges: Ranges
    affine: Any
    timesteps: int
    draw: Draw
    measure: Callable[[np.ndarray], Mapping[str, float]] | None = None
    weights: Path | None = None


@dataclass(frozen=True)
class Answer:
    """A brain that was drawn: for which request, from which noise, how, in how many seconds, and what it measures."""

    request: Mapping[str, Any]
    person: int
    sampler: str
    steps: int
    volume: np.ndarray
    seconds: float
    measured: Mapping[str, float]


def coalesced(work: Callable[[], None], seconds: float = WAIT) -> Callable[[], None]:
    """``work``, once for all calls in quick succession where an event loop runs (a kernel); at once elsewhere."""
    import asyncio

    waiting: list[asyncio.TimerHandle] = []

    def call() -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return work()
        while waiting:
            waiting.pop().cancel()
        waiting.append(loop.call_later(seconds, work))

    return call


def asker(source: Source, panel: Panel, status: Any, show: Callable[[Answer], None]) -> Callable[[], None]:
    """What draws the brain that the panel asks for and shows it; an error becomes words, and the sliders live on."""

    def ask() -> None:
        request, person, sampler, steps = panel.request(), panel.person.value, panel.sampler.value, panel.steps.value
        status.value = "drawing …"
        start = last = time.perf_counter()

        def progress(done: int, total: int) -> None:
            nonlocal last
            if time.perf_counter() - last > 0.5:
                last = time.perf_counter()
                status.value = f"drawing … step {done} of {total}"

        try:
            volume = source.draw(request, person, sampler, steps, progress)
            seconds = time.perf_counter() - start
            measured = source.measure(volume) if source.measure else {}
            show(Answer(request, person, sampler, steps, volume, seconds, measured))
            status.value = f"drawn in {seconds:.2g} s"
        except KeyboardInterrupt:
            status.value = "stopped; the picture is the last one that was finished"
        except Exception as error:  # else the widget would go silent, and its reader would not know why
            reason = str(error) if isinstance(error, BrainLDMError) else f"{type(error).__name__}: {error}"
            words = escape(reason) + " (the picture is the last one that was finished)"
            status.value = BANNER.format(colour="#b00020", tint="rgba(176,0,32,.15)", title="Not drawn.", words=words)

    return ask


def warning(found: Sequence[Control], request: Mapping[str, Any]) -> tuple[str, bool]:
    """The banner above a brain, as HTML, and whether the model extrapolates."""
    said = [words for control in found if (words := said_outside(control, request[control.column]))]
    if not said:
        words = "Each covariate is one that the training cohort had."
        return BANNER.format(colour=pictures.INSIDE, tint=PLAIN, title="Inside the training range.", words=words), False
    words = "; ".join(said).replace(": the model extrapolates", "") + ". The model extrapolates."
    return BANNER.format(colour=pictures.EXTRAPOLATED, tint=LOUD, title="⚠ Extrapolation:", words=words), True


def asked_and_measured(found: Sequence[Control], answer: Answer) -> str:
    """A table of what was asked for and what came, as HTML."""
    if not answer.measured:
        return "<i>Measuring voxels of this size takes long: let brainldm sample do it.</i>"
    rows = []
    for control in found:
        if (value := answer.measured.get(MEASURED.get(control.column, ""))) is not None:
            asked = answer.request[control.column]
            cells = (control.title, *(f"{number(x)} {control.unit}" for x in (asked, value)))
            rows.append((*cells, f"{value - asked:+.1f} {control.unit}"))
    head = "".join(f"<th>{name}</th>" for name in ("", "asked for", "measured", "difference"))
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="brainldm-table"><tr>{head}</tr>{body}</table>'


def live_explorer(source: Source, reach: Mapping[str, Sequence[float]] | None = None) -> Any:
    """Sliders with the training range on them, three planes of the answer, what it measures, its command, NiiVue.

    ``reach``: as in ``controls``. The widget's ``parts`` are its controls by name.
    """
    import ipywidgets as widgets

    found = controls(source.ranges, reach)
    panel = request_panel(found, source.timesteps)
    status, words, numbers, line = (widgets.HTML() for _ in range(4))
    picture = widgets.Image(format="png", layout={"max_width": "100%", "object_fit": "contain"})
    turn = widgets.ToggleButton(description="Turn it in 3-D (NiiVue)", layout={"width": "200px"})
    stage, newest = widgets.VBox(), {}

    def warn() -> None:
        words.value, extrapolates = warning(found, panel.request())
        colour = pictures.EXTRAPOLATED if extrapolates else pictures.INSIDE
        picture.layout.border = f"3px solid {colour}"

    def show(answer: Answer) -> None:
        newest["volume"] = answer.volume
        spacing = float(np.abs(np.diag(np.asarray(source.affine, float))[:3]).mean())
        picture.value = pictures.png(pictures.one_brain(answer.volume, spacing))
        numbers.value = asked_and_measured(found, answer)
        how = (answer.request, answer.person, answer.sampler, answer.steps, source.weights)
        line.value = copy_field(command(*how))
        if stage.children and turn.value and pictures.has_niivue():
            pictures.show_in_niivue(stage.children[0], answer.volume, source.affine)

    def turned(_change: Any) -> None:
        for child in stage.children:
            child.close()
        stage.children = ()
        if turn.value and not pictures.has_niivue():
            stage.children = [widgets.HTML(pictures.GET_NIIVUE)]
        elif turn.value and "volume" in newest:
            stage.children = [pictures.niivue(newest["volume"], source.affine)]

    turn.observe(turned, names="value")
    ask = asker(source, panel, status, show)
    panel.on_change(warn, coalesced(ask))
    warn()
    ask()
    panel.box.layout.flex = "1 1 400px"
    right = widgets.VBox([words, picture, status, numbers], layout={"flex": "1 1 440px", "min_width": "0"})
    top = widgets.HBox([panel.box, right], layout={"flex_flow": "row wrap", "align_items": "flex-start"})
    box = widgets.VBox([top, line, turn, stage])
    box.add_class("brainldm-explorer")
    box.parts = vars(panel) | {
        "status": status, "words": words, "numbers": numbers, "command": line, "picture": picture, "turn": turn,
        "stage": stage,
    }  # fmt: skip
    return box


def live_knobs(
    source: Source, base: Mapping[str, Any], samples: Mapping[str, tuple[np.ndarray, np.ndarray]], person: int = 0
) -> Any:
    """Sliders for the volumes of one request, and measured against asked as they are turned; all else stays ``base``.

    ``samples``: quantity -> requested and measured column of samples drawn before, in grey.
    """
    import ipywidgets as widgets

    found = [control for control in controls(source.ranges) if control.column in MEASURED]
    panel = request_panel(found, source.timesteps, base, person)
    panels = {c.title: (c, *samples[c.title]) for c in found}
    status, words = widgets.HTML(), widgets.HTML()
    picture = widgets.Image(format="png", layout={"max_width": "100%", "object_fit": "contain"})
    forget = widgets.Button(description="Forget my points")
    trail: list[tuple[str, float, float, str]] = []
    last: dict[str, Any] = {"request": None, "control": found[0]}

    def warn() -> None:
        words.value = warning(found, panel.request())[0]

    def draw_points(answer: Answer) -> None:
        _, asked, measured, _ = trail[-1]
        title = f"axial; {last['control'].title}: {number(asked)} ml asked for,\n{number(measured)} ml measured"
        picture.value = pictures.png(pictures.following(panels, trail, (answer.volume, title)))

    def show(answer: Answer) -> None:
        turned = [c for c in found if last["request"] and answer.request[c.column] != last["request"][c.column]]
        last.update(answer=answer, request=answer.request, control=(turned or [last["control"]])[0])
        column = last["control"].column
        measured = answer.measured.get(MEASURED[column], float("nan"))
        trail.append((last["control"].title, answer.request[column], measured, f"person {answer.person}"))
        draw_points(answer)

    def start_again(_button: Any) -> None:
        del trail[:-1]
        draw_points(last["answer"])

    forget.on_click(start_again)
    ask = asker(source, panel, status, show)
    panel.on_change(warn, coalesced(ask))
    warn()
    ask()
    box = widgets.VBox([panel.box, words, picture, status, forget])
    box.add_class("brainldm-explorer")
    box.parts = vars(panel) | {"status": status, "words": words, "picture": picture, "trail": trail, "forget": forget}
    return box
