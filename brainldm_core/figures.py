"""Brains in slices. Every function returns a matplotlib ``Figure``; ``charts`` has the curves and scatters.

Volumes are (N, D, H, W) in [0, 1] on a RAS grid: D runs from left to right, H from back to front, W from
bottom to top. Slices are drawn in the **radiological convention**: in axial and coronal slices the left of
the picture is the person's right; sagittal slices look to the picture's left. Figures have a white
background of their own, so that they read the same on a light and on a dark page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.5  # inches of a full-width figure, so that its letters are as large as the page's
PLANES = ("axial", "coronal", "sagittal")
SIDES = {"axial": ("R", "L"), "coronal": ("R", "L"), "sagittal": ("A", "P")}  # left and right edge of a picture
POSITIONS = {"axial": 0.56, "coronal": 0.5, "sagittal": 0.5}  # through the lateral ventricles
# Dark and light enough to be told apart in grey, and chosen for colour-blind readers (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LABEL_COLOURS = {1: "#56B4E9", 2: "#E69F00", 3: "#F0E442", 4: "#D55E00"}
STYLE = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 110,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


@contextmanager
def canvas(rows: int, columns: int, size: tuple[float, float], **options):
    """Axes (rows, columns) in the book's style; the figure is closed, so that it shows once, where it is returned."""
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **options)
        yield figure, axes
        plt.close(figure)


def slice_of(volume: np.ndarray, plane: str, position: float | None = None) -> np.ndarray:
    """One slice of a (D, H, W) volume as an image with its top row first, in the radiological convention.

    ``position`` is a fraction of the way through the field of view, from left, back or bottom; by default the slice
    goes through the lateral ventricles.
    """
    axis = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    position = POSITIONS[plane] if position is None else position
    index = min(int(position * volume.shape[axis]), volume.shape[axis] - 1)
    image = np.take(volume, index, axis=axis)  # (D, H), (D, W) or (H, W)
    return image[::-1, ::-1].T


def _draw(axis: Axes, image: np.ndarray, title: str = "", sides: tuple[str, str] | None = None, **options) -> None:
    axis.imshow(image, **({"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"} | options))
    axis.set_title(title, fontsize=7.5)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    for place, side in zip((0.03, 0.97), sides or (), strict=False):
        axis.text(
            place,
            0.5,
            side,
            color="white",
            transform=axis.transAxes,
            fontsize=7,
            va="center",
            ha="left" if place < 0.5 else "right",
        )


def montage(
    volumes: np.ndarray,
    titles: Sequence[str] | None = None,
    plane: str = "axial",
    position: float | None = None,
    columns: int = 8,
    width: float = WIDTH,
) -> Figure:
    """One slice of each volume (N, D, H, W), row by row; the first carries the letters of its sides."""
    count = len(volumes)
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    tall, wide = slice_of(volumes[0], plane, position).shape
    cell = width / max(columns, 4)
    extra = 0.16 * (1 + max((title.count("\n") for title in titles or [""]), default=0))
    with canvas(rows, columns, (cell * columns, rows * (cell * tall / wide + extra))) as (figure, axes):
        for index, axis in enumerate(axes.flat):
            if index >= count:
                axis.axis("off")
                continue
            title = titles[index] if titles is not None else ""
            _draw(axis, slice_of(volumes[index], plane, position), title, SIDES[plane] if index == 0 else None)
    return figure


def three_planes(volumes: np.ndarray, titles: Sequence[str]) -> Figure:
    """Axial, coronal and sagittal slice (columns) of each volume (rows; N, D, H, W)."""
    shapes = [slice_of(volumes[0], plane).shape for plane in PLANES]
    ratios = [wide / tall for tall, wide in shapes]
    high = 1.5
    size = (high * sum(ratios) + 1.2, high * len(volumes) + 0.3)
    with canvas(len(volumes), 3, size, width_ratios=ratios) as (figure, axes):
        for row, (title, volume) in enumerate(zip(titles, volumes, strict=True)):
            for column, plane in enumerate(PLANES):
                _draw(axes[row, column], slice_of(volume, plane), plane if row == 0 else "", SIDES[plane])
            axes[row, 0].set_ylabel(title, fontsize=8)
    return figure


