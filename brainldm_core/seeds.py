"""Table 1 over training seeds: how far models differ beyond what one training differs from the next."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from .records import read_json
from .scoreboard import METRICS

SYSTEMS = {
    "lsgan": "LSGAN",
    "vaegan": "VAE-GAN",
    "ldm_ddim50": "LDM, DDIM",
    "reconstruction": "autoencoder alone",
    "real": "real, other people",
}
RESULTS = "08_evaluation.json"


def runs_by_settings(folders: Iterable[Path]) -> dict[str, list[Path]]:
    """Folders of runs or of published runs that differ in their training seed alone, those of one seed left out."""
    found: dict[str, list[Path]] = {}
    for folder in sorted(folders):
        if (folder / "results" / RESULTS).exists():
            found.setdefault(re.sub(r"-seed\d+$", "", folder.name), []).append(folder)
    return {name: group for name, group in found.items() if len(group) > 1}


def over_seeds(folders: Iterable[Path]) -> str:
    """Markdown: mean and range over seeds of each metric of table 1, and in how many seeds the LDM leads.

    For FID the LDM leads where its distance is smaller; for likeness among pairs, where it is nearer to that of real
    ones. Empty without two runs that differ in their seed alone.
    """
    parts = []
    for name, group in runs_by_settings(folders).items():
        results = [read_json(folder / "results" / RESULTS)["results"] for folder in group]
        lines = [f"| model | {' | '.join(METRICS.values())} |", "|:--|" + "--:|" * len(METRICS)]
        for system, title in SYSTEMS.items():
            cells = [_cell([result[f"{metric}_{system}"]["value"] for result in results]) for metric in METRICS]
            lines.append(f"| {title} | {' | '.join(cells)} |")
        ours = results[0]["fid_ldm_ddim50"]
        head = f"Run `{name}` with {len(group)} training seeds: mean (smallest to largest), {ours['n']} volumes each."
        words = " ".join(_leads(results, gan) for gan in ("lsgan", "vaegan"))
        parts += [head, "\n".join(lines), f"{words} FID: {ours['note']}."]
    return "\n\n".join(parts)


def _cell(values: list[float]) -> str:
    return f"{sum(values) / len(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def _leads(results: list[dict], gan: str) -> str:
    counts = []
    for metric, title in METRICS.items():
        goals = [0.0 if metric == "fid" else result[f"{metric}_real"]["value"] for result in results]
        gaps = [
            [abs(result[f"{metric}_{system}"]["value"] - goal) for result, goal in zip(results, goals, strict=True)]
            for system in ("ldm_ddim50", gan)
        ]
        counts.append(f"{sum(a < b for a, b in zip(*gaps, strict=True))} in {title}")
    return (
        f"Of {len(results)} seeds the LDM comes nearer to real volumes than the {SYSTEMS[gan]} in {', '.join(counts)}."
    )
