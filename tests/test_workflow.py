"""The whole chain with the smoke profile, through kills, in a copy of the checkout: its record, its book, its laws."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import pytest

from brainldm_core import launch

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.py"))
STAGES = ("cohort", "autoencoder", "diffusion", "samples", "brain_age", "baselines", "release")


def snapshot(folder: Path, pattern: str = "*") -> dict[str, tuple[str, int]]:
    """Hash and time of every file but those of runs."""
    files = [path for path in folder.rglob(pattern) if path.is_file() and "__pycache__" not in path.parts]
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in files
    }


@dataclass
class Chain:
    """A checkout, the run in it, and what was finished at each kill."""

    checkout: Path
    finished_at_kills: list[dict] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.checkout / "runs" / "smoke-atlas"

    def start(self, *more: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "brainldm_core.cli", "run", "all", "--profile", "smoke", *more]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return subprocess.Popen(
            command,
            cwd=self.checkout,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def complete(self, *more: str) -> tuple[int, str, str]:
        process = self.start(*more)
        out, err = process.communicate(timeout=900)
        return process.returncode, out, err

    def kill_when(self, path: Path) -> None:
        """Start, and kill everything at once as soon as a file is there."""
        process = self.start()
        end = time.monotonic() + 600
        while not path.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end, f"{path} never came"
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        self.finished_at_kills.append(self.records())

    def records(self) -> dict[str, tuple[str, int]]:
        return {name: facts for name, facts in snapshot(self.run, "*record.json").items()}


@pytest.fixture(scope="session")
def chain(tmp_path_factory) -> Chain:
    """The smoke profile, killed while a network trains and while notebooks run, then completed."""
    checkout = tmp_path_factory.mktemp("chain") / "checkout"
    ignored = shutil.ignore_patterns(".*", "runs", "_build", "tests", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, checkout, ignore=ignored)
    chain = Chain(checkout)
    before = snapshot(checkout)
    chain.kill_when(chain.run / ".autoencoder.lock")
    chain.kill_when(chain.run / "notebooks" / f"{NOTEBOOKS[2]}.record.json")
    code, out, err = chain.complete()
    assert code == 0, out + err
    chain.out = out
    chain.changed = {name for name in snapshot(checkout) if not name.startswith("runs/")} ^ set(before)
    after = snapshot(checkout)
    chain.changed |= {name for name in before if after.get(name) != before[name]}
    return chain


def test_kills_cost_no_finished_stage(chain):
    first, second = chain.finished_at_kills
    assert "cohort/record.json" in first
    assert {"cohort/record.json", "autoencoder/record.json", f"notebooks/{NOTEBOOKS[2]}.record.json"} <= set(second)
    last = chain.records()
    for finished in (first, second):
        for name, facts in finished.items():
            assert last[name] == facts, f"{name} was made again after a kill"


def test_everything_was_made_and_nothing_in_the_checkout_was_changed(chain):
    for stage in (*STAGES, "book"):
        assert (chain.run / stage / "record.json").exists(), stage
    for name in NOTEBOOKS:
        record = json.loads((chain.run / "notebooks" / f"{name}.record.json").read_text())
        digest = hashlib.sha256((chain.run / "notebooks" / f"{name}.ipynb").read_bytes()).hexdigest()
        assert record["outputs"][f"{name}.ipynb"] == digest
        assert record["settings"] == {"profile": "smoke", "cohort": "atlas", "seed": 0, "runs": "runs"}
        notebook = nbformat.read(chain.run / "notebooks" / f"{name}.ipynb", as_version=4)
        assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code" and cell.source)
        assert (chain.run / "results" / f"{name}.json").exists()
    assert chain.changed == set()


def test_jobs_of_a_workflow_take_turns_and_others_do_not_wait(tmp_path, monkeypatch):
    monkeypatch.setenv(launch.ERROR_FILE, str(tmp_path / ".error"))
    order = []

    def job() -> None:
        with launch.turn():
            order.append("second")

    with launch.turn():
        waiting = threading.Thread(target=job)
        waiting.start()
        time.sleep(0.3)
        order.append("first")
    waiting.join(timeout=10)
    assert order == ["first", "second"]
    with launch.turn():
        monkeypatch.delenv(launch.ERROR_FILE)
        with launch.turn():  # typed by hand: no workflow, no turn
            order.append("third")
    assert order[-1] == "third"


def test_ends_with_the_table_of_results_and_where_the_book_is(chain):
    lines = chain.out.strip().splitlines()
    assert lines[-1] == "Book: runs/smoke-atlas/book/html/index.html"
    for name in NOTEBOOKS:
        for result in json.loads((chain.run / "results" / f"{name}.json").read_text())["results"]:
            assert any(name in line and result in line for line in lines), f"{name}: {result} is not in the table"


def test_the_book_is_that_of_the_run_and_needs_no_other_host(chain):
    html = chain.run / "book" / "html"
    assert "smoke-atlas" in (html / "index.html").read_text() or any(
        "(smoke-atlas)" in page.read_text() for page in html.glob("*/*.html")
    )
    pages = list(html.rglob("*.html"))
    assert {path.stem for path in pages} >= set(NOTEBOOKS)
    foreign = re.compile(
        r"<(?:script|img|iframe|source)[^>]+src=[\"'](?:https?:)?//|<link[^>]+rel=[\"'](?:stylesheet|preload)[\"'][^>]+href=[\"'](?:https?:)?//"
    )
    for page in pages:
        text = page.read_text()
        assert not foreign.search(text), f"{page.name}: {foreign.search(text).group(0)}"
        assert str(chain.checkout) not in text, f"{page.name} shows a folder of this machine"


def test_second_start_has_nothing_to_do_and_says_so(chain):
    before, begin = chain.records(), time.monotonic()
    code, out, err = chain.complete()
    assert (code, err) == (0, "")
    assert out.startswith("smoke-atlas: nothing to do, everything is up to date\n")
    assert chain.records() == before
    assert time.monotonic() - begin < 30


def test_a_changed_notebook_is_run_again_with_the_book_and_nothing_else(chain):
    before = chain.records()
    source = chain.checkout / "notebooks" / f"{NOTEBOOKS[1]}.py"
    source.write_text(source.read_text().replace("\n# # ", "\n# # Changed: ", 1))
    code, out, err = chain.complete()
    assert code == 0, out + err
    after = chain.records()
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {f"notebooks/{NOTEBOOKS[1]}.record.json", "book/record.json"}


def test_one_line_when_a_stage_finds_what_the_user_can_mend(chain):
    """An error inside a job of the workflow reaches the user as one line, without the workflow's own words."""
    scans = chain.checkout.parent / "scans"
    scans.mkdir(exist_ok=True)
    code, out, err = chain.complete("--bids", str(scans))
    assert code == 2, out + err
    assert "participants.tsv" in err and err.strip().count("\n") == 0
    assert not (chain.checkout / "runs" / "smoke-scans").exists()


def test_two_starts_at_once_do_the_work_once(chain):
    processes = [chain.start(), chain.start()]
    before = chain.records()
    assert [process.communicate(timeout=600) and process.returncode for process in processes] == [0, 0]
    assert chain.records() == before
