"""The page ``index.html`` of ``brainldm evaluate``: numbers with floors and intervals, figures, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import html_page
from .comparison import known, with_interval
from .evaluation import REAL
from .evaluation_words import METRICS, SHARES, beside_paper, copies_in_words, row_of, verdict
from .set_nulls import FAULTY

if TYPE_CHECKING:
    from .evaluate_folders import Findings, Question
    from .nifti_sets import NiftiSet

SHOWN = 6  # volumes of each set in the picture
LEGEND = (
    ("n", "Volumes of this row. All rows are compared with the same reference; FID depends on n."),
    ("FID, floor", "Fréchet distance of features to the reference, and that of as many other real volumes: no "
     "generator can be expected below it."),
    ("KID", "Kernel distance of the same features, without the bias of small n: about 0 for sets of one kind."),
    ("MMD", "Maximum mean discrepancy (squared) with a Gaussian kernel, whose width is the median distance of real "
     "volumes; about 0 for sets of one kind."),
    ("MS-SSIM, 4-G-R-SSIM", "Likeness of pairs within a set. The goal is the value of the real row: higher is less "
     "variety, lower may be noise."),
    ("Precision, density", "Realism: how many volumes lie near real ones, and near how many."),
    ("Recall, coverage", "Variety: how much of the real set lies near a volume."),
)  # fmt: skip
SCALE = (
    "The last rows of table 1 are other real volumes with a fault that you can picture: slightly blurred, slightly "
    "noisy, and an eighth of the people again and again. They are the scale on which to read the row of the samples."
)
ROWS = {
    REAL: "real, other people",
    "samples": "samples",
    "reconstructions": "other real volumes through the autoencoder",
    "Gaussian in the latent": "Gaussian fitted to latents, drawn and decoded",
    "resampler": "resampler: training volume of the nearest covariates",
    "real, blurred": "real, blurred by 0.5 voxels",
    "real, noisy": "real, with 3 % white noise",
    "real, few people": "real, an eighth of the people again and again",
}


def write_page(out: Path, found: Findings, sets: Mapping[str, NiftiSet], question: Question) -> None:
    """Write ``index.html``; pictures of real volumes only if asked for."""
    parts = [
        _opening(found, question),
        "<h2>Table 1</h2>",
        table_1(found.rows),
        _all_volumes(found),
        _dots(found.rows),
        "<h2>How to read it</h2>",
        html_page.definitions(LEGEND),
        html_page.paragraphs([SCALE]),
        "<h2>Beside the paper</h2>",
        html_page.paragraphs(beside_paper(found.rows, sets["reference"].grid)),
    ]
    if question.pictures:
        parts += ["<h2>Volumes</h2>", _pictures(sets)]
    parts += ["<h2>Detail and noise</h2>", _detail(found)]
    if found.regions:
        parts += ["<h2>Anatomy</h2>", _regions(found)]
    if found.scorecard:
        parts += ["<h2>Requested against measured</h2>", *map(_scorecard, found.scorecard, found.scorecard.values())]
        parts += [_scatters(found)]
    if found.copies:
        parts += ["<h2>Copies of training volumes</h2>", html_page.paragraphs(copies_in_words(found.copies))]
    parts += ["<h2>Not measured</h2>", _not_measured(found), "<h2>Where the numbers come from</h2>", _record(found)]
    html_page.write_page(out / "index.html", "Evaluation of generated volumes", "\n".join(parts))


def _opening(found: Findings, question: Question) -> str:
    text = html_page.paragraphs(verdict(found.rows))
    if found.warnings:
        text += f'<div class="warn">{html_page.paragraphs(found.warnings)}</div>'
    if question.pictures:
        text += '<p class="soft">This page shows real scans: it may go where they may go, and nowhere else.</p>'
    return text


def _brackets(row: Mapping[str, Any], metric: str) -> str:
    ends = [row[f"{metric}_low"], row[f"{metric}_high"]]
    return f"[{ends[0]:.3g}, {ends[1]:.3g}]" if all(map(known, ends)) else "no interval"


def table_1(rows: list[dict[str, Any]]) -> str:
    """Table 1 as HTML: values with intervals under them."""
    head = ["Row", "n", "FID", "Floor at this n", "KID", "MMD", "MS-SSIM", "4-G-R-SSIM"]
    lines, shares = [], []
    for row in rows:
        values = {metric: (f"{row[metric]:.3g}", _brackets(row, metric)) for metric in METRICS}
        cells = [str(row["n"]), values["fid"], f"{row['fid_floor']:.3g}", values["kid"], values["mmd"]]
        title = ROWS.get(row["model"], row["model"])
        lines.append(html_page.number_row(title, [*cells, values["ms_ssim"], values["four_g_r_ssim"]]))
        shares.append(html_page.number_row(title, [str(row["n"]), *(f"{row[name]:.2f}" for name in SHARES)]))
    first = rows[0]
    caption = (
        f"Reference: {first['n_reference']} real volumes. Brackets: 95 % intervals, of distances from random halves, "
        f"of similarities ({first['ms_ssim_scales']} of 5 scales) from leaving out one volume at a time. "
        "The same numbers are in table_1.csv and evaluation.json."
    )
    apart = f"Realism (precision, density) and variety (recall, coverage), with k = {first['k']} neighbours."
    heads = ["Row", "n", *(name.title() for name in SHARES)]
    return html_page.table(head, lines, caption) + html_page.table(heads, shares, apart)


def _all_volumes(found: Findings) -> str:
    row = found.all_volumes
    return html_page.paragraphs([
        f"All {row['n']} samples against all {row['n_reference']} real volumes, the way FID is mostly printed: FID "
        f"{with_interval(row, 'fid')}, KID {with_interval(row, 'kid')}. "
        "No real volumes are left to give a floor at this n.",
    ])  # fmt: skip


def _dots(rows: list[dict[str, Any]]) -> str:
    from . import charts

    panels = {}
    for metric in ("fid", "ms_ssim", "four_g_r_ssim"):
        values = {
            row["model"]: tuple(v if known(v := row[f"{metric}{end}"]) else np.nan for end in ("", "_low", "_high"))
            for row in rows
            if row["model"] not in (REAL, *FAULTY)
        }
        panels[METRICS[metric]] = (values, row_of(rows, REAL)[metric])
    return html_page.figure(
        charts.dots(panels, "real, other people"),
        "Points with intervals of FID, MS-SSIM and 4-G-R-SSIM, with a dashed line at the value of real volumes.",
        "FID: the lower, the nearer. The similarities: the nearer to the dashed line of real volumes, the better.",
    )


def _pictures(sets: Mapping[str, NiftiSet]) -> str:
    from . import figures

    names = ("samples", "reference", "other real")
    count = min(SHOWN, *(len(sets[name]) for name in names))
    shown = {name: sets[name][np.linspace(0, len(sets[name]) - 1, count).astype(int)] for name in names}
    drawn = "\n".join(
        html_page.figure(
            figures.rows_of(shown, plane=plane),
            f"Three rows of {plane} slices: samples, the reference and other real volumes.",
            f"{plane.title()} slices of volumes evenly taken from each set, none chosen.",
        )
        for plane in ("axial", "coronal")
    )
    return drawn


def _detail(found: Findings) -> str:
    from . import audit_charts

    found_in, levels = found.detail["power"], found.detail["noise_level"]
    power = {name: found_in[name] for name in ("reference", "other real", "samples")}
    finest = {name: float(rows[1, -1]) for name, rows in power.items()}
    figure = html_page.figure(
        audit_charts.spectra(found.detail["frequencies_per_mm"], power),
        "Falling curves of power against spatial frequency, and their ratios to the reference.",
        "Radially averaged power. Left: medians and the middle 80 % of volumes. Right: medians relative to the "
        "reference. A curve that falls below 1 at the right is too smooth, one that rises above it is noisy.",
    )
    apart = found.detail["log_spectral_distance"]
    words = [
        f"At the finest frequency samples have {finest['samples'] / finest['reference']:.2f} times the power of the "
        f"reference, other real volumes {finest['other real'] / finest['reference']:.2f} times. Noise level (an upper "
        f"bound, in grey values): samples {levels['samples']:.4f}, reference {levels['reference']:.4f}, other real "
        f"{levels['other real']:.4f}. The spectrum of samples is {apart['samples']:.2f} dB from the "
        f"reference's, that of other real volumes {apart['other real']:.2f} dB (log-spectral distance). "
        f"n = {', '.join(f'{n} {name}' for name, n in found.detail['volumes'].items())}."
    ]
    return html_page.paragraphs(words + ([found.detail["note"]] if "note" in found.detail else [])) + figure


def _regions(found: Findings) -> str:
    lines = [
        html_page.number_row(
            f"{row['quantity']}, {row['set']}",
            [f"{row['samples']:.1f}", f"{row['real']:.1f}",
             (f"{row['d']:+.2f}", f"[{row['low']:.2f}, {row['high']:.2f}]"),
             f"{row['ks']:.2f}", f"{row['q']:.2g}", f"{row['n_samples']}, {row['n_real']}"],
        )
        for row in found.regions
    ]  # fmt: skip
    head = ["Volume", "Mean (ml)", "Mean of real (ml)", "Cohen's d", "KS distance", "q", "n"]
    caption = (
        "Measured in every volume by the same ruler; samples against all real volumes, other real volumes against the "
        "reference. q: p of a Kolmogorov-Smirnov test after control of false discoveries."
    )
    return html_page.table(head, lines, caption)


def _scorecard(name: str, rows: list[dict[str, Any]]) -> str:
    lines = []
    sizes = {row["quantity"]: row["n"] for row in rows if row["region"] == "all"}
    for row in rows:
        if row["region"] == "inside" and row["n"] == sizes[row["quantity"]]:
            continue  # nothing was asked for outside the training range
        cells = [str(row["n"])]
        for key, places, prefix in (("r", 3, ""), ("slope", 2, "slope_"), ("bias", 1, "bias_"), ("mae", 1, "mae_")):
            ends = [row[f"{prefix}low"], row[f"{prefix}high"]]
            shown = f"{row[key]:.{places}f}" if known(row[key]) else "undefined"
            cells.append((shown, f"[{ends[0]:.{places}f}, {ends[1]:.{places}f}]" if all(map(known, ends)) else ""))
        lines.append(html_page.number_row(f"{row['quantity']} ({row['unit']}), {row['region']}", cells))
    who = {"samples": "Samples: requests against measurements", "reference": "Real volumes: the ceiling of the ruler"}
    return html_page.table(["Covariate", "n", "r", "Slope", "Bias", "Mean error"], lines, who.get(name, name))


def _scatters(found: Findings) -> str:
    from . import charts
    from .conditioning import ASKED_AND_MEASURED
    from .covariates import numeric

    name = "samples" if "samples" in found.scorecard else "reference"
    table, panels = found.tables[name], {}
    for quantity, (asked, measured) in ASKED_AND_MEASURED.items():
        values = numeric(table, asked)
        if np.isfinite(values).sum() > 2:
            panels[f"{quantity} (ml)"] = (values, numeric(table, measured), f"n = {np.isfinite(values).sum()}")
    if not panels:
        return ""
    return html_page.figure(
        charts.two_scatters(panels, "asked for" if name == "samples" else "in the table", "measured"),
        "Scatter plots of measured against requested volumes with the line of identity.",
        f"{name.title()}: one point a volume. Dashed: identity; solid: least squares.",
    )


def _not_measured(found: Findings) -> str:
    if not found.not_measured:
        return "<p>Nothing was left out.</p>"
    return html_page.definitions(sorted(found.not_measured.items()))


def _record(found: Findings) -> str:
    record = found.record
    sets = [
        (
            f"Set: {name}",
            f"{row['volumes']} volumes of {row['subjects']} subjects, {'x'.join(map(str, row['shape']))} voxels of "
            f"{'x'.join(f'{side:g}' for side in row['spacing_mm'])} mm, beginning with {row['first_file']}",
        )
        for name, row in found.sets.items()
    ]
    given = ", ".join(f"{key} {value}" for key, value in record["question"].items() if value is not None)
    extractor = record["extractor"]
    machine = record["hardware"]
    more = [
        ("Asked", given),
        ("Extractor", f"{extractor['name']}, SHA-256 {extractor['sha256']}"),
        ("Code", f"brainldm {record['version']}, commit {record['commit']}"),
        ("Machine", f"{machine.get('accelerator') or machine['processor']}, {record['seconds']:.0f} s for this start"),
    ]
    return html_page.definitions(sets + more)
