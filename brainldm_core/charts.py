"""Charts of the book: distributions, scatters, curves. Every function returns a matplotlib ``Figure``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from .covariates import REFERENCE_ICV_ML, expected_of_people
from .dataset import SPLITS
from .figures import COLOURS, WIDTH, canvas

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def distributions(table: pd.DataFrame, columns: Mapping[str, str], group: str = "split") -> Figure:
    """Histograms of the columns (name -> axis title with unit) of a table, one outline a group."""
    groups = [name for name in (*SPLITS, *dict.fromkeys(table[group])) if name in set(table[group])]
    groups = list(dict.fromkeys(groups))
    with canvas(1, len(columns), (2.6 * len(columns), 2.4)) as (figure, axes):
        for axis, (column, title) in zip(axes[0], columns.items(), strict=True):
            known = table[column].dropna()
            edges = np.histogram_bin_edges(known.astype(float), bins=min(12, max(4, len(known) // 4)))
            for colour, name in zip(COLOURS, groups, strict=False):
                axis.hist(
                    table.loc[table[group] == name, column].dropna().astype(float),
                    edges,
                    density=True,
                    histtype="step",
                    linewidth=1.4,
                    color=colour,
                    label=name,
                )
            axis.set_xlabel(title)
            axis.set_yticks([])
        axes[0, 0].set_ylabel("density")
        axes[0, 0].legend(fontsize=7)
    return figure


def against_people(table: pd.DataFrame) -> Figure:
    """Ventricles and normalised brain volume by age of a cohort, on the regressions of 291 people of IXI by sex."""
    age = table["age_years"].astype(float)
    panels = {"ventricular_volume_ml": "lateral ventricles (ml)", "brain_volume_ml": "brain, normalised (ml)"}
    years = np.linspace(40, 86, 50)
    with canvas(1, 2, (WIDTH, 2.9)) as (figure, axes):
        for place, (axis, (column, title)) in enumerate(zip(axes[0], panels.items(), strict=True)):
            for male, sex in enumerate("FM"):
                of_people = [expected_of_people(years, np.full(50, male), shift)[place] for shift in (-1, 0, 1)]
                low, middle, high = (
                    np.exp(line) if column == "ventricular_volume_ml" else line * REFERENCE_ICV_ML for line in of_people
                )
                colour = COLOURS[male]
                axis.fill_between(years, low, high, color=colour, alpha=0.15, lw=0)
                axis.plot(years, middle, color=colour, lw=1.2)
                rows = table["sex"] == sex
                axis.scatter(
                    age[rows], table[column][rows].astype(float), s=6, color=colour, alpha=0.6, lw=0, label=sex
                )
            axis.set_xlabel("age (years)")
            axis.set_ylabel(title)
        axes[0, 0].set_yscale("log")
        axes[0, 0].set_yticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"])
        axes[0, 0].minorticks_off()
        axes[0, 1].legend(title="sex", fontsize=7.5)
    return figure


def scatter(axis: Axes, x: np.ndarray, y: np.ndarray, note: str = "", colour: str = COLOURS[0]) -> None:
    """Points with the line of identity (dashed), and the least-squares line where there are enough points."""
    axis.set_title(note, fontsize=8)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if not len(x):
        return
    axis.scatter(x, y, s=14, alpha=0.75, color=colour, edgecolors="none")
    both = np.concatenate([x, y])
    low, high = float(both.min()), float(both.max())
    axis.plot([low, high], [low, high], "--", color="0.55", linewidth=1, zorder=0)
    if len(x) > 2 and np.ptp(x) > 0:
        slope, offset = np.polyfit(x, y, 1)
        ends = np.array([x.min(), x.max()])
        axis.plot(ends, slope * ends + offset, color=colour, linewidth=1.2)


def scatter_with_fit(panels: Mapping[str, tuple[np.ndarray, np.ndarray, str]], x_title: str, y_title: str) -> Figure:
    """Panels (name -> x, y, note) side by side on one scale, each with identity and least-squares line."""
    with canvas(1, len(panels), (max(2.6 * len(panels), 3.4), 2.9), sharex=True, sharey=True) as (figure, axes):
        for axis, colour, (name, (x, y, note)) in zip(axes[0], COLOURS, panels.items(), strict=False):
            scatter(axis, np.asarray(x, float), np.asarray(y, float), f"{name}\n{note}", colour)
            axis.set_xlabel(x_title)
        axes[0, 0].set_ylabel(y_title)
    return figure


def two_scatters(panels: Mapping[str, tuple[np.ndarray, np.ndarray, str]], x_title: str, y_title: str) -> Figure:
    """Panels (quantity with unit -> x, y, note) side by side, each on its own scale."""
    side = 3.6 if len(panels) < 3 else 2.6
    with canvas(1, len(panels), (side * len(panels), side - 0.2)) as (figure, axes):
        for axis, colour, (name, (x, y, note)) in zip(axes[0], COLOURS, panels.items(), strict=False):
            scatter(axis, np.asarray(x, float), np.asarray(y, float), f"{name}\n{note}", colour)
            axis.set_xlabel(x_title)
            axis.set_ylabel(y_title)
    return figure


def correlations(rows: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> Figure:
    """Correlations with their intervals: quantity -> source -> (r, low, high); one panel a quantity."""
    with canvas(1, len(rows), (3.9 * len(rows), 2.0), sharey=True) as (figure, axes):
        for axis, (quantity, sources) in zip(axes[0], rows.items(), strict=True):
            for place, (colour, (r, low, high)) in enumerate(zip(COLOURS, sources.values(), strict=False)):
                axis.plot([low, high], [place, place], color=colour, linewidth=2)
                axis.plot(r, place, "o", color=colour)
            axis.set_yticks(range(len(sources)), list(sources))
            axis.set_ylim(len(sources) - 0.5, -0.5)
            axis.axvline(1, color="0.55", linestyle="--", linewidth=1)
            axis.set_title(quantity)
            axis.set_xlabel("Pearson r, 95 % interval")
    return figure


def loss_curves(
    table: pd.DataFrame,
    columns: Mapping[str, str],
    window: int = 20,
    log: bool = True,
    behind: Mapping[str, pd.DataFrame] | None = None,
    note: str = "",
) -> Figure:
    """Losses by step: each column of the table raw (pale) and as a running mean over ``window`` steps.

    ``behind`` them lie the same columns of other tables in grey; ``note`` says above what they are.
    """
    across = len(columns) if len(columns) < 4 else -(-len(columns) // 2)
    down = -(-len(columns) // across)
    with canvas(down, across, (max(2.5 * across, 3.6), 2.2 * down)) as (figure, axes):
        for axis, colour, (column, title) in zip(axes.flat, COLOURS, columns.items(), strict=False):
            for other in (behind or {}).values():
                if column in other:
                    axis.plot(other["step"], other[column], color="0.65", linewidth=1.2, zorder=1)
            known = table[["step", column]].dropna()
            axis.plot(known["step"], known[column], color=colour, alpha=0.3, linewidth=0.7)
            smooth = known[column].rolling(min(window, max(len(known), 1)), min_periods=1).mean()
            axis.plot(known["step"], smooth, color=colour, linewidth=1.5)
            if log and (known[column] > 0).all() and len(known):
                axis.set_yscale("log")
            axis.set_title(title)
            axis.set_xlabel("step")
        for axis in axes.flat[len(columns) :]:
            axis.axis("off")
        if note:
            figure.suptitle(note, fontsize=8)
    return figure


def schedule(signal: np.ndarray, noise: np.ndarray, others: Mapping[str, np.ndarray] | None = None) -> Figure:
    """Signal and noise level by time step, and the log signal-to-noise ratio with other schedules' for comparison."""
    steps = np.arange(1, len(signal) + 1)
    with canvas(1, 2, (7.6, 2.6)) as (figure, axes):
        left, right = axes[0]
        left.plot(steps, signal, color=COLOURS[0], label=r"signal $\sqrt{\bar\alpha_t}$")
        left.plot(steps, noise, color=COLOURS[1], linestyle="--", label=r"noise $\sqrt{1-\bar\alpha_t}$")
        left.set_ylabel("level")
        left.legend(fontsize=8)
        right.plot(steps, np.log(signal**2 / noise**2), color=COLOURS[0], label="this schedule")
        for colour, (name, bars) in zip(COLOURS[1:], (others or {}).items(), strict=False):
            right.plot(steps, np.log(bars / (1 - bars)), color=colour, linestyle="--", label=name)
        right.set_ylabel("log signal-to-noise")
        right.legend(fontsize=8)
        for axis in (left, right):
            axis.set_xlabel("time step t")
    return figure


