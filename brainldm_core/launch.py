"""A whole run through Snakemake: every stage and notebook that is stale, the book, and the table of results."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import BrainLDMError
from .notebooks import project_root, with_package
from .processes import is_main
from .records import Run, read_json, write_json, write_text
from .runner import locked

ERROR_FILE = "BRAINLDM_ERROR_FILE"  # where a command that Snakemake calls leaves its one-line error for us to print
ERROR_ROOM = 4000  # bytes


class WorkflowError(RuntimeError):
    """A job of the workflow failed; what it said stands above."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def inside_workflow() -> bool:
    """Whether this process is a job of a workflow that was launched here."""
    return ERROR_FILE in os.environ


def leave_error(message: str) -> None:
    """Leave one line for the launcher, in the room that it reserved: the error may be that the disk is full."""
    with open(os.environ[ERROR_FILE], "r+b") as file:
        file.write(message.encode()[:ERROR_ROOM])


@contextmanager
def turn() -> Iterator[None]:
    """Wait until no other job of this workflow computes; outside a workflow, do nothing.

    Each job uses all cores, and two at once take far longer than one after the other. After a chain of single jobs
    Snakemake 9.15 counts more cores than there are, so its count cannot be relied on.
    """
    if not inside_workflow() or not is_main():
        yield
        return
    with locked(Path(os.environ[ERROR_FILE]).with_name(".turn"), quiet=True):
        yield


def bring_up_to_date(run: Run, profile: str, bids: Path | None = None, stages: Iterable[str] = ("book",)) -> bool:
    """Make what is stale of some stages and of all that they need; return whether the last stage was made anew.

    Raises:
        BrainLDMError: a job found something that the user can mend, or the cohort cannot be made.
        WorkflowError: a job failed otherwise.
    """
    folder = run.folder.resolve()
    records = [(run.stage(stage) / "record.json").resolve() for stage in stages]
    settings, error = folder / ".workflow.json", folder / ".error"
    with locked(folder / ".lock") as lock:
        before = _time(records[-1])
        write_text(error, " " * ERROR_ROOM)
        config = {"profile": profile, "cohort": run.cohort, "seed": run.seed, "runs": str(run.root.resolve())}
        write_json(settings, config | {"bids": str(bids.resolve()) if bids else ""})
        command = [
            *(sys.executable, "-m", "snakemake", "--snakefile", project_root() / "workflow" / "Snakefile"),
            *("--directory", folder, "--configfile", settings, "--cores", cores(), "--scheduler", "greedy"),
            # Our own lock is freed by a kill, Snakemake's is not; records are whole if they exist at all.
            *("--nolock", "--ignore-incomplete", "--rerun-triggers", "mtime", "input"),
            *("--nocolor", "--quiet", "all", "--"),
            *(os.path.relpath(record, folder) for record in records),
        ]
        environment = {key: value for key, value in with_package().items() if key != "SNAKEMAKE_PROFILE"}
        code = _wait([str(word) for word in command], environment | {ERROR_FILE: str(error)}, lock)
        message = error.read_text(encoding="utf-8", errors="replace").strip()
        error.unlink()
        if message:
            raise BrainLDMError(message)
        if code:
            raise WorkflowError(f"{run.folder}: stopped (see above); start again to go on from here")
        return _time(records[-1]) != before


def _time(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def _wait(command: list[str], environment: dict[str, str], lock: int) -> int:
    """Exit code of a command that inherits our lock, so that the lock outlives us if only we are killed."""
    with subprocess.Popen(command, cwd=project_root(), env=environment, pass_fds=[lock]) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # Snakemake got it too and stops its jobs
                process.wait()
                raise


def results_table(runs: Iterable[Run]) -> str:
    """The results of the notebooks of some runs, as aligned text."""
    rows = [("run", "notebook", "result", "value", "unit", "n", "expected", "note")]
    for run in runs:
        for path in sorted(run.stage("results").glob("[0-9][0-9]_*.json")):
            content = read_json(path)
            for name, row in content["results"].items():
                value = f"{row['value']:.4g}"
                if "low" in row and "high" in row:
                    value += f" [{row['low']:.4g}, {row['high']:.4g}]"
                cells = [row.get("unit", ""), row.get("n", ""), row.get("expected", ""), row.get("note", "")]
                rows.append((content["run"], content["notebook"], name, value, *map(str, cells)))
    kept = [index for index in range(len(rows[0])) if any(row[index] for row in rows[1:])]
    widths = [max(len(row[index]) for row in rows) for index in kept]
    lines = ["  ".join(row[index].ljust(width) for index, width in zip(kept, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines) if len(rows) > 1 else "no results yet"
