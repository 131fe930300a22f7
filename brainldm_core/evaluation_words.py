"""What the numbers of ``brainldm evaluate`` say, in sentences made from them; table 1 for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .answers import nearer
from .comparison import known, paper_value, with_interval
from .evaluation import PAPER_GRID, REAL

METRICS = {"fid": "FID", "kid": "KID", "mmd": "MMD", "ms_ssim": "MS-SSIM", "four_g_r_ssim": "4-G-R-SSIM"}
SHARES = ("precision", "recall", "density", "coverage")


def row_of(rows: Iterable[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """The row of a system."""
    return next(row for row in rows if row["model"] == name)


def verdict(rows: list[dict[str, Any]]) -> list[str]:
    """What table 1 says of the samples, in sentences made from its numbers."""
    ours, real = row_of(rows, "samples"), row_of(rows, REAL)
    realism = {
        True: "Real volumes of other people are nearer to the reference than the samples are.",
        False: "The samples are nearer to the reference than real volumes of other people are; look for copies.",
        None: "The intervals overlap or are unknown: at this n no difference is shown, nor its absence.",
    }[nearer(real, ours, "fid")]
    if not all(known(row[f"ms_ssim_{end}"]) for row in (ours, real) for end in ("low", "high")):
        variety = "With so few volumes nothing is said of variety."
    elif ours["ms_ssim_low"] > real["ms_ssim_high"]:
        variety = "Pairs of samples are more alike than pairs of real volumes: variety is missing."
    elif ours["ms_ssim_high"] < real["ms_ssim_low"]:
        variety = "Pairs of samples are less alike than pairs of real volumes: more variety, or noise."
    else:
        variety = "Pairs of samples are about as alike as pairs of real volumes."
    return [
        f"FID of {ours['n']} samples: {with_interval(ours, 'fid')}; of as many other real volumes, the floor: "
        f"{with_interval(real, 'fid')}. {realism}",
        f"MS-SSIM of pairs of samples: {with_interval(ours, 'ms_ssim')}; of real volumes: "
        f"{with_interval(real, 'ms_ssim')}. {variety}",
        f"Features: {ours['note']}.",
    ]


def text_table(rows: list[dict[str, Any]]) -> str:
    """Table 1 for a terminal."""
    head = ["", "n", "FID", "floor", "KID", "MS-SSIM", "4-G-R-SSIM", *SHARES]
    lines = [head]
    for row in rows:
        cells = [row["model"], str(row["n"]), with_interval(row, "fid"), f"{row['fid_floor']:.3g}"]
        cells += [f"{row['kid']:.2g}", with_interval(row, "ms_ssim"), with_interval(row, "four_g_r_ssim")]
        lines.append(cells + [f"{row[name]:.2f}" for name in SHARES])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def beside_paper(rows: list[dict[str, Any]], grid: tuple[int, ...]) -> list[str]:
    """The paper's numbers, and why ours may or may not stand beside them."""
    ours, comparable = row_of(rows, "samples"), "not comparable" not in row_of(rows, "samples")["note"]
    printed = [
        f"{title} {paper_value(metric, 'ldm_ddim50'):.4f} (real {paper_value(metric, 'real'):.4f})"
        for metric, title in METRICS.items()
        if paper_value(metric, "ldm_ddim50") is not None
    ]
    reasons = []
    if not comparable:
        reasons.append(f"FID: features are those of {ours['note']}")
    if tuple(grid) != PAPER_GRID:
        shapes = [" × ".join(map(str, shape)) for shape in (grid, PAPER_GRID)]
        reasons.append(f"grid: {shapes[0]} voxels here, {shapes[1]} in the paper, which changes every number")
    if ours["n"] != 1000:
        reasons.append(f"n: {ours['n']} here, 1,000 in the paper")
    reasons.append("real volumes: the paper's are whole heads of UK Biobank; whether these are, no file says")
    return [
        f"Pinaya et al. 2022, table 1, LDM with 50 DDIM steps: {', '.join(printed)}.",
        "What keeps the two apart. " + ". ".join(reason[:1].upper() + reason[1:] for reason in reasons) + ".",
    ]


def copies_in_words(found: Mapping[str, Any]) -> list[str]:
    """What the search for copies saw, what it would have seen, and what it takes for granted."""
    low, high = found["innocent"]
    where = (
        "above it, nearer to them than chance" if found["share"] > high else "below it" if found["share"] < low else ""
    )
    power = ", ".join(f"{name}: {share:.0%}" for name, share in found["found"].items())
    said = [
        f"{found['share']:.2f} of {found['n']} samples [{found['low']:.2f}, {found['high']:.2f}] have their nearest "
        f"neighbour among the training subjects ({found['subjects'][0]}, {found['subjects'][1]} held-out, cut to one "
        f"number). An innocent generator gives {low:.2f} to {high:.2f}: this is {where or 'inside'} "
        f"(p = {found['p_value']:.2g} for distances as small as these).",
    ]
    if found["threshold"] > 0:
        said.append(
            f"{found['flagged']:.0%} of the samples lie below the threshold of a copy, where up to "
            f"{found['false_positive_rate']:.0%} are expected of strangers. Of {found['planted']} planted copies of "
            f"training volumes the same search finds: {power}."
        )
    else:
        said.append("Held-out subjects are too few for a threshold, so no single copy can be found here.")
    said.append(
        "Samples that were asked for with covariates of training people lie nearer to them without any copying; "
        "requests of people in neither set are the fair ones."
    )
    return said