def heat_map(table: pd.DataFrame, error: pd.DataFrame, x_title: str, y_title: str) -> Figure:
    """A matrix with its numbers, each with its standard error; red is positive, blue negative, a dash unknown."""
    rows, columns = table.shape
    with canvas(1, 1, (1.15 * columns + 2.0, 0.55 * rows + 1.1)) as (figure, axes):
        axis = axes[0, 0]
        picture = axis.imshow(table.to_numpy(float), cmap="RdBu_r", vmin=-1.5, vmax=1.5, aspect="auto")
        for row in range(rows):
            for column in range(columns):
                value, spread = float(table.iat[row, column]), float(error.iat[row, column])
                text = f"{round(value, 2) + 0.0:.2f}" if np.isfinite(value) else "–"  # no minus before a zero
                text += f" ± {spread:.2f}" if np.isfinite(spread) else ""
                colour = "white" if abs(value) > 1.05 else "black"
                axis.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
        axis.set_xticks(range(columns), list(table.columns))
        axis.set_yticks(range(rows), list(table.index))
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
        axis.set_xlabel(x_title)
        axis.set_ylabel(y_title)
        figure.colorbar(picture, ax=axis, shrink=0.9, pad=0.02)
    return figure


def responses(panels: Mapping[str, tuple[np.ndarray, np.ndarray, tuple[float, float]]], y_title: str) -> Figure:
    """Measured against requested values (axis title -> x, y, training range), the training range shaded."""
    with canvas(1, len(panels), (3.6 * len(panels), 3.2)) as (figure, axes):
        for axis, colour, (title, (x, y, (low, high))) in zip(axes[0], COLOURS, panels.items(), strict=False):
            x, y = np.asarray(x, float), np.asarray(y, float)
            axis.axvspan(low, high, color="0.92", zorder=0, label="training range")
            known = np.isfinite(x) & np.isfinite(y)
            if known.any():
                ends = [x[known].min(), x[known].max()]
                axis.plot(ends, ends, "--", color="0.55", linewidth=1, label="as asked")
                axis.plot(x[known], y[known], "o-", color=colour, markersize=4, linewidth=1.2, label="measured")
            axis.set_xlabel(title)
            axis.legend(fontsize=7)
        axes[0, 0].set_ylabel(y_title)
    return figure


def dots(
    panels: Mapping[str, tuple[Mapping[str, tuple[float, float, float]], float]], goal: str, columns: int = 3
) -> Figure:
    """Values with intervals: axis title -> (source -> (value, low, high), goal); the goal is a dashed line."""
    across = min(columns, len(panels))
    down = -(-len(panels) // across)
    longest = max(len(sources) for sources, _ in panels.values())
    with canvas(down, across, (2.5 * across + 1.2, down * (0.28 * longest + 0.9)), sharey=True) as (figure, axes):
        for axis, (title, (sources, wanted)) in zip(axes.flat, panels.items(), strict=False):
            for place, (value, low, high) in enumerate(sources.values()):
                colour = COLOURS[place % len(COLOURS)]
                if np.isfinite([low, high]).all():
                    axis.plot([low, high], [place, place], color=colour, linewidth=2)
                axis.plot(value, place, "o", color=colour)
            axis.set_yticks(range(len(sources)), list(sources))
            axis.set_ylim(len(sources) - 0.5, -0.5)
            axis.axvline(wanted, color="0.45", linestyle="--", linewidth=1, label=goal)
            axis.set_xlabel(title)
        for axis in axes.flat[len(panels) :]:
            axis.axis("off")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", fontsize=8)
    return figure
