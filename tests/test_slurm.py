"""The smoke profile as jobs of a real Slurm of two nodes, through a notice to stop and a lost job: make test-slurm."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_workflow import NOTEBOOKS, ROOT, STAGES, Chain

from brainldm_core.profiles import load_profile

if not os.environ.get("BRAINLDM_TEST_SLURM"):
    pytest.skip("needs a Slurm of its own; make test-slurm starts one", allow_module_level=True)
if find_spec("snakemake_executor_plugin_slurm") is None:
    pytest.skip("needs the extra slurm: pip install -e '.[slurm]' -c constraints.txt", allow_module_level=True)

PROFILE = """
executor: slurm
jobs: 4
retries: 2
latency-wait: 5
slurm-status-command: squeue
slurm-init-seconds-before-status-checks: 2
precommand: "echo ready >> {ready}"
default-resources: {{runtime: 30, mem_mb: 3000, slurm_extra: "'--signal=TERM@120'"}}
set-resources:
  autoencoder: &training
    gres: "gpu:1"
  diffusion: *training
"""


def jobs(*columns: str) -> list[tuple[str, ...]]:
    """Rows of all jobs that this Slurm has seen, of a workflow."""
    command = ["squeue", "--noheader", "--states=all", "--sort=i", "--format", "%k|" + "|".join(columns)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [tuple(line.split("|")) for line in lines if line.startswith("rule_")]


def lines(path: Path) -> list[list[str]]:
    """The table of losses without its header; the seconds in it tell one process from another."""
    with open(path, newline="") as file:
        return list(csv.reader(file))[1:]


def send(rule: str, name: str) -> None:
    """Signal the processes of a running job, as Slurm does with --signal before a time limit (TERM)."""
    running = [job for comment, state, job in jobs("%T", "%i") if (comment, state) == (rule, "RUNNING")]
    subprocess.run(["scancel", f"--signal={name}", *running], check=True)


def wait(process: subprocess.Popen | None, condition, what: str) -> None:
    end = time.monotonic() + 900
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{what} never came"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose two trainings were cut off, one by a notice, the other with its launcher and without any."""
    folder = tmp_path_factory.mktemp("slurm")
    ignored = shutil.ignore_patterns(".*", "runs", "_build", "tests", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, folder / "checkout", ignore=ignored)
    smoke = folder / "checkout" / "brainldm_core" / "profiles" / "smoke.yaml"
    short, long = "training: {steps: 4,", "training: {checkpoint_seconds: 1, steps: 400,"
    smoke.write_text(smoke.read_text().replace(short, long, 2))  # the paper's two trainings: long enough to be hit
    (folder / "config.yaml").write_text(PROFILE.format(ready=folder / "ready"))
    chain = Chain(folder / "checkout")
    chain.folder, where = folder, ("--workflow-profile", str(folder))
    first, second = chain.run / "autoencoder", chain.run / "diffusion"

    process = chain.start(*where)
    wait(process, (first / "state.safetensors").exists, "a state of the autoencoder")
    chain.noticed = lines(first / "losses.csv")
    send("rule_autoencoder", "TERM")
    wait(process, lambda: ("rule_autoencoder", "FAILED") in jobs("%T"), "the end of the autoencoder's job")
    chain.saved = lines(first / "losses.csv")
    wait(process, (second / "state.safetensors").exists, "a state of the diffusion model")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    chain.lost = lines(second / "losses.csv")
    send("rule_diffusion", "KILL")
    wait(None, lambda: not any(state in ("RUNNING", "PENDING") for _, state in jobs("%T")), "the end of all jobs")
    chain.before = [row for row in jobs("%T") if row[1] == "COMPLETED"]
    code, out, err = chain.complete(*where)
    assert code == 0, out + err
    chain.out = out
    return chain


def test_everything_is_made_on_both_nodes(finished):
    assert all((finished.run / stage / "record.json").exists() for stage in (*STAGES, "book"))
    assert all((finished.run / "notebooks" / f"{name}.record.json").exists() for name in NOTEBOOKS)
    assert finished.out.strip().endswith("Book: runs/smoke-atlas/book/html/index.html")
    assert {node for _, node in jobs("%N")} == {"one", "two"}


def test_a_notice_saves_the_training_and_the_retry_goes_on(finished):
    final = lines(finished.run / "autoencoder" / "losses.csv")
    assert 0 < len(finished.noticed) <= len(finished.saved) < len(final) == 400
    assert final[: len(finished.saved)] == finished.saved
    assert [state for rule, state in jobs("%T") if rule == "rule_autoencoder"] == ["FAILED", "COMPLETED"]


def test_a_killed_training_goes_on_when_the_workflow_is_started_again(finished):
    final = lines(finished.run / "diffusion" / "losses.csv")
    assert 0 < len(finished.lost) < len(final) == 400
    assert final[: len(finished.lost)] == finished.lost
    assert json.loads((finished.run / "diffusion" / "record.json").read_text())["results"]["training_seconds"] > 0


def test_finished_stages_are_not_made_again(finished):
    done = Counter(rule for rule, state in jobs("%T") if state == "COMPLETED")
    assert {rule for rule, _ in finished.before} >= {"rule_cohort", "rule_autoencoder"}
    shards = load_profile("smoke").release.shards  # jobs of their own
    assert set(done.values()) == {1} and len(done) == len(STAGES) + shards + len(NOTEBOOKS) + 1


def test_jobs_have_the_resources_of_the_profile(finished):
    asked = {rule: gres for rule, gres in jobs("%b")}
    assert {rule for rule, gres in asked.items() if gres == "gres:gpu:1"} == {"rule_autoencoder", "rule_diffusion"}
    assert len((finished.folder / "ready").read_text().split()) == len(asked) + 2  # both cut jobs came twice


def test_a_second_start_sends_no_job(finished):
    before = jobs("%i")
    code, out, err = finished.complete("--workflow-profile", str(finished.folder))
    assert code == 0, out + err
    assert "smoke-atlas: nothing to do, everything is up to date" in out
    assert jobs("%i") == before
