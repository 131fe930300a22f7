"""What is published of the samplers: quality against steps and seconds (table 1 and section 3.1 of the paper).

``benchmarks/sampler_curve.py`` and ``benchmarks/sampling.py`` measure, the chapter on DDIM shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .figures import COLOURS, WIDTH, canvas

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

TITLES = {"ddim": "DDIM", "dpmpp": "DPM-Solver++", "unipc": "UniPC", "ddpm": "DDPM"}
PAPER = {"ddpm": {"seconds": 142.3, "fid": 0.0076}, "ddim": {"seconds": 7.6, "fid": 0.0080}}
"""Pinaya et al. 2022, 1000 and 50 steps: seconds on a TITAN RTX; FID by another extractor than ours."""
REFERENCE = "ddim:50"
FITS = ("ventricles", "brain")


def title(case: str) -> str:
    """Name of SAMPLER:STEPS, or of the released bundle's recipe, for a reader."""
    sampler, _, steps = case.partition(":")
    return f"{TITLES[sampler]} {steps}" if sampler in TITLES else "bundle's recipe"


def seconds_of(speed: Mapping[str, Any] | None) -> dict[str, float]:
    """Seconds of a volume from noise to decoded, by SAMPLER:STEPS."""
    rows = speed["cases"] if speed else ()
    return {row["case"]: row["denoising_s"] + row["decoding_s"] for row in rows}


def curve_table(curve: Mapping[str, Any] | None, speed: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """A row for each sampler and number of steps: quality, distance to DDIM over all steps, seconds a volume."""
    import pandas as pd

    taken, rows = seconds_of(speed), []
    for point in curve["points"] if curve else ():
        case = f"{point['sampler']}:{point['steps']}"
        r = {name: f"{point[name]['r']:.3f} [{point[name]['low']:.3f}, {point[name]['high']:.3f}]" for name in FITS}
        near = f"{255 * point['near']['grey']:.2f}" if "near" in point else ""
        rows.append(
            {
                "sampler": TITLES[point["sampler"]],
                "steps": point["steps"],
                "n": point["n"],
                "FID": f"{point['fid']:.5f}",
                **{f"{name}, r [95 %]": text for name, text in r.items()},
                "distance (grey levels of 255)": near,
                "seconds a volume": f"{taken[case]:.3f}" if case in taken else "",
            }
        )
    columns = list(rows[0]) if rows else ["sampler", "steps"]
    return pd.DataFrame(rows, columns=columns).set_index(columns[:2])


def curve_words(curve: Mapping[str, Any] | None) -> str:
    """What a curve says of the fewest steps whose FID is no larger than that of DDIM 50, and of its floor."""
    if curve is None:
        return (
            "**No such trial has been published for this profile.** `python benchmarks/sampler_curve.py` makes one "
            "from a finished run, after `benchmarks/equivalence.py`."
        )
    fids = {(point["sampler"], point["steps"]): point["fid"] for point in curve["points"]}
    words = [
        f"{curve['n']} people whom no network has seen, one noise each; as many real volumes have FID "
        f"{curve['floor']['fid']:.5f}."
    ]
    if ("ddim", 50) in fids:
        level = fids["ddim", 50]
        for kind in ("dpmpp", "unipc"):
            enough = [steps for (sampler, steps), fid in fids.items() if sampler == kind and fid <= level]
            found = f"from {min(enough)} steps on" if enough else "with none of these numbers of steps"
            words.append(f"{TITLES[kind]} reaches the FID of DDIM 50 ({level:.5f}) {found}.")
    if curve["missing"]:
        words.append(f"Not finished: {'; '.join(curve['missing'])}.")
    return " ".join(words)


def curve_figure(curve: Mapping[str, Any], speed: Mapping[str, Any] | None) -> Figure:
    """FID and distance to DDIM over all steps, by steps; FID by seconds relative to DDPM, with the paper's two."""
    taken = seconds_of(speed)
    points = {kind: [point for point in curve["points"] if point["sampler"] == kind] for kind in TITLES}
    whole = next(iter(points["ddpm"]), None)
    slowest = taken.get(f"ddpm:{curve['timesteps']}")
    with canvas(1, 3, (WIDTH + 1.6, 3.1)) as (figure, axes):
        by_steps, near, by_time = axes[0]
        for colour, (kind, some) in zip(COLOURS, points.items(), strict=False):
            if kind == "ddpm":
                continue
            style = {"color": colour, "markersize": 4, "linewidth": 1.2, "label": TITLES[kind]}
            by_steps.plot([p["steps"] for p in some], [1000 * p["fid"] for p in some], "o-", **style)
            found = [p for p in some if "near" in p]
            near.plot([p["steps"] for p in found], [255 * p["near"]["grey"] for p in found], "o-", **style)
            timed = [p for p in some if f"{kind}:{p['steps']}" in taken]
            if whole and slowest:
                x = [taken[f"{kind}:{p['steps']}"] / slowest for p in timed]
                by_time.plot(x, [p["fid"] / whole["fid"] for p in timed], "o", **style)
        by_steps.axhline(1000 * curve["floor"]["fid"], color="0.45", linestyle=":", linewidth=1, label="real volumes")
        if whole:
            by_steps.axhline(1000 * whole["fid"], color="0.2", linestyle="--", linewidth=1, label="DDPM, all steps")
        slow, fast = PAPER["ddpm"], PAPER["ddim"]
        x = np.array([fast["seconds"], slow["seconds"]]) / slow["seconds"]
        y = np.array([fast["fid"], slow["fid"]]) / slow["fid"]
        by_time.plot(x, y, "*", color="0.2", markersize=9, label="paper, DDIM 50 and 1000 steps")
        for axis in (by_steps, near, by_time):
            axis.set_xscale("log")
        ticks = [4, 6, 10, 16, 25, 50]
        for axis in (by_steps, near):
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.minorticks_off()
            axis.set_xlabel("steps")
        near.set_yscale("log")
        marks = [mark for mark in (0.1, 0.2, 0.5, 1, 2, 5) if near.get_ylim()[0] <= mark <= near.get_ylim()[1]]
        near.set_yticks(marks, [f"{mark:g}" for mark in marks])
        near.minorticks_off()
        by_steps.set_ylabel("FID (thousandths)")
        near.set_ylabel(f"to DDIM {curve['timesteps']} (grey levels)")
        by_time.set_xlabel("seconds, DDPM 1000 = 1")
        by_time.set_ylabel("FID, DDPM 1000 = 1")
        marks, texts = (
            [*one, *other]
            for one, other in zip(*(axis.get_legend_handles_labels() for axis in (by_steps, by_time)), strict=True)
        )
        named = dict(zip(texts, marks, strict=True))
        figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=3, fontsize=8)
    return figure


