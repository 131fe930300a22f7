"""Controls of the live widgets: sliders that bear the training range, the noise, the sampler, a line to copy.

The band on a slider's track and the marks under it are CSS of our own, from no other host.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from .controls import Control, number
from .covariates import COLUMNS
from .live_pictures import EXTRAPOLATED, INSIDE

RECIPES = {  # sampler -> its name and its usual steps; None: all of the schedule
    "dpmpp": ("DPM-Solver++", 10),
    "unipc": ("UniPC", 10),
    "ddim": ("DDIM", 50),
    "ddpm": ("DDPM, all steps (slow)", None),
}
LABEL_PX, READOUT_PX = 116, 64  # title and number, left and right of a track
BEFORE_PX, AFTER_PX = LABEL_PX + 14, READOUT_PX + 6  # where the track begins and ends, with its margins
STYLE = f"""<style>
.brainldm-explorer .widget-hslider .noUi-connect {{ background: transparent; }}
.brainldm-explorer .widget-hslider .widget-readout {{ min-width: 0; width: {READOUT_PX}px; margin: 0;
  text-align: right; box-sizing: border-box; }}
.brainldm-strip {{ position: relative; height: 31px; margin: 0 {AFTER_PX}px 0 {BEFORE_PX}px;
  font-size: 11px; line-height: 13px; color: var(--jp-ui-font-color1, inherit); }}
