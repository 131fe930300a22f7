"""Put a finished run in the published book: outputs into the notebooks, results and records into book/published.

Everything is checked before anything is written. Private scans cannot leak: a cohort whose manifest does not allow
publication is refused (law 10).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from .errors import BrainLDMError
from .notebooks import find_notebook, notebook_names, pair, project_root, write_notebook
from .records import STAGES, Run, open_run, read_json, read_record, sha256, write_text

LIMIT = 1_500_000  # bytes of outputs a notebook


def open_finished(folder: Path, names: Sequence[str] | None = None) -> Run:
    """The run that lies in a folder, with every notebook run, or at least those named.

    Raises:
        BrainLDMError: not a run, or not finished.
    """
    marker = folder / "run.json"
    if not marker.exists():
        raise BrainLDMError(f"{folder}: not a run; give the name of one, for instance tiny-atlas")
    facts = read_json(marker)
    run = open_run(facts["profile"]["name"], facts["cohort"], facts["seed"], folder.parent)
    for name in notebook_names() if names is None else names:
        record = run.stage("notebooks") / f"{name}.record.json"
        if not record.exists():
            raise BrainLDMError(f"{record}: missing; finish the run first: brainldm run all")
        content = read_json(record)
        for file, digest in content["outputs"].items():
            if sha256(record.parent / file) != digest:
                raise BrainLDMError(f"{record.parent / file}: was changed after it was run; run the notebook again")
        if content["inputs"][f"{name}.py"] != sha256(find_notebook(name)):
            raise BrainLDMError(f"{find_notebook(name)}: was changed after it was run; run the notebook again")
    return run


def check_publishable(run: Run) -> None:
    """Refuse cohorts whose manifest restricts access or commercial use, and cohorts without a manifest.

    Raises:
        BrainLDMError: pages made from this cohort must not be published.
    """
    from .manifests import publishable

    allowed, why = publishable(run.cohort)
    if not allowed:
        raise BrainLDMError(f"{run.folder}: may not be published: {why}; publish a run of a simulated cohort")


def local_paths() -> list[str]:
    """Folders of this machine that no page may show, longest first."""
    found = {str(project_root()), str(Path.home()), os.path.realpath(project_root()), os.path.realpath(Path.home())}
    return sorted((path for path in found if len(path) > 1), key=len, reverse=True)


def strip_paths(text: str) -> str:
    """``text`` without the folders of this machine: paths in the checkout become relative."""
    for path in local_paths():
        text = re.sub(re.escape(path) + r"(?:/|(?![\w.-]))", "", text)
    return text


def _strip(value):
    if isinstance(value, str):
        return strip_paths(value)
    if isinstance(value, dict):
        return {key: _strip(item) for key, item in value.items()}
    return [_strip(item) for item in value] if isinstance(value, list) else value


def thinned_losses(run: Run) -> dict[str, str]:
    """Losses of a run's finished trainings by name, thinned, as CSV: what other people's runs are compared with.

    Raises:
        BrainLDMError: a table of losses is not the one that the training left.
    """
    import pandas as pd

    from .curves import STAGES as TRAININGS
    from .curves import losses_path, thin

    found = {}
    for name in TRAININGS:
        path = losses_path(run, name)
        record = read_record(path.parent)
        if record is None or path.name not in record["outputs"]:
            continue
        if not path.exists() or sha256(path) != record["outputs"][path.name]:
            raise BrainLDMError(f"{path}: is gone or was changed after the training; put the original back")
        found[name] = thin(pd.read_csv(path)).to_csv(index=False, float_format="%.6g", lineterminator="\n")
    return found


def publish(folder: Path, outputs: bool = True) -> list[Path]:
    """Publish the run in ``folder``, with the losses of its trainings; return the files that were written.

    Without ``outputs`` no notebook is touched, and those that were run give their results and records: another training
    seed beside the one that the pages show.

    Raises:
        BrainLDMError: unfinished or changed since, not to be published, outputs too large, or a foreign path in them.
    """
    import nbformat

    folder, root = Path(folder), project_root()
    names = notebook_names()
    if not outputs:
        names = [name for name in names if (folder / "notebooks" / f"{name}.record.json").exists()]
    run = open_finished(folder, names)
    if not names:
        raise BrainLDMError(f"{run.folder}: no notebook of it was run; run one first: brainldm run 08")
    check_publishable(run)
    notebooks, texts = {}, {}
    for name in names if outputs else ():
        source = find_notebook(name)
        notebook = pair(source, nbformat.read(run.stage("notebooks") / f"{name}.ipynb", as_version=4))
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = [nbformat.from_dict(_strip(output)) for output in cell.outputs]
        size = len(json.dumps([cell.get("outputs", []) for cell in notebook.cells]))
        if size > LIMIT:
            raise BrainLDMError(f"{source}: its outputs are {size / 1e6:.1f} MB, {LIMIT / 1e6} MB at most; show less")
        notebooks[source.with_suffix(".ipynb")] = notebook
    target = root / "book" / "published" / run.name
    for stage in STAGES:
        if (record := read_record(run.stage(stage))) is not None and stage != "book":
            texts[target / "records" / f"{stage}.json"] = record
    for name in names:
        texts[target / "records" / f"{name}.json"] = read_json(run.stage("notebooks") / f"{name}.record.json")
    for name in (*names, "scoreboard") if outputs else names:
        if (path := run.stage("results") / f"{name}.json").exists():
            texts[target / "results" / path.name] = read_json(path)
    tables = {target / "losses" / f"{name}.csv": table for name, table in thinned_losses(run).items()}
    for path, notebook in notebooks.items():
        write_notebook(notebook, path)
    for path, content in texts.items():
        write_text(path, json.dumps(_strip(content), indent=1, allow_nan=False) + "\n")
    for path, table in tables.items():
        write_text(path, table)
    return [*notebooks, *texts, *tables]
