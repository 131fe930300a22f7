"""The page ``quality.html`` of a cohort of real scans: what was done, what failed, and how each scan came out.

One file that asks no other host for anything: pictures lie inside it. Every text that comes from a user's files is
escaped.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .covariates import KEYS
from .dataset import scan_name
from .html_page import paragraphs, picture, table
from .html_page import write_page as write_html
from .intensity import WAYS
from .profiles import Grid
from .quality import PICTURE_ROWS, read_scan, thumbnail, worst_first
from .scans import NOT_ASKED, Preparation

if TYPE_CHECKING:
    import pandas as pd

LEGEND = (
    "Slices at z = 18 mm, x = 0 and y = 0, left on the left; the red line is the template's brain. Brain and line need "
    "not coincide, because heads keep their size: look for a brain that is turned, shifted or cut off.",
    "Correlation is with the template inside its brain. In twenty scans that lay well it was 0.53 to 0.61 for brains "
    "without a skull and 0.36 to 0.48 for whole heads; a strong bias field lowers it. Mutual information is what the "
    "alignment maximised. Rotation is how far the scan was turned. Scale is the size of the head beside the "
    "template's, measured and then left out. White level is the scan's own intensity of white matter.",
)
PAPER = (
    "The paper aligned its scans with UniRes (Brudfors et al. 2019). UniRes fits one denoised image of 1 mm voxels to "
    "everything that was scanned of a person, under a prior that favours sharp edges, and aligns it rigidly.",
    "Here each scan is aligned with SimpleITK and resampled once. Nothing is denoised, and thick slices stay as "
    "blurred as they were: a scan of 5 mm slices does not become one of 1 mm.",
    "Both are rigid, so that heads keep their size. The paper kept whole heads.",
)
COLUMNS = ("Correlation", "Mutual information", "Rotation (°)", "Scale", "White level")


def done_to(row: Any) -> str:
    """What was done to a scan beside its alignment, in words."""
    said = ["brain only" if row.brain_only else "whole head"]
    if row.brain_ml == row.brain_ml and row.brain_ml is not None:
        said.append(f"brain of {row.brain_ml:.0f} ml cut out by {row.brain_extraction}")
    elif row.brain_extraction != NOT_ASKED:
        said.append("was brain only already: nothing cut")
    if row.bias_percent == row.bias_percent and row.bias_percent is not None:
        said.append(f"bias field of {row.bias_percent:.0f} % taken off")
    return "; ".join(said)


def _scan_row(row: Any, slices: bytes | None) -> str:
    name = scan_name(*(getattr(row, key) for key in KEYS))
    alt = f"Three slices of {name} with the template's outline"
    image = picture(slices, alt) if slices is not None else ""
    values = (
        f"{row.correlation:.2f}",
        f"{row.mutual_information:.2f}",
        f"{row.rotation_degrees:.1f}",
        f"{row.scale:.2f}",
        f"{row.white_level:.4g}",
    )
    numbers = "".join(f'<td class="number">{value}</td>' for value in values)
    return (
        f'<tr{" class=look" if row.flagged else ""}><th scope="row">{escape(name)}<small>{escape(str(row.source))}'
        f'</small><small>{escape(done_to(row))}</small></th><td class="reason">{escape(row.flagged) or "no"}</td>'
        f"<td>{image}</td>{numbers}</tr>"
    )


def _failed_row(person: str, session: str, reason: str) -> str:
    return f'<tr><th scope="row">{escape(scan_name(person, session))}</th><td class="reason">{escape(reason)}</td></tr>'


def steps(grid: Grid, preparation: Preparation) -> list[str]:
    """What was done to every scan, in order."""
    shape = " × ".join(map(str, grid.shape))
    return [
        "The brain was cut out of whole heads." if preparation.brain_extraction else "No brain was cut out.",
        "The bias field was taken off by N4." if preparation.bias_correction else "The bias field was left as it was.",
        "The scan was aligned to the template ICBM 2009a: a rotation and a shift that maximise mutual information.",
        f"It was resampled once, to {shape} voxels of {grid.spacing_mm:g} mm; what lies outside was cropped.",
        f"Intensities ({preparation.intensity}): {WAYS[preparation.intensity]}.",
    ]


def write_page(
    folder: Path,
    cohort: str,
    quality: pd.DataFrame,
    failures: list[tuple[str, str, str]],
    grid: Grid,
    preparation: Preparation,
) -> None:
    """Write ``quality.html``: failures, scans from the worst to the best (the worst with pictures), the method."""
    looks = int((quality["flagged"] != "").sum())
    rows = [
        _scan_row(row, thumbnail(read_scan(folder, row), grid) if place < PICTURE_ROWS else None)
        for place, row in enumerate(worst_first(quality).itertuples())
    ]
    failed = table(
        ["Scan", "Reason"], [_failed_row(*failure) for failure in failures], "The same list is in failed.tsv"
    )
    head = ["Scan", "To look at", "Slices", *COLUMNS]
    pictures = f" and pictures of the first {PICTURE_ROWS}" if len(quality) > PICTURE_ROWS else ""
    caption = f"{len(quality)} scans, the worst first{pictures}; the same numbers are in quality.tsv"
    done = "\n".join(f"<li>{escape(step)}</li>" for step in steps(grid, preparation))
    write_html(
        Path(folder) / "quality.html",
        f"Quality of cohort {cohort}",
        f"""<p><strong>{len(quality)}</strong> scans are used, <strong>{looks}</strong> of them should be looked at, and
<strong>{len(failures)}</strong> are not used.</p>
<p class="soft">This page shows real scans: it may go where they may go, and nowhere else.</p>
<h2>Not used</h2>
{failed if failures else "<p>None.</p>"}
<h2>Scans</h2>
{paragraphs(LEGEND)}
{table(head, rows, caption)}
<h2>What was done</h2>
<ol>
{done}
</ol>
<h2>How this differs from the paper</h2>
{paragraphs(PAPER)}""",
    )
