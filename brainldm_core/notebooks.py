"""Notebooks as files: which there are, their typed parameters, and the pair of .py (edited) and .ipynb (outputs).

What the cells must hold is told in ``runner``. The direction is always from .py to .ipynb, never back.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BrainLDMError
from .records import atomic_path

if TYPE_CHECKING:
    from nbformat import NotebookNode

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
TYPES = {"str": str, "int": int, "float": float, "bool": bool}
# Finished stages that a chapter starts from; a new chapter that is not listed waits for the samples.
NEEDS: dict[str, tuple[str, ...]] = {
    "00_quickstart": (),  # draws from the weights that ship
    "01_data": ("cohort",),
    "02_autoencoder": ("cohort", "autoencoder"),
    "05_conditioning": ("cohort", "autoencoder", "diffusion", "samples", "brain_age"),
    "06_extrapolation": ("cohort", "autoencoder", "diffusion", "samples"),
    "07_baselines": ("cohort", "diffusion", "samples", "baselines"),
    "08_evaluation": ("cohort", "autoencoder", "diffusion", "samples", "baselines", "release"),
    "09_synthetic_dataset": ("cohort", "autoencoder", "diffusion", "release"),
    "10_beyond_the_paper": ("cohort", "autoencoder", "diffusion", "samples", "release"),
}


def project_root() -> Path:
    """The checkout: the folder that has ``notebooks/`` and ``workflow/Snakefile``.

    Raises:
        BrainLDMError: neither the package's parent nor the working folder is a checkout.
    """
    for folder in (Path(__file__).resolve().parent.parent, Path.cwd()):
        if (folder / "notebooks").is_dir() and (folder / "workflow" / "Snakefile").is_file():
            return folder
    raise BrainLDMError(f"{Path.cwd()}: not a checkout of the project; go to the folder that has the notebooks")


def with_package() -> dict[str, str]:
    """The environment for child processes that must import this very package, installed or not."""
    paths = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def notebook_names() -> list[str]:
    """Names of all notebooks, in the order of the chapters."""
    return sorted(path.stem for path in (project_root() / "notebooks").glob("[0-9][0-9]_*.py"))


def needs(name: str) -> tuple[str, ...]:
    """Stages that a notebook starts from."""
    return NEEDS.get(name, ("cohort", "autoencoder", "diffusion", "samples"))


def find_notebook(name: str) -> Path:
    """The file ``notebooks/<name>.py``; the number alone will do, and so will a path.

    Raises:
        BrainLDMError: there is no such notebook.
    """
    stem = Path(name).stem
    matches = [other for other in notebook_names() if stem in (other, other.split("_")[0])]
    if len(matches) != 1:
        raise BrainLDMError(f"notebook {name!r} is unknown; choose one of {', '.join(notebook_names())}")
    return project_root() / "notebooks" / f"{matches[0]}.py"


def read_notebook(path: Path) -> NotebookNode:
    """A py:percent notebook without outputs; its cells have names that do not change from call to call."""
    import jupytext

    notebook = jupytext.read(path, fmt="py:percent")
    notebook.metadata = {"kernelspec": dict(KERNEL), "language_info": {"name": "python"}}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{index:02d}"
        cell.metadata.pop("lines_to_next_cell", None)  # layout of the .py file, which no .ipynb has
    return notebook


def _parameters_cell(notebook: NotebookNode, where: Path) -> NotebookNode:
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise BrainLDMError(f"{where}: {len(cells)} cells are tagged 'parameters'; tag exactly one")
    return cells[0]


def parameters_of(notebook: NotebookNode, where: Path) -> dict[str, tuple[type, Any]]:
    """Name -> (type, default) of the cell tagged ``parameters``.

    Raises:
        BrainLDMError: there is not exactly one such cell, or it holds anything but typed plain assignments.
    """
    found: dict[str, tuple[type, Any]] = {}
    for node in ast.parse(_parameters_cell(notebook, where).source).body:
        try:
            if not isinstance(node, ast.AnnAssign):
                raise ValueError
            kind = TYPES[node.annotation.id]
            found[node.target.id] = (kind, check_value(node.target.id, ast.literal_eval(node.value), kind))
        except (AttributeError, KeyError, ValueError, TypeError, BrainLDMError):
            line = ast.unparse(node)
            raise BrainLDMError(f"{where}: {line!r} in the parameters cell; write e.g. 'seed: int = 0'") from None
    return found


def check_value(name: str, value: Any, kind: type) -> Any:
    """``value`` as ``kind``; text, as it comes from a command line, is read strictly.

    Raises:
        BrainLDMError: the value is of another type.
    """
    try:
        if isinstance(value, str) and kind is not str:
            value = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ValueError
    except (KeyError, ValueError):
        raise BrainLDMError(f"parameter {name}: {value!r} is not of type {kind.__name__}") from None
    return value


def check_parameters(notebook: NotebookNode, given: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """All parameters of a run: the defaults of the parameters cell, replaced by ``given``.

    Raises:
        BrainLDMError: a name is unknown to the notebook or a value is of another type.
    """
    known = parameters_of(notebook, where)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise BrainLDMError(f"{where}: no parameter {', '.join(unknown)}; it has {', '.join(known)}")
    return {name: check_value(name, given.get(name, default), kind) for name, (kind, default) in known.items()}


def set_parameters(notebook: NotebookNode, values: Mapping[str, Any], where: Path) -> None:
    """Put values in the parameters cell itself, comments kept, so that the page shows what was run."""
    cell = _parameters_cell(notebook, where)
    lines = cell.source.splitlines()
    for node in reversed(ast.parse(cell.source).body):
        if node.value.lineno != node.value.end_lineno:
            raise BrainLDMError(f"{where}: parameter {node.target.id} spans lines; put it on one")
        line = lines[node.value.lineno - 1].encode()  # columns of the syntax tree count bytes
        value = values[node.target.id]
        value = (json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)).encode()
        lines[node.value.lineno - 1] = (
            line[: node.value.col_offset] + value + line[node.value.end_col_offset :]
        ).decode()
    cell.source = "\n".join(lines)


def write_notebook(notebook: NotebookNode, path: Path) -> None:
    """Write an .ipynb atomically, without papermill's notes, which hold paths of the machine."""
    import nbformat

    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
    with atomic_path(path) as partial:
        nbformat.write(notebook, partial)


