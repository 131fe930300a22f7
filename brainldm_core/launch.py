"""A whole run through Snakemake: every stage and notebook that is stale, the book, and the table of results."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from .cluster import ON_CLUSTER, executor, on_cluster
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
    """Cores that this process may use, by its system and by the job of Slurm that it is in."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(here, int(os.environ.get("SLURM_CPUS_PER_TASK", here)))


def inside_workflow() -> bool:
    """Whether this process is a job of a workflow that was launched here."""
    return ERROR_FILE in os.environ


def leave_error(message: str) -> None:
    """Leave one line for the launcher, in the room that it reserved: the error may be that the disk is full.

    On a cluster the log of the job has it too, as the launcher may be gone.
    """
    if on_cluster():
        print(f"brainldm: {message}", file=sys.stderr, flush=True)
        if not Path(os.environ[ERROR_FILE]).exists():
            return
    with open(os.environ[ERROR_FILE], "r+b") as file:
        file.write(message.encode()[:ERROR_ROOM])


def hopeless() -> bool:
    """Whether a job of this workflow on a cluster has left an error that only the user can mend: no retry helps."""
    path = Path(os.environ.get(ERROR_FILE, ""))
    return on_cluster() and path.is_file() and bool(path.read_bytes().strip())


@contextmanager
def turn() -> Iterator[None]:
    """Wait until no other job of this workflow computes; outside a workflow and on a cluster, do nothing.

    Each job here uses all cores, and two at once take far longer than one after the other. After a chain of single jobs
    Snakemake 9.15 counts more cores than there are, so its count cannot be relied on.
    """
    if not inside_workflow() or on_cluster() or not is_main():
        yield
        return
    with locked(Path(os.environ[ERROR_FILE]).with_name(".turn"), quiet=True):
        yield


def bring_up_to_date(
    run: Run, profile: str, bids: Path | None = None, stages: Iterable[str] = ("book",), where: Path | None = None
) -> bool:
    """Make what is stale of some stages and of all that they need; return whether the last stage was made anew.

    Args:
        where: folder of the Snakemake profile that says where jobs run; default: here, one after the other.

    Raises:
        BrainLDMError: a job found something that the user can mend, or the cohort cannot be made.
        WorkflowError: a job failed otherwise.
    """
    folder = run.folder.resolve()
    records = [(run.stage(stage) / "record.json").resolve() for stage in stages]
    settings, error = folder / ".workflow.json", folder / ".error"
    remote = where is not None and executor(where) != "local"
    with locked(folder / ".lock") as lock:
        before = _time(records[-1])
        write_text(error, " " * ERROR_ROOM)
        config = {"profile": profile, "cohort": run.cohort, "seed": run.seed, "runs": str(run.root.resolve())}
        config |= {"bids": str(bids.resolve()) if bids else "", "threads": 1 if remote else cores(), "shards": remote}
        write_json(settings, config)
        command = [
            *(sys.executable, "-m", "snakemake", "--snakefile", project_root() / "workflow" / "Snakefile"),
            *("--directory", folder, "--configfile", settings, "--scheduler", "greedy"),
            *(() if remote else ("--cores", cores())),
            *(("--workflow-profile", where) if where else ()),
            # Our own lock is freed by a kill, Snakemake's is not; records are whole if they exist at all.
            *("--nolock", "--ignore-incomplete", "--rerun-triggers", "mtime", "input"),
            # Here, stages say themselves when they end; on a cluster their words are in logs, and Snakemake says where.
            *("--nocolor", "--quiet", *(("host", "rules", "reason") if remote else ("all",)), "--"),
            *(os.path.relpath(record, folder) for record in records),
        ]
        environment = {key: value for key, value in with_package().items() if key != "SNAKEMAKE_PROFILE"}
        environment |= {ERROR_FILE: str(error)} | ({ON_CLUSTER: "1"} if remote else {})
        code = _wait([str(word) for word in command], environment, lock)
        message = error.read_text(encoding="utf-8", errors="replace").strip()
        error.unlink()
        if message:
            raise BrainLDMError(message)
        if code:
            raise WorkflowError(f"{run.folder}: stopped (see above); start again to go on from here")
        return _time(records[-1]) != before


def bring_all(
    runs: Iterable[Run], profile: str, bids: Path | None = None, where: Path | None = None
) -> Iterator[tuple[Run, bool]]:
    """Bring runs of several training seeds up to date; yield each, and whether it changed.

    Here one after the other. On a cluster the cohort that they share comes first, then the jobs of all of them at once;
    an error of one is raised when all have ended.
    """
    if where is None or executor(where) == "local":
        yield from ((run, bring_up_to_date(run, profile, bids, where=where)) for run in runs)
        return
    runs = list(runs)
    if len(runs) > 1:
        bring_up_to_date(runs[0], profile, bids, ("cohort",), where)
    with ThreadPoolExecutor(len(runs)) as pool:
        waiting = [pool.submit(bring_up_to_date, run, profile, bids, where=where) for run in runs]
    yield from ((run, done.result()) for run, done in zip(runs, waiting, strict=True))


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
