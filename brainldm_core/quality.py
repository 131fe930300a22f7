"""How well real scans were aligned: which to look at, and a picture of all of them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .covariates import KEYS
from .dataset import read_nifti, scan_name, volume_path
from .profiles import Grid
from .records import atomic_path

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

LOWEST_CORRELATION = 0.25  # of twenty scans that lay well, ten whole heads had 0.36 or more, ten brains 0.53 or more
PICTURE_ROWS = 40


def flag_outliers(quality: pd.DataFrame) -> list[str]:
    """Why each scan should be looked at, "" if it need not: poor fit, a large turn, an odd size, or of another kind."""
    r = quality["correlation"]
    spread = 1.4826 * (r - r.median()).abs().median()
    floor = max(LOWEST_CORRELATION, r.median() - max(4 * spread, 0.1))
    most = bool(quality["brain_only"].mean() >= 0.5)
    reasons = []
    for row in quality.itertuples():
        said = [
            f"correlation {row.correlation:.2f} with the template is below {floor:.2f}"
            if row.correlation < floor
            else "",
            f"turned by {row.rotation_degrees:.0f} degrees" if row.rotation_degrees > 45 else "",
            f"scale {row.scale:.2f}" if not 0.75 < row.scale < 1.1 else "",
            f"{'brain only' if row.brain_only else 'whole head'} unlike the rest" if row.brain_only != most else "",
        ]
        reasons.append("; ".join(filter(None, said)))
    return reasons


def worst_first(quality: pd.DataFrame) -> pd.DataFrame:
    """The same rows: flagged scans, then the others, each from the poorest fit to the best."""
    order = (quality["flagged"] == "").astype(float) * 2 + quality["correlation"]
    return quality.loc[order.sort_values(kind="stable").index]


@lru_cache(maxsize=1)
def template_on(grid: Grid) -> np.ndarray:
    """The MNI152 template (D, H, W) on a profile's grid."""
    from nilearn import datasets

    from .resampling import resample

    t1 = datasets.load_mni152_template(resolution=1)
    return resample(t1.get_fdata(dtype=np.float32), t1.affine, np.eye(4), grid)


def draw_planes(axes: Iterable[Axes], volume: np.ndarray, grid: Grid) -> None:
    """Axial, sagittal and coronal slice of a volume (D, H, W) on three axes, with the template's outline."""
    middle = [round((0 - start) / grid.spacing_mm) for start in np.array(grid.affine)[:3, 3]]
    level = round((18 - grid.affine[2][3]) / grid.spacing_mm)  # z = 18 mm shows the lateral ventricles
    template = template_on(grid)
    for axis, cut in zip(axes, [np.s_[:, :, level], np.s_[middle[0]], np.s_[:, middle[1]]], strict=True):
        axis.set_axis_off()
        axis.imshow(volume[cut].T, origin="lower", cmap="gray", vmin=0, vmax=1)
        axis.contour(template[cut].T, [0.3], colors="tab:red", linewidths=0.7)


def read_scan(folder: Path, row: Any) -> np.ndarray:
    """The prepared volume of a row of the table."""
    return read_nifti(volume_path(folder, *(getattr(row, key) for key in KEYS)))[0]


def draw_quality(folder: Path, quality: pd.DataFrame, grid: Grid) -> None:
    """Write ``quality.png``: middle slices of the scans that most need a look, with the template's outline."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [("template (outline in all)", template_on(grid))]
    for row in worst_first(quality).head(PICTURE_ROWS).itertuples():
        name = scan_name(*(getattr(row, key) for key in KEYS))
        title = f"{name}: r = {row.correlation:.2f}" + (", LOOK" if row.flagged else "")
        shown.append((title, read_scan(folder, row)))
    columns = 2 if len(shown) > 6 else 1
    height = -(-len(shown) // columns)
    figure = Figure(figsize=(6.6 * columns, 2.2 * height + 0.3), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(height, 3 * columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for place, (title, volume) in enumerate(shown):
        row, column = place % height, 3 * (place // height)
        draw_planes(axes[row, column : column + 3], volume, grid)
        axes[row, column + 1].set_title(title, fontsize=8, parse_math=False)
    figure.suptitle(
        "Axial (z = 18 mm), sagittal (x = 0) and coronal (y = 0) slices, left on the left; r: fit to the template",
        fontsize=9,
    )
    with atomic_path(folder / "quality.png") as partial:
        figure.savefig(partial, dpi=80, format="png", metadata={"Software": None})


def thumbnail(volume: np.ndarray, grid: Grid) -> bytes:
    """The same three slices of one scan side by side, as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wide, deep, high = (side * grid.spacing_mm / 100 for side in grid.shape)  # inches: 100 mm each
    figure = Figure(figsize=(wide + deep + wide, max(deep, high)), facecolor="black")
    FigureCanvasAgg(figure)
    filled = {"left": 0, "right": 1, "bottom": 0, "top": 1, "wspace": 0}
    axes = figure.subplots(1, 3, width_ratios=[wide, deep, wide], gridspec_kw=filled)
    draw_planes(axes, volume, grid)
    with BytesIO() as file:
        figure.savefig(file, dpi=80, format="png", metadata={"Software": None})
        return file.getvalue()