def _content(notebook: NotebookNode) -> list[tuple[str, str, dict]]:
    return [(cell.cell_type, cell.source, dict(cell.metadata)) for cell in notebook.cells]


def out_of_step(path: Path) -> str:
    """What is wrong with the .ipynb beside ``path`` (a .py notebook); empty when they are in step."""
    import nbformat

    twin = path.with_suffix(".ipynb")
    if not twin.exists():
        return f"{twin}: missing; run 'make sync'"
    source, paired = read_notebook(path), nbformat.read(twin, as_version=4)
    if _content(source) != _content(paired):
        return f"{twin}: its cells differ from {path.name}, the file that is edited; run 'make sync'"
    if paired.metadata.get("kernelspec", {}).get("name") != KERNEL["name"]:
        return f"{twin}: its kernel is not {KERNEL['name']}; run 'make sync'"
    return ""


def pair(path: Path, executed: NotebookNode | None) -> NotebookNode:
    """The .ipynb that belongs to ``path``: its cells, with the outputs of ``executed`` if its code is the same.

    Outputs of other code are dropped, all of them: a page must not show what its code did not make.
    """
    notebook = read_notebook(path)
    if executed is not None and _code(notebook, path) == _code(executed, path):
        outputs = [(cell.outputs, cell.execution_count) for cell in executed.cells if cell.cell_type == "code"]
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = outputs.pop(0)
    return notebook


def _code(notebook: NotebookNode, where: Path) -> list[str]:
    """Sources of the code cells; of the parameters only their names and types, as runs change the values."""
    parameters = str([(name, kind) for name, (kind, _) in parameters_of(notebook, where).items()])
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [parameters if "parameters" in cell.metadata.get("tags", []) else cell.source for cell in cells]


def sync(names: list[str] | None = None) -> list[str]:
    """Bring every .ipynb in step with its .py; return the names of those that had to be written."""
    import nbformat

    written = []
    for path in [find_notebook(name) for name in names or notebook_names()]:
        if out_of_step(path):
            twin = path.with_suffix(".ipynb")
            write_notebook(pair(path, nbformat.read(twin, as_version=4) if twin.exists() else None), twin)
            written.append(path.stem)
    return written
