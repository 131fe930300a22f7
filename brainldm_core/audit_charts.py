"""Charts of the chapters on the released set and beyond the paper. Every function returns a matplotlib ``Figure``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from .figures import COLOURS, WIDTH, canvas
from .verdicts import OUTSIDE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def distance_ratios(panels: Mapping[str, tuple[Mapping[str, np.ndarray], float]]) -> Figure:
    """Histograms of nearest training over nearest held-out distance: space -> (kind -> ratios, threshold)."""
    with canvas(1, len(panels), (3.7 * len(panels), 2.9), sharey=True) as (figure, axes):
        for axis, (space, (kinds, threshold)) in zip(axes[0], panels.items(), strict=True):
            clipped = {kind: np.clip(ratios, 0, 2) for kind, ratios in kinds.items()}
            top = max(1.2, *(float(values.max()) for values in clipped.values()))
            for colour, (kind, values) in zip(COLOURS, clipped.items(), strict=False):
                weights = np.full(len(values), 1 / len(values))
                edges = np.linspace(0, top * 1.001, 31)
                style = {"histtype": "step", "linewidth": 1.4, "color": colour}
                axis.hist(values, edges, weights=weights, label=f"{kind} (n = {len(values)})", **style)
            axis.axvline(1, color="0.55", linestyle="--", linewidth=1)
            if threshold > 0:
                axis.axvline(threshold, color="0.2", linestyle=":", linewidth=1.2, label="threshold of a copy")
            axis.set_title(space)
            axis.set_xlabel("nearest training / nearest held-out distance")
        axes[0, 0].set_ylabel("share of volumes")
        handles = {
            name: handle for axis in axes[0] for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    return figure


def spectra(frequencies: np.ndarray, kinds: Mapping[str, np.ndarray]) -> Figure:
    """Radially averaged power (kind -> (N, K)) by frequency in cycles/mm: medians with the middle 80 %, and ratios.

    The first kind is what the others are divided by on the right.
    """
    styles = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
    with canvas(1, 2, (7.5, 2.8)) as (figure, axes):
        left, right = axes[0]
        reference = np.median(next(iter(kinds.values())), axis=0)
        for colour, style, (kind, power) in zip(COLOURS, styles, kinds.items(), strict=False):
            low, middle, high = np.quantile(power, [0.1, 0.5, 0.9], axis=0)
            left.plot(frequencies, middle, linestyle=style, color=colour, label=kind)
            left.fill_between(frequencies, low, high, color=colour, alpha=0.12, linewidth=0)
            right.plot(frequencies, middle / reference, linestyle=style, color=colour, label=kind)
        left.set_yscale("log")
        left.set_ylabel("power (grey values squared)")
        left.legend(fontsize=7)
        right.set_yscale("log")
        right.set_ylabel(f"power relative to {next(iter(kinds))}")
        for axis in (left, right):
            axis.set_xlabel("spatial frequency (cycles/mm)")
    return figure


def effects(table: pd.DataFrame, rate: float = 0.05) -> Figure:
    """Cohen's d with its interval, a row of ``differences.compare_sets`` each; filled where q is below ``rate``."""
    with canvas(1, 1, (6.4, 0.27 * len(table) + 0.9)) as (figure, axes):
        axis = axes[0, 0]
        for place, row in enumerate(table.itertuples()):
            differs, (low, d, high) = row.q < rate, np.clip([row.low, row.d, row.high], -30, 30)
            colour = COLOURS[1] if differs else COLOURS[0]
            axis.plot([low, high], [place, place], color=colour, linewidth=1.6)
            axis.plot(d, place, "o", color=colour, markerfacecolor=colour if differs else "white", markersize=5)
        axis.axvline(0, color="0.55", linestyle="--", linewidth=1)
        axis.set_yticks(range(len(table)), list(table.index))
        axis.set_ylim(len(table) - 0.5, -0.5)
        axis.set_xlabel("samples less real, in standard deviations (Cohen's d, 95 % interval)")
    return figure


def sensitivity(distances: pd.DataFrame, limit: float, top: float = 10.0) -> Figure:
    """Distances of ``verdicts.standardised``, a row a generator (kind, severity) and a column a metric.

    Orange is above healthy people and violet below; a disc marks what lies beyond ``limit``, a ring what lies beyond
    the range of its own metric only. Colours end at ``top``.
    """
    rows, columns = distances.shape
    values = np.clip(distances.to_numpy(float), -9 * top, 9 * top)  # where healthy people are all alike: infinite
    with canvas(1, 1, (WIDTH, 0.235 * rows + 1.6)) as (figure, axes):
        axis = axes[0, 0]
        picture = axis.imshow(values, cmap="PuOr_r", vmin=-top, vmax=top, aspect="auto")
        for row, column in np.argwhere(np.abs(values) > OUTSIDE):
            far = abs(values[row, column])
            dark = far > 0.6 * top
            style = {"color": "white" if dark else "black", "markersize": 4, "markeredgewidth": 0.8}
            axis.plot(column, row, "o", fillstyle="full" if far > limit else "none", **style)
        for row, column in np.argwhere(~np.isfinite(values)):
            axis.text(column, row, "–", ha="center", va="center", fontsize=7)
        axis.set_xticks(range(columns), list(distances.columns), rotation=55, ha="left", rotation_mode="anchor")
        axis.xaxis.tick_top()
        axis.set_yticks(
            range(rows), [f"{kind}, {severity}" if severity else kind for kind, severity in distances.index]
        )
        kinds = [kind for kind, _ in distances.index]
        for row in range(1, rows):
            if kinds[row] != kinds[row - 1]:
                axis.axhline(row - 0.5, color="0.3", linewidth=0.6)
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0, labelsize=7.5)
        bar = figure.colorbar(picture, ax=axis, shrink=0.5, pad=0.02, extend="both")
        bar.set_label(f"distance from healthy people\n({OUTSIDE}: edge of their 95 %)", fontsize=7.5)
        bar.ax.tick_params(labelsize=7)
    return figure


def age_readings(rows: Mapping[str, Mapping[str, float]]) -> Figure:
    """Mean absolute error (years) and gain of ``transfer.compare_arms``, a row an arm, each with its 95 % interval."""
    names = list(rows)
    panels = (("MAE", "low", "high", "mean absolute error (years)"), ("gain", "gain low", "gain high", "gain (years)"))
    with canvas(1, 2, (WIDTH, 0.3 * len(names) + 0.9), sharey=True) as (figure, axes):
        for axis, (middle, low, high, title) in zip(axes[0], panels, strict=True):
            for place, row in enumerate(rows.values()):
                axis.plot([row[low], row[high]], [place, place], color=COLOURS[0], linewidth=1.6)
                axis.plot(row[middle], place, "o", color=COLOURS[0], markersize=5)
            axis.set_xlabel(title)
        axes[0, 1].axvline(0, color="0.55", linestyle="--", linewidth=1)
        axes[0, 0].set_yticks(range(len(names)), names)
        axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    return figure