def speed_table(speed: Mapping[str, Any] | None) -> pd.DataFrame:
    """A row for each case of the benchmark: the parts of a volume's seconds (medians), their range, and peak memory."""
    import pandas as pd

    rows = {}
    for row in speed["cases"] if speed else ():
        rows[title(row["case"])] = {
            "batch": row["batch"],
            "n": row["n"],
            "loop (s)": f"{row['denoising_s']:.3f}",
            "decode (s)": f"{row['decoding_s']:.3f}",
            "write (s)": f"{row['writing_s']:.3f}",
            "all (s)": f"{row['seconds_a_volume']:.3f}",
            "range (s)": f"{row['range_s'][0]:.2f} to {row['range_s'][1]:.2f}",
            "peak (GiB)": f"{row['peak_gib']:.2f}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def ratio_table(speed: Mapping[str, Any] | None) -> pd.DataFrame:
    """How many times as fast each case is as DDIM 50 (loop, noise to file, counted work) and as the bundle's recipe."""
    import pandas as pd

    rows = {}
    for row in speed["ratios"] if speed else ():
        reference, bundle = row.get(REFERENCE, {}), row.get("bundle", {})
        rows[title(row["case"])] = {
            "as DDIM 50: loop": _times(reference.get("denoising")),
            "noise to file": _times(reference.get("end_to_end")),
            "counted": _times(reference.get("counted")),
            "as the bundle's recipe": _times(bundle.get("end_to_end")),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def speed_words(speed: Mapping[str, Any] | None, case: str) -> str:
    """What the benchmark found for one sampler, against DDIM 50, the counted work and the bundle's recipe."""
    if speed is None:
        return "**No benchmark has been published for this profile**: `python benchmarks/sampling.py` makes one."
    found = next((row for row in speed["ratios"] if row["case"] == case), None)
    if found is None or REFERENCE not in found:
        return f"The published benchmark has no row for {title(case)}."
    ratio = found[REFERENCE]
    share = 100 * ratio["end_to_end"] / ratio["counted"]
    words = (
        f"{title(case)} is {ratio['denoising']:.1f} times as fast as DDIM 50 in the denoising loop and "
        f"{ratio['end_to_end']:.1f} times from noise to file. Counted in operations it would be {ratio['counted']:.1f} "
        f"times, so {share:.0f} % of the counted ratio arrives."
    )
    if "bundle" in found:
        words += (
            f" The released bundle's recipe takes {found['bundle']['end_to_end']:.1f} times as long on this machine."
        )
    return words
