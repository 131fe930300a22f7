"""Strict runner of notebooks: typed parameters in, an executed notebook and a record out.

What a notebook must have (``notebooks/NN_slug.py``, py:percent, is the file that is edited and run):

1. One code cell tagged ``parameters`` that holds nothing but typed assignments of plain values, at least::

       profile: str = "tiny"
       cohort: str = "atlas"
       seed: int = 0
       runs: str = "runs"

2. A last code cell that hands over the chapter's numbers, and nothing after it::

       finish_notebook(run, "01_data", {"ventricles, held-out": {"value": 0.93, "unit": "r", "n": 64}})

   ``run`` is ``records.open_run(profile, cohort, seed, runs)``. A result is a number, or a mapping with ``value`` and
   any of ``unit``, ``n``, ``low``, ``high``, ``expected`` and ``note``. They land in ``<run>/results/<name>.json``.

Anything unknown, ill-typed or missing is an error before the kernel starts. A notebook counts as run when papermill
reports no error *and* its last cell has left a note with this call's nonce: a saved notebook alone proves nothing.
By hand, in JupyterLab, the last cell writes the results and no record.
"""

from __future__ import annotations

import ast
import fcntl
import os
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BrainLDMError
from .records import (
    Run,
    atomic_path,
    commit,
    hardware,
    open_run,
    read_json,
    sha256,
    stage_key,
    write_json,
)

if TYPE_CHECKING:
    from nbformat import NotebookNode

NONCE = "BRAINLDM_NOTEBOOK_NONCE"
RESULT_FIELDS = {"value", "unit", "n", "low", "high", "expected", "note"}
TYPES = {"str": str, "int": int, "float": float, "bool": bool}
# Finished stages that a chapter starts from; a new chapter that is not listed waits for the samples.
NEEDS: dict[str, tuple[str, ...]] = {
    "00_quickstart": (),
    "01_data": ("cohort",),
    "02_autoencoder": ("cohort", "autoencoder"),
    "03_latent_diffusion": ("cohort", "autoencoder", "diffusion"),
}


class NotebookError(RuntimeError):
    """A notebook did not run to its end: a cell raised, the kernel died or the last cell was not reached."""


def project_root() -> Path:
    """The checkout: the folder that has ``notebooks/`` and ``workflow/``.

    Raises:
        BrainLDMError: neither the package's parent nor the working folder is a checkout.
    """
    for folder in (Path(__file__).resolve().parent.parent, Path.cwd()):
        if (folder / "notebooks").is_dir() and (folder / "workflow" / "Snakefile").is_file():
            return folder
    raise BrainLDMError(f"{Path.cwd()}: not a checkout of the project; go to the folder that has the notebooks")


def notebook_names() -> list[str]:
    """Names of all notebooks, in the order of the chapters."""
    return sorted(path.stem for path in (project_root() / "notebooks").glob("[0-9][0-9]_*.py"))


def needs(name: str) -> tuple[str, ...]:
    """Stages that a notebook starts from."""
    return NEEDS.get(name, ("cohort", "autoencoder", "diffusion", "samples"))


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold a lock file; wait, and say so, while another process holds it. The system frees it when we die."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{path.parent}: another brainldm is at work here; waiting for it to end", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def read_notebook(name: str) -> tuple[NotebookNode, Path]:
    """The notebook ``notebooks/<name>.py`` (number alone will do: ``01``) and its path."""
    import jupytext

    stem = Path(name).stem if name.endswith((".py", ".ipynb")) else name
    names = notebook_names()
    matches = [other for other in names if stem in (other, other.split("_")[0])]
    if len(matches) != 1:
        raise BrainLDMError(f"notebook {name!r} is unknown; choose one of {', '.join(names)}")
    path = project_root() / "notebooks" / f"{matches[0]}.py"
    return jupytext.read(path, fmt="py:percent"), path


def parameters_of(notebook: NotebookNode, where: Path) -> dict[str, tuple[type, Any]]:
    """Name -> (type, default) of the cell tagged ``parameters``.

    Raises:
        BrainLDMError: there is not exactly one such cell, or it holds anything but typed plain assignments.
    """
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise BrainLDMError(f"{where}: {len(cells)} cells are tagged 'parameters'; tag exactly one")
    found: dict[str, tuple[type, Any]] = {}
    for node in ast.parse(cells[0].source).body:
        try:
            if not isinstance(node, ast.AnnAssign):
                raise ValueError
            kind = TYPES[node.annotation.id]
            found[node.target.id] = (kind, check_value(node.target.id, ast.literal_eval(node.value), kind))
        except (AttributeError, KeyError, ValueError, TypeError, SyntaxError):
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


def _check_last_cell(notebook: NotebookNode, name: str, where: Path) -> None:
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    calls = re.findall(r"finish_notebook\(\s*run\s*,\s*[\"']([^\"']+)[\"']", code[-1] if code else "")
    if calls != [name]:
        raise BrainLDMError(f"{where}: its last code cell must call finish_notebook(run, {name!r}, ...)")


