"""What the live widgets show: three planes of one brain, points that follow a request, and a view that turns.

Colours are those of ``figures``: blue inside the training range, vermilion where the model extrapolates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from .figures import COLOURS, PLANES, SIDES, canvas, slice_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .controls import Control

INSIDE, EXTRAPOLATED = COLOURS[:2]
BAR_MM = 50.0  # length of the scale bar
GET_NIIVUE = "For a view that turns, install ipyniivue (pip install ipyniivue) and start the kernel anew."


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG."""
    page = BytesIO()
    figure.savefig(page, format="png", bbox_inches="tight", pad_inches=0.08)
    return page.getvalue()


def one_brain(volume: np.ndarray, spacing_mm: float) -> Figure:
    """Axial, coronal and sagittal slice of a volume (D, H, W), a bar of 5 cm, and the scale of grey values."""
    shapes = [slice_of(volume, plane).shape for plane in PLANES]
    ratios = [wide / tall for tall, wide in shapes]
    with canvas(1, 3, (2.2 * sum(ratios) + 0.9, 2.5), width_ratios=ratios) as (figure, axes):
        for axis, plane in zip(axes[0], PLANES, strict=True):
            image = axis.imshow(slice_of(volume, plane), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_title(plane)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            for x, side, align in zip((0.03, 0.97), SIDES[plane], ("left", "right"), strict=True):
                axis.text(x, 0.5, side, color="white", transform=axis.transAxes, va="center", ha=align)
        start, length = 0.06 * shapes[0][1], BAR_MM / spacing_mm
        axes[0, 0].plot([start, start + length], [0.955 * shapes[0][0]] * 2, color="white", linewidth=2)
        axes[0, 0].text(start, 0.94 * shapes[0][0], f"{BAR_MM / 10:g} cm", color="white", fontsize=7, va="bottom")
        figure.colorbar(image, ax=list(axes[0]), shrink=0.8, pad=0.01, label="grey value (0 to 1, no unit)")
    return figure


def following(
    panels: Mapping[str, tuple[Control, np.ndarray, np.ndarray]],
    trail: Sequence[tuple[str, float, float, str]],
    brain: tuple[np.ndarray, str] | None = None,
) -> Figure:
    """Measured against requested volume (ml): a cohort's samples in grey, and what one reader has asked for.

    Args:
        panels: quantity -> its slider, and the requested and measured column of samples drawn before.
        trail: quantity, asked, measured and whose noise of each point, the last one being the newest; points of one
            noise share a colour and a line.
        brain: the newest volume (D, H, W) as an axial slice beside the panels, and its title.
    """
    columns = len(panels) + (brain is not None)
    widths = [1.25] * len(panels) + [1.0] * (brain is not None)
    with canvas(1, columns, (sum(widths) * 2.7, 3.0), width_ratios=widths) as (figure, axes):
        for axis, (quantity, (control, asked, measured)) in zip(axes[0], panels.items(), strict=False):
            axis.axvspan(control.trained_low, control.trained_high, color="0.93", zorder=0, label="training range")
            axis.plot(asked, measured, ".", color="0.6", markersize=4, label="samples, chapter 3")
            ends = [control.low, control.high]
            axis.plot(ends, ends, "--", color="0.4", linewidth=1, label="as asked")
            for place, whose in enumerate(dict.fromkeys(row[3] for row in trail)):
                points = np.array([row[1:3] for row in trail if row[0] == quantity and row[3] == whose]).reshape(-1, 2)
                in_order = points[np.argsort(points[:, 0], kind="stable")]
                colour = COLOURS[place % len(COLOURS)]
                axis.plot(*in_order.T, "o-", color=colour, markersize=5, linewidth=1.2, label=whose)
            if brain is not None and trail[-1][0] == quantity:
                axis.plot(*trail[-1][1:3], "o", markersize=11, fillstyle="none", color="black", label="the newest")
            axis.set(xlabel=f"{quantity} asked for (ml)", ylabel="measured (ml)", xlim=ends)
            axis.legend(fontsize=6.5, loc="upper left")
        if brain is not None:
            axes[0, -1].imshow(slice_of(brain[0], "axial"), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes[0, -1].set(xticks=[], yticks=[])
            axes[0, -1].spines[:].set_visible(False)
            axes[0, -1].set_title(brain[1])
            axes[0, -1].text(0.03, 0.5, "R", color="white", transform=axes[0, -1].transAxes, va="center")
    return figure


def has_niivue() -> bool:
    """Whether ipyniivue is installed."""
    from importlib.util import find_spec

    return find_spec("ipyniivue") is not None


def nifti_bytes(volume: np.ndarray, affine: Any) -> bytes:
    """A volume (D, H, W) in [0, 1] as the bytes of a NIfTI in MNI space, uint8 with slope 1/255 as it is saved."""
    from .dataset import nifti_image
    from .samples import quantise

    return nifti_image(quantise(volume), affine, slope=1 / 255).to_bytes()


def niivue(volume: np.ndarray, affine: Any, height: int = 300) -> Any:
    """An ipyniivue widget with three planes and a rendering; its scripts come with the package, from no other host."""
    from ipyniivue import MultiplanarType, NiiVue, ShowRender

    view = NiiVue(
        height=height, is_radiological_convention=True, sagittal_nose_left=True, is_nearest_interpolation=True,
        multiplanar_layout=MultiplanarType.ROW, multiplanar_show_render=ShowRender.ALWAYS, crosshair_width=0.3,
    )  # fmt: skip
    show_in_niivue(view, volume, affine)
    return view


def show_in_niivue(view: Any, volume: np.ndarray, affine: Any) -> None:
    """Put another volume (D, H, W) into the view; the one before is closed, or browsers would keep them all."""
    before = list(view.volumes)
    view.load_volumes(
        [{"data": nifti_bytes(volume, affine), "name": "brain.nii", "colormap": "gray", "cal_min": 0, "cal_max": 1}]
    )
    for old in before:
        old.close()
