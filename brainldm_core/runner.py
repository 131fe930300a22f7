"""Strict runner of notebooks: typed parameters in, an executed notebook and a record out.

What a notebook must have (``notebooks/NN_slug.py``, py:percent, is the file that is edited and run):

1. One code cell tagged ``parameters`` that holds nothing but typed assignments of plain values, at least::

       profile: str = "tiny"
       cohort: str = "atlas"
       seed: int = 0
       runs: str = "runs"

2. A last code cell that hands over the chapter's numbers, and no code after it::

       finish_notebook(run, "01_data", {"ventricles, held-out": {"value": 0.93, "unit": "r", "n": 64}})

   ``run`` is ``records.open_run(profile, cohort, seed, runs)``. A result is a number, or a mapping with ``value`` and
   any of ``unit``, ``n``, ``low``, ``high``, ``expected``, ``floor`` (what real volumes against real ones have),
   ``extractor`` (of features) and ``note``. They land in ``<run>/results/<name>.json``.

Anything unknown, ill-typed or missing is an error before the kernel starts. A notebook counts as run when papermill
reports no error *and* its last cell has left a note with this call's nonce: a saved notebook alone proves nothing.
By hand, in JupyterLab, the last cell writes the results and no record.
"""

from __future__ import annotations

import ast
import errno
import fcntl
import math
import os
import secrets
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BrainLDMError
from .notebooks import (
    check_parameters,
    find_notebook,
    needs,
    out_of_step,
    project_root,
    read_notebook,
    set_parameters,
    with_package,
    write_notebook,
)
from .records import Run, commit, hardware, open_run, peak_memory_mib, read_json, sha256, stage_key, write_json

if TYPE_CHECKING:
    from nbformat import NotebookNode

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some shared file systems
NONCE = "BRAINLDM_NOTEBOOK_NONCE"
RESULT_FIELDS = ("value", "unit", "n", "low", "high", "expected", "floor", "extractor", "note")


class NotebookError(RuntimeError):
    """A notebook did not run to its end: a cell raised, the kernel died or the last cell was not reached."""