.brainldm-strip span {{ position: absolute; transform: translateX(-50%); white-space: nowrap; }}
.brainldm-strip i {{ position: absolute; top: -3px; width: 1px; height: 6px; background: currentColor; }}
.brainldm-table {{ border-collapse: collapse; font-size: 13px; }}
.brainldm-table td, .brainldm-table th {{ padding: 1px 14px 1px 0; text-align: right; }}
.brainldm-table td:first-child {{ text-align: left; }}
.brainldm-copy {{ display: flex; gap: 6px; max-width: 1000px; }}
.brainldm-copy input {{ flex: 1; font-family: var(--jp-code-font-family, monospace); font-size: 12px; padding: 4px 6px;
  color: var(--jp-content-font-color1, inherit); background: var(--jp-layout-color2, transparent);
  border: 1px solid var(--jp-border-color1, #999); }}
.brainldm-copy button {{ white-space: nowrap; cursor: pointer; padding: 3px 10px; border: 1px solid
  var(--jp-border-color1, #999); color: var(--jp-ui-font-color1, inherit); background: var(--jp-layout-color2, #eee); }}
</style>"""
COPY = (  # the clipboard is closed to pages that are not secure; the old way works there
    "const f=this.previousElementSibling,b=this;f.select();"
    "const done=()=>{b.textContent='Copied';setTimeout(()=>{b.textContent='Copy as command'},1500)};"
    "const old=()=>{if(document.execCommand('copy'))done();else b.textContent='Press Ctrl+C'};"
    "if(navigator.clipboard&&window.isSecureContext)navigator.clipboard.writeText(f.value).then(done,old);else old()"
)


def copy_field(text: str) -> str:
    """A line to copy, as HTML: a field that selects itself when clicked, and a button."""
    return (
        '<div class="brainldm-copy" data-lm-suppress-shortcuts="true">'
        f'<input readonly aria-label="the same brain as a command" value="{escape(text)}" onclick="this.select()">'
        f'<button onclick="{escape(COPY)}">Copy as command</button></div>'
    )


def band(control: Control, name: str) -> str:
    """CSS that paints a slider's track: blue where the training cohort was, vermilion beyond."""
    low, high = (100 * control.share(value) for value in (control.trained_low, control.trained_high))
    stops = f"{EXTRAPOLATED} 0 {low:.2f}%,{INSIDE} {low:.2f}% {high:.2f}%,{EXTRAPOLATED} {high:.2f}% 100%"
    return f"<style>.{name} .noUi-connects {{ background: linear-gradient(to right,{stops}) !important; }}</style>"


def strip(control: Control) -> str:
    """Marks under a slider, as HTML: the ends of the training range, and a chapter's own values in a second row."""
    ends = (control.trained_low, control.trained_high)
    marks = [(value, number(value), 2) for value in ends] + [(value, text, 15) for value, text in control.ticks]
    placed = "".join(
        f'<i style="left:{100 * control.share(value):.2f}%"></i>'
        f'<span style="left:{100 * control.share(value):.2f}%;top:{top}px">{escape(text)}</span>'
        for value, text, top in marks
    )
    middle = 50 * sum(control.share(value) for value in ends)
    placed += f'<span style="left:{middle:.2f}%;top:2px;color:{INSIDE};filter:brightness(1.25)">trained on</span>'
    if control.ticks:
        placed += f'<span style="left:{middle:.2f}%;top:15px">the paper, normalised</span>'
    return f'<div class="brainldm-strip">{placed}</div>'


@dataclass(frozen=True)
class Panel:
    """The controls of a request; ``request()`` reads them, ``on_change(at_once, later)`` is told of every change."""

    box: Any
    sliders: Mapping[str, Any]
    sex: Any
    same: Any
    person: Any
    again: Any
    sampler: Any
    steps: Any
    request: Callable[[], dict[str, Any]]
    on_change: Callable[[Callable[[], None], Callable[[], None]], None]


def slider(control: Control, value: float) -> tuple[Any, Any]:
    """A slider that tells its value when it is released, and the box that holds it with the marks under it."""
    import ipywidgets as widgets

    name = f"brainldm-{secrets.token_hex(4)}"
    handle = widgets.FloatSlider(
        value=value, min=control.low, max=control.high, step=control.step, continuous_update=False,
        readout_format=".0f", description=f"{control.title} ({control.unit})",
        style={"description_width": f"{LABEL_PX}px"}, layout={"width": "auto", "margin": "0"},
        tooltip=f"{control.title} in {control.unit}; trained on {number(control.trained_low)} to "
        f"{number(control.trained_high)}",
    )  # fmt: skip
    handle.add_class(name)

    def colour(_change: Any = None) -> None:
        handle.style.handle_color = EXTRAPOLATED if control.beyond(handle.value) else INSIDE

    handle.observe(colour, names="value")
    colour()
    marks = widgets.HTML(band(control, name) + strip(control), layout={"width": "auto", "margin": "0"})
    return handle, widgets.VBox([handle, marks])


def request_panel(
    found: Sequence[Control], timesteps: int, base: Mapping[str, Any] | None = None, person: int = 0
) -> Panel:
    """Sliders, sex (without ``base``), noise and sampler. What ``base`` holds beside the sliders stays as it is there.

    Args:
        timesteps: of the model's schedule, the most steps there can be.
        person: the seed of the first noise.
    """
    import ipywidgets as widgets

    style = {"description_width": f"{LABEL_PX}px"}
    start = {c.column: (base or {}).get(c.column, math.nan) for c in found}
    made = {c.column: slider(c, start[c.column] if math.isfinite(start[c.column]) else c.middle) for c in found}
    sliders = {column: pair[0] for column, pair in made.items()}
    sex = widgets.ToggleButtons(options=[("female", "F"), ("male", "M")], style={"button_width": "90px"})
    label = widgets.Label("sex", layout={"width": f"{LABEL_PX}px", "display": "flex", "justify_content": "flex-end"})
    sexes = [] if base is not None else [widgets.HBox([label, sex])]
    same = widgets.Checkbox(
        value=True, description="same noise: the same person", indent=False, layout={"width": "auto"},
        tooltip="off: every request is answered by another person",
    )  # fmt: skip
    number_of = widgets.BoundedIntText(
        value=person, min=0, max=2**31 - 1, description="person", style=style, layout={"width": "210px"},
        tooltip="the seed of the noise; the same number gives the same person",
    )  # fmt: skip
    again = widgets.Button(description="New noise", layout={"width": "110px"})
    sampler = widgets.Dropdown(
        options=[(title, name) for name, (title, _) in RECIPES.items()], description="sampler", style=style,
        layout={"width": "320px"},
    )  # fmt: skip
    steps = widgets.BoundedIntText(
        value=min(RECIPES["dpmpp"][1], timesteps), min=1, max=timesteps, description="steps", style=style,
        layout={"width": "210px"},
    )  # fmt: skip

    def request() -> dict[str, Any]:
        asked = {"sex": sex.value} if base is None else {column: base[column] for column in COLUMNS}
        return asked | {column: round(float(handle.value), 3) for column, handle in sliders.items()}

    def on_change(at_once: Callable[[], None], later: Callable[[], None]) -> None:
        held = []  # not empty: the panel changes itself, and that is no request of its own

        def set_quietly(control: Any, **values: Any) -> None:
            held.append(control)
            try:
                for name, value in values.items():
                    setattr(control, name, value)
            finally:
                held.pop()

        def changed(change: Any) -> None:
            if held:
                return
            if change.owner is sampler:
                usual = RECIPES[sampler.value][1]
                set_quietly(steps, value=min(usual or timesteps, timesteps), disabled=usual is None)
            elif change.owner not in (person_, steps) and not same.value:
                set_quietly(person_, value=person_.value + 1)
            at_once()
            later()

        def new_noise(_button: Any) -> None:
            person_.value += 1  # the change is the request

        person_ = number_of
        for control in (*sliders.values(), *(() if base is not None else (sex,)), person_, sampler, steps):
            control.observe(changed, names="value")
        again.on_click(new_noise)

    rows = [*sexes, *(box for _, box in made.values())]
    rows += [widgets.HBox([number_of, again]), widgets.HBox([same], layout={"margin": f"0 0 0 {LABEL_PX + 4}px"})]
    rows += [sampler, steps, widgets.HTML(STYLE)]
    box = widgets.VBox(rows, layout={"max_width": "560px", "min_width": "320px"})
    return Panel(box, sliders, sex, same, number_of, again, sampler, steps, request, on_change)
