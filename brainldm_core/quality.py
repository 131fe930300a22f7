"""How well real scans were aligned: which to look at, and a picture of all of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .covariates import KEYS
from .dataset import read_nifti, scan_name, volume_path
from .profiles import Grid
from .records import atomic_path

if TYPE_CHECKING:
    import pandas as pd

LOWEST_CORRELATION = 0.25  # whole heads reach about 0.4 with the skull-stripped template, brains about 0.55
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


def draw_quality(folder: Path, quality: pd.DataFrame, grid: Grid) -> None:
    """Write ``quality.png``: middle slices of each scan with the template's outline, the worst fits first."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from nilearn import datasets

    from .registration import resample

    t1 = datasets.load_mni152_template(resolution=1)
    template = resample(t1.get_fdata(dtype=np.float32), t1.affine, np.eye(4), grid)
    rows = quality.sort_values("correlation").head(PICTURE_ROWS)
    shown = [("template (outline in all)", template)]
    for row in rows.itertuples():
        keys = [getattr(row, key) for key in KEYS]
        title = f"{scan_name(*keys)}: r = {row.correlation:.2f}" + (", LOOK" if row.flagged else "")
        shown.append((title, read_nifti(volume_path(folder, *keys))[0]))
    middle = [round((0 - start) / grid.spacing_mm) for start in np.array(grid.affine)[:3, 3]]
    level = round((18 - grid.affine[2][3]) / grid.spacing_mm)  # z = 18 mm shows the lateral ventricles
    cuts = [np.s_[:, :, level], np.s_[middle[0]], np.s_[:, middle[1]]]
    columns = 2 if len(shown) > 6 else 1
    height = -(-len(shown) // columns)
    figure = Figure(figsize=(6.6 * columns, 2.2 * height + 0.3), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(height, 3 * columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for place, (title, volume) in enumerate(shown):
        row, column = place % height, 3 * (place // height)
        for offset, cut in enumerate(cuts):
            axis = axes[row, column + offset]
            axis.imshow(volume[cut].T, origin="lower", cmap="gray", vmin=0, vmax=1)
            axis.contour(template[cut].T, [0.3], colors="tab:red", linewidths=0.7)
        axes[row, column + 1].set_title(title, fontsize=8)
    figure.suptitle(
        "Axial (z = 18 mm), sagittal (x = 0) and coronal (y = 0) slices, left on the left; r: fit to the template",
        fontsize=9,
    )
    with atomic_path(folder / "quality.png") as partial:
        figure.savefig(partial, dpi=80, format="png", metadata={"Software": None})
