"""The scoreboard: every number of the paper with ours beside it, read from results files and never typed.

The paper's numbers lie in ``paper.yaml``, each with its table or section and with what must agree before ours may stand
beside it. Ours are rows of ``runs/<run>/results/<notebook>.json``, as ``runner.finish_notebook`` writes them, found by
notebook and key:

=========================  =============================================================================================
notebook                   keys
=========================  =============================================================================================
``01_data``                ``scans`` (of all splits)
``02_autoencoder``         ``parameters``
``03_latent_diffusion``    ``parameters``
``04_ddim_acceleration``   ``seconds_ldm_1000``, ``seconds_ldm_ddim50`` (a volume)
``05_conditioning``        ``ventricles_r``, ``brain_age_r``
``08_evaluation``          ``fid_``, ``ms_ssim_`` and ``four_g_r_ssim_`` before each of ``lsgan``, ``vaegan``,
                           ``ldm_1000``, ``ldm_ddim50``, ``real``; n counts volumes for FID, pairs for the others
``09_synthetic_dataset``   ``volumes``
=========================  =============================================================================================

Rows with a distance between sets should have a ``floor`` (real against real at the same n) and those of FID an
``extractor`` (its name).
"""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from .errors import BrainLDMError
from .records import Run, read_json, read_record, run_in, write_json

METRICS = {"fid": "FID", "ms_ssim": "MS-SSIM", "four_g_r_ssim": "4-G-R-SSIM"}  # of table 1, as keys begin
FIELDS = ("unit", "n", "low", "high", "floor", "extractor", "note")
_FACTS = yaml.safe_load((files(__package__) / "paper.yaml").read_text(encoding="utf-8"))

PAPER: tuple[dict[str, Any], ...] = tuple(
    {key: value for key, value in group.items() if key != "rows"} | row
    for group in _FACTS["groups"]
    for row in group["rows"]
)
"""The paper's numbers: name, value, unit, spread, n, source, mark, notebook, result, needs."""


def build_scoreboard(run_folder: Path, write: bool = True) -> list[dict[str, Any]]:
    """A row for every number of the paper, with the run's own; also ``<run>/results/scoreboard.json``.

    Each row has ``name``, ``paper``, ``paper_spread``, ``paper_n``, ``source``, ``mark``, ``ours`` (None: not
    measured), ``unit``, ``n``, ``low``, ``high``, ``floor``, ``extractor``, ``note``, ``profile``, ``cohort``,
    ``run``, ``comparable`` and ``why_not``.

    Raises:
        BrainLDMError: no run lies there, or a results file is damaged or of another run.
    """
    run = _open(Path(run_folder))
    facts = _cohort_facts(run)
    cohort = f"{run.cohort} ({', '.join(words)})" if (words := _cohort_words(facts)) else run.cohort
    rows = []
    for entry in PAPER:
        found = _result(run, entry["notebook"], entry["result"])
        reasons = ["not measured"] if found is None else _why_not(entry, found, run, facts)
        found = found or {}
        row = {"name": entry["name"], "paper": entry["value"], "paper_spread": entry.get("spread")}
        row |= {"paper_n": entry.get("n"), "source": entry["source"], "mark": entry["mark"], "ours": found.get("value")}
        row |= {field: found.get(field) for field in FIELDS}
        row["unit"] = row["unit"] or entry.get("unit", "")
        row |= {"profile": run.profile.name, "cohort": cohort, "run": run.name}
        rows.append(row | {"comparable": not reasons, "why_not": "; ".join(reasons)})
    if write:
        write_json(run.stage("results") / "scoreboard.json", {"run": run.name, "rows": rows})
    return rows


def read_scoreboard(folder: Path) -> list[dict[str, Any]]:
    """The rows that were built for a run, also from its published folder, which has results and no run."""
    return read_json(Path(folder) / "results" / "scoreboard.json")["rows"]


def _open(folder: Path) -> Run:
    if (run := run_in(folder)) is None:
        raise BrainLDMError(f"{folder}: not a run; give the folder of one, for instance runs/tiny-atlas")
    if run.folder != folder.resolve():
        raise BrainLDMError(f"{folder}: holds run {run.name}; give the folder its name back")
    return run


def _cohort_facts(run: Run) -> dict[str, Any]:
    path = run.stage("cohort") / "dataset_description.json"
    return read_json(path).get("BrainLDM", {}) if path.exists() else {}