def rows_of(
    kinds: Mapping[str, np.ndarray],
    titles: Sequence[str] | None = None,
    plane: str = "axial",
    position: float | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """Rows of slices to be compared column by column: each kind is a volume array (N, D, H, W).

    ``limits`` gives a kind its own grey range (and a diverging colour map when it goes below 0).
    """
    count = min(len(volumes) for volumes in kinds.values())
    tall, wide = slice_of(next(iter(kinds.values()))[0], plane, position).shape
    cell = WIDTH / max(count, 5)
    extra = 0.16 * (1 + max((title.count("\n") for title in titles or [""]), default=0))
    with canvas(len(kinds), count, (cell * count + 0.3, len(kinds) * cell * tall / wide + extra)) as (figure, axes):
        for row, (kind, volumes) in enumerate(kinds.items()):
            low, high = (limits or {}).get(kind, (0, 1))
            for column in range(count):
                _draw(
                    axes[row, column],
                    slice_of(volumes[column], plane, position),
                    titles[column] if titles is not None and row == 0 else "",
                    SIDES[plane] if row == column == 0 else None,
                    vmin=low,
                    vmax=high,
                    cmap="RdBu_r" if low < 0 else "gray",
                )
            axes[row, 0].set_ylabel(kind, fontsize=8)
        scaled = [row for row, kind in enumerate(kinds) if kind in (limits or {})]
        same = len(scaled) == len(kinds) and len(set(limits.values())) == 1  # then one bar serves all rows
        for row in scaled[:1] if same else scaled:
            beside = axes.ravel() if same else axes[row]
            figure.colorbar(axes[row, 0].images[0], ax=list(beside), shrink=0.8, pad=0.01)
    return figure


def panels(
    rows: Mapping[str, tuple[np.ndarray, Sequence[str], Sequence[str]]],
    plane: str = "axial",
    position: float | None = None,
) -> Figure:
    """Rows of slices with words of their own: title -> (volumes (N, D, H, W), words above each, words under each)."""
    count = max(len(volumes) for volumes, _, _ in rows.values())
    tall, wide = slice_of(next(iter(rows.values()))[0][0], plane, position).shape
    cell = WIDTH / max(count, 4 if len(rows) < 3 else 6)
    words = [line for _, above, under in rows.values() for line in (*above, *under)]
    extra = 0.32 + 0.16 * max(line.count("\n") for line in words)
    with canvas(len(rows), count, (cell * count + 0.3, len(rows) * (cell * tall / wide + extra))) as (figure, axes):
        for row, (title, (volumes, above, under)) in enumerate(rows.items()):
            for column, axis in enumerate(axes[row]):
                if column >= len(volumes):
                    axis.axis("off")
                    continue
                _draw(
                    axis,
                    slice_of(volumes[column], plane, position),
                    above[column],
                    SIDES[plane] if row == column == 0 else None,
                )
                axis.set_xlabel(under[column], fontsize=7.5)
            axes[row, 0].set_ylabel(title, fontsize=8)
        figure.get_layout_engine().set(h_pad=0.1)  # inches, or the words of two rows touch
    return figure


def label_overlay(volume: np.ndarray, labels: Mapping[str, np.ndarray], names: Mapping[int, str]) -> Figure:
    """A volume (D, H, W) above label maps of the same shape (row title -> labels), in three planes, with a key."""
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    colours = ListedColormap(["black", *(LABEL_COLOURS[value] for value in sorted(LABEL_COLOURS))])
    norm = BoundaryNorm(np.arange(-0.5, len(LABEL_COLOURS) + 1), colours.N)
    ratios = [slice_of(volume, plane).shape[1] / slice_of(volume, plane).shape[0] for plane in PLANES]
    size = (1.6 * sum(ratios) + 0.6, 1.65 * (1 + len(labels)) + 0.5)
    with canvas(1 + len(labels), 3, size, width_ratios=ratios) as (figure, axes):
        for column, plane in enumerate(PLANES):
            _draw(axes[0, column], slice_of(volume, plane), plane, SIDES[plane])
            for row, found in enumerate(labels.values(), start=1):
                _draw(axes[row, column], slice_of(found, plane), cmap=colours, norm=norm, vmin=None, vmax=None)
        for axis, name in zip(axes[:, 0], ["volume", *labels], strict=True):
            axis.set_ylabel(name, fontsize=8)
        keys = [Patch(color=LABEL_COLOURS[value], label=names[value]) for value in sorted(LABEL_COLOURS)]
        figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), fontsize=8)
    return figure


def mni_mask(shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """Share of each voxel (D, H, W) of a grid that lies in the MNI152 brain, whose template comes with nilearn."""
    from nilearn.datasets import load_mni152_brain_mask
    from scipy.ndimage import affine_transform

    mask = load_mni152_brain_mask(resolution=2)
    step = np.linalg.solve(mask.affine, np.asarray(affine, float))
    return affine_transform(np.asarray(mask.dataobj, np.float32), step, output_shape=tuple(shape), order=1)


def in_mni(
    volumes: np.ndarray,
    affine: np.ndarray,
    titles: Sequence[str],
    at_mm: Sequence[float] = (0, -18, 10),
    columns: int = 5,
) -> Figure:
    """Axial above coronal slices of volumes (N, D, H, W), in MNI mm, with the outline of the MNI152 brain."""
    affine, mask = np.asarray(affine, float), mni_mask(volumes.shape[1:], affine)
    low = affine[:3, 3] - affine.diagonal()[:3] / 2
    high = low + affine.diagonal()[:3] * volumes.shape[1:]
    columns = min(columns, len(volumes))
    blocks = -(-len(volumes) // columns)
    with canvas(2 * blocks, columns, (WIDTH * columns / 5 + 0.4, 3.0 * blocks)) as (figure, axes):
        for axis in axes.flat:
            axis.axis("off")
        for index, volume in enumerate(volumes):
            for row, (plane, fixed, across, up) in enumerate((("axial", 2, 0, 1), ("coronal", 1, 0, 2))):
                axis = axes[2 * (index // columns) + row, index % columns]
                axis.axis("on")
                place = (at_mm[fixed] - low[fixed]) / (high[fixed] - low[fixed])
                frame = (high[across], low[across], low[up], high[up])  # right of the person at the left
                axis.imshow(slice_of(volume, plane, place), cmap="gray", vmin=0, vmax=1, extent=frame)
                axis.contour(
                    slice_of(mask, plane, place), [0.5], colors=COLOURS[5], linewidths=0.8, extent=frame, origin="upper"
                )
                axis.set_title(
                    f"{titles[index]}\n" * (row == 0) + f"{'xyz'[fixed]} = {at_mm[fixed]:g} mm", fontsize=7.5
                )
                axis.tick_params(labelsize=6, length=2)
                if index % columns == 0:
                    axis.set_ylabel(f"{'xyz'[up]} (mm)", fontsize=7)
    return figure