def run_notebook(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Execute a notebook with ``given`` parameters; return its record, ``<run>/notebooks/<name>.record.json``.

    Raises:
        BrainLDMError: bad parameters, or a cell raised one (its line is passed on).
        NotebookError: a cell raised anything else, the kernel died or the last cell was not reached.
    """
    notebook, source = read_notebook(name)
    name = source.stem
    parameters = check_parameters(notebook, given, source)
    _check_last_cell(notebook, name, source)
    run = open_run(*(parameters[key] for key in ("profile", "cohort", "seed", "runs")))
    folder = run.stage("notebooks")
    record_path, note = folder / f"{name}.record.json", folder / f".{name}.note.json"
    with locked(folder / f".{name}.lock"):
        record_path.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
        nonce, start = secrets.token_hex(16), time.perf_counter()
        executed = _execute(notebook, name, parameters, nonce, folder)
        left = read_json(note) if note.exists() else {}
        expected = {"nonce": nonce, "prefix": sys.prefix, "run": run.name}
        wrong = [key for key, value in expected.items() if left.get(key) != value]
        if wrong:
            raise NotebookError(f"{source}: its last cell did not vouch for this run (wrong {', '.join(wrong)})")
        with atomic_path(folder / f"{name}.ipynb") as partial:
            _write_notebook(executed, partial)
        record = {
            "made_by": f"notebooks/{source.name}",
            "settings": parameters,
            "inputs": {source.name: sha256(source)}
            | {stage: stage_key(run.stage(stage)) for stage in needs(name) if (run.stage(stage) / "record.json").exists()},
            "seed": run.seed,
            "commit": commit(),
            "hardware": hardware(),
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(time.perf_counter() - start, 1),
            "peak_memory_mib": left["peak_memory_mib"],
            "outputs": {f"{name}.ipynb": sha256(folder / f"{name}.ipynb")},
            "results": left["results"],
        }
        write_json(record_path, record)
        note.unlink()
    return record


def _execute(notebook: NotebookNode, name: str, parameters: dict, nonce: str, folder: Path) -> NotebookNode:
    """Run the cells in a fresh kernel that talks over sockets in a private folder, working in the checkout."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    failed = folder / f"{name}.failed.ipynb"
    failed.unlink(missing_ok=True)
    # Sockets have short paths only; the kernel of this very environment comes before a user's own 'python3'.
    with tempfile.TemporaryDirectory(prefix="brainldm-") as sockets, _environment(
        {NONCE: nonce, "JUPYTER_RUNTIME_DIR": sockets, "JUPYTER_PREFER_ENV_PATH": "1"}
    ):
        try:
            return papermill.execute_notebook(
                notebook,
                None,
                parameters,
                cwd=project_root(),
                progress_bar=sys.stderr.isatty() and {"desc": name},
                config=Config({"KernelManager": {"transport": "ipc"}}),
            )
        except DeadKernelError as error:
            raise NotebookError(f"{name}: the kernel died; was it killed, or out of memory?") from error
        except PapermillExecutionError as error:
            if error.ename == "BrainLDMError":
                raise BrainLDMError(error.evalue) from None
            with atomic_path(failed) as partial:
                _write_notebook(notebook, partial)
            raise NotebookError(f"{name}: a cell raised {error.ename}: {error.evalue}; see {failed}\n{error}") from None


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


def _write_notebook(notebook: NotebookNode, path: Path) -> None:
    import nbformat

    notebook.metadata.pop("papermill", None)  # holds paths of this machine
    nbformat.write(notebook, path)


def finish_notebook(run: Run, name: str, results: Mapping[str, Any] | None = None) -> None:
    """The last cell of every notebook: write ``<run>/results/<name>.json`` and vouch for this run.

    Raises:
        BrainLDMError: a result is not a number or a mapping with ``value`` and known fields.
    """
    from .records import peak_memory_mib

    rows = {key: row if isinstance(row, Mapping) else {"value": row} for key, row in (results or {}).items()}
    for key, row in rows.items():
        if "value" not in row or set(row) - RESULT_FIELDS:
            raise BrainLDMError(f"{name}: result {key!r} needs 'value' and only {', '.join(sorted(RESULT_FIELDS))}")
    rows = {key: {field: getattr(value, "item", lambda value=value: value)() for field, value in row.items()}
            for key, row in rows.items()}  # NumPy scalars become plain numbers
    write_json(run.stage("results") / f"{name}.json", {"run": run.name, "notebook": name, "results": rows})
    if os.environ.get(NONCE):
        note = {"nonce": os.environ[NONCE], "prefix": sys.prefix, "run": run.name, "results": rows,
                "peak_memory_mib": peak_memory_mib()}
        write_json(run.stage("notebooks") / f".{name}.note.json", note)