def _cohort_words(facts: dict[str, Any]) -> list[str]:
    head = {True: "brain only", False: "whole head"}.get(facts.get("brain_only"))
    return ["simulated"] * bool(facts.get("simulated")) + [head] * (head is not None)


def _result(run: Run, notebook: str, key: str) -> dict[str, Any] | None:
    """A row of a results file of this run; None where there is no such file or row."""
    path = run.stage("results") / f"{notebook}.json"
    if not path.exists():
        return None
    content = read_json(path)
    if not isinstance(content, dict) or content.get("run") != run.name or content.get("notebook") != notebook:
        raise BrainLDMError(f"{path}: is not of {notebook} in run {run.name}; run that notebook again")
    row = content["results"].get(key)
    value = None if row is None else row.get("value")
    if row is not None and (not isinstance(value, int | float) or not math.isfinite(value)):
        raise BrainLDMError(f"{path}: result {key!r} has value {value!r}, not a number; run that notebook again")
    return row


def _why_not(entry: dict[str, Any], found: dict[str, Any], run: Run, facts: dict[str, Any]) -> list[str]:
    """Why ours may not stand beside the paper's; nothing where it may."""
    return [reason for need in entry["needs"] if (reason := _CHECKS[need](entry, found, run, facts))]


def _cohort(entry, found, run: Run, facts: dict[str, Any]) -> str:
    if run.cohort.lower() == _FACTS["cohort"] and not facts.get("brain_only"):
        return ""
    what = "simulated brains" if facts.get("simulated") else f"cohort {run.cohort}"
    return f"{what}{', brain only' if facts.get('brain_only') else ''}, not whole heads of UK Biobank"


def _grid(entry, found, run: Run, facts) -> str:
    grid = run.profile.grid
    if list(grid.shape) == _FACTS["shape"] and grid.spacing_mm == _FACTS["spacing_mm"]:
        return ""
    return f"voxels of {grid.spacing_mm:g} mm, not {_FACTS['spacing_mm']:g} mm"


def _extractor(entry, found: dict[str, Any], run, facts) -> str:
    name = found.get("extractor") or "an unnamed extractor"
    return "" if _FACTS["extractor"].lower() in name.lower() else f"features of {name}, not of {_FACTS['extractor']}"


def _n(entry: dict[str, Any], found: dict[str, Any], run, facts) -> str:
    n = found.get("n")
    return "" if n == entry["n"] else f"n {'unknown' if n is None else format(n, ',')}, not {entry['n']:,}"


def _hardware(entry, found, run: Run, facts) -> str:
    machine = (read_record(run.stage("samples")) or {}).get("hardware", {})
    name = machine.get("accelerator") or machine.get("processor") or "unknown hardware"
    return "" if _FACTS["hardware"] in name else f"on {name}, not on a {_FACTS['hardware']}"


def _networks(entry, found, run: Run, facts) -> str:
    return "" if run.profile.name == "paper" else f"networks of profile {run.profile.name}, not the paper's"


_CHECKS = {
    "cohort": _cohort, "grid": _grid, "extractor": _extractor, "n": _n, "hardware": _hardware, "networks": _networks,
}  # fmt: skip


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 10 else f"{value:.4g}"


def scoreboard_markdown(rows: list[dict[str, Any]]) -> str:
    """The scoreboard as a Markdown table; what is missing says "not measured"."""
    heads = ("Number", "Paper", "Ours", "n", "Floor", "Comparable")
    lines = [f"| {' | '.join(heads)} |", "|:--|--:|--:|--:|--:|:--|"]
    for row in rows:
        paper = _number(row["paper"]) + (f" ± {_number(row['paper_spread'])}" if row["paper_spread"] else "")
        ours = "not measured" if row["ours"] is None else _number(row["ours"])
        if row["low"] is not None and row["high"] is not None:
            ours += f" [{_number(row['low'])}, {_number(row['high'])}]"
        unit = f" ({row['unit']})" if row["unit"] else ""
        verdict = "yes" if row["comparable"] else "no" if row["ours"] is None else f"no: {row['why_not']}"
        cells = (f"{row['name']}{unit}", f"{paper} [{row['mark']}]", ours, _number(row["n"]), _number(row["floor"]))
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in (*cells, verdict)) + " |")
    first = rows[0]
    where = f"Run `{first['run']}`, profile `{first['profile']}`, cohort {first['cohort']}."
    marks = "[P]: printed in the paper; [R]: counted in the network that its authors released."
    return "\n".join([*lines, "", f"{where} {marks}"])