@contextmanager
def locked(path: Path, quiet: bool = False) -> Iterator[int]:
    """Hold a lock file; wait, and say so, while another process holds it. The system frees it when its holder dies.

    Nodes of a cluster see each other's locks where their shared file system has locks; where not, warn and go on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not quiet:
                print(f"{path.parent}: another brainldm is at work here; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            warnings.warn(f"{path.parent}: files cannot be locked here; start one brainldm at a time", stacklevel=1)
        yield file.fileno()


def run_notebook(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Execute a notebook with ``given`` parameters; return its record, ``<run>/notebooks/<name>.record.json``.

    Raises:
        BrainLDMError: bad parameters, or a cell raised one (its line is passed on).
        NotebookError: a cell raised anything else, the kernel died or the last cell was not reached.
    """
    source = find_notebook(name)
    name, notebook = source.stem, read_notebook(source)
    parameters = check_parameters(notebook, given, source)
    missing = {"profile", "cohort", "seed", "runs"} - set(parameters)
    if missing:
        raise BrainLDMError(f"{source}: its parameters cell lacks {', '.join(sorted(missing))}; add them")
    _check_last_cell(notebook, name, source)
    if problem := out_of_step(source):
        print(f"{problem} (running the .py)", file=sys.stderr)
    set_parameters(notebook, parameters, source)
    root = project_root() / parameters["runs"]  # kernels work in the checkout
    run = open_run(parameters["profile"], parameters["cohort"], parameters["seed"], root)
    folder = run.stage("notebooks")
    record_path, note = folder / f"{name}.record.json", folder / f".{name}.note.json"
    with locked(folder / f".{name}.lock"):
        record_path.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
        nonce, start = secrets.token_hex(16), time.perf_counter()
        _execute(notebook, name, nonce, folder)
        left = read_json(note) if note.exists() else {}
        expected = {"nonce": nonce, "prefix": sys.prefix, "run": run.name}
        wrong = [key for key, value in expected.items() if left.get(key) != value]
        if wrong:
            raise NotebookError(f"{source}: its last cell did not vouch for this run (wrong {', '.join(wrong)})")
        write_notebook(notebook, folder / f"{name}.ipynb")
        stages = [stage for stage in needs(name) if (run.stage(stage) / "record.json").exists()]
        record = {
            "made_by": f"notebooks/{source.name}",
            "settings": parameters,
            "inputs": {source.name: sha256(source)} | {stage: stage_key(run.stage(stage)) for stage in stages},
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


def _check_last_cell(notebook: NotebookNode, name: str, where: Path) -> None:
    """The last code cell ends in ``finish_notebook(run, "<its own name>", ...)``."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    last = (ast.parse(code[-1]).body or [None])[-1]
    call = getattr(last, "value", None)
    if not (
        isinstance(call, ast.Call)
        and ast.unparse(call.func).split(".")[-1] == "finish_notebook"
        and [ast.unparse(argument) for argument in call.args[:2]] == ["run", repr(name)]
    ):
        raise BrainLDMError(f"{where}: its last code cell must end in finish_notebook(run, {name!r}, ...)")


def _execute(notebook: NotebookNode, name: str, nonce: str, folder: Path) -> None:
    """Run the cells in place, in a fresh kernel that works in the checkout and talks over private sockets."""
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    failed = folder / f"{name}.failed.ipynb"
    failed.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="brainldm-") as sockets:
        # The paths of sockets must be short; this environment's kernel comes before a user's own 'python3'.
        extra = with_package() | {NONCE: nonce, "JUPYTER_RUNTIME_DIR": sockets, "JUPYTER_PREFER_ENV_PATH": "1"}
        try:
            with _environment(extra):
                done = papermill.execute_notebook(
                    notebook,
                    None,
                    cwd=project_root(),
                    progress_bar={"desc": name} if sys.stderr.isatty() else False,
                    # Named here: the default name of the sockets is the same for all kernels of a working folder.
                    config=Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}}),
                    extra_arguments=["--log-level=CRITICAL"],  # or each kernel complains that it is shut down
                )
        except RuntimeError as error:  # nbclient's: the kernel did not start, or died
            raise NotebookError(f"{name}: the kernel died ({error}); was it killed, or is memory short?") from error
        except PapermillExecutionError as error:
            if error.ename == "BrainLDMError":
                raise BrainLDMError(error.evalue) from None
            write_notebook(notebook, failed)
            raise NotebookError(f"{error}\n{name}: a cell raised {error.ename}: {error.evalue}; see {failed}") from None
    notebook.update(done)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def finish_notebook(run: Run, name: str, results: Mapping[str, Any] | None = None) -> None:
    """The last cell of every notebook: write ``<run>/results/<name>.json`` and vouch for this run.

    Raises:
        BrainLDMError: a result is not a finite number, or a mapping with such a ``value`` and known fields.
    """
    rows = {}
    for key, given in (results or {}).items():
        row = dict(given) if isinstance(given, Mapping) else {"value": given}
        row = {field: value.item() if hasattr(value, "item") else value for field, value in row.items()}  # NumPy's
        value = row.get("value")
        if set(row) - set(RESULT_FIELDS) or not isinstance(value, int | float) or not math.isfinite(value):
            raise BrainLDMError(
                f"{name}: result {key!r} is {row}; give a finite 'value' and any of {', '.join(RESULT_FIELDS[1:])}"
            )
        rows[key] = row
    write_json(run.stage("results") / f"{name}.json", {"run": run.name, "notebook": name, "results": rows})
    if os.environ.get(NONCE):
        note = {"nonce": os.environ[NONCE], "prefix": sys.prefix, "run": run.name, "results": rows}
        write_json(run.stage("notebooks") / f".{name}.note.json", note | {"peak_memory_mib": peak_memory_mib()})
