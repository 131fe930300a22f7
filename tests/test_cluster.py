"""Jobs on a cluster: what a profile says, how many processes train, and what differs from jobs that share a machine."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from brainldm_core import cli, cluster, launch, runner
from brainldm_core.errors import BrainLDMError
from brainldm_core.notebooks import with_package
from brainldm_core.records import open_run

ROOT = Path(__file__).resolve().parent.parent
SLURM = ROOT / "workflow" / "profiles" / "slurm"


@pytest.mark.parametrize(
    "resources, count",
    [
        ({}, 0),
        ({"gres": "gpu"}, 1),
        ({"gres": "gpu:2"}, 2),
        ({"gres": "gpu:a100:4"}, 4),
        ({"gres": "gpu:a100"}, 1),
        ({"gres": "nvme:2"}, 0),
        ({"gpu": 3}, 3),
    ],
)
def test_gpus_of_a_job(resources, count):
    assert cluster.gpus(resources) == count


def test_profile_names_every_rule_that_needs_something_and_no_other():
    profile = yaml.safe_load((SLURM / "config.yaml").read_text())
    rules = set(re.findall(r"^rule (\w+):", (ROOT / "workflow" / "Snakefile").read_text(), re.MULTILINE)) - {"all"}
    assert set(profile["set-threads"]) == rules
    assert {rule for rule, needs in profile["set-resources"].items() if cluster.gpus(needs) == 1} == rules - {
        "cohort",
        "book",
    }
    assert cluster.executor(SLURM) == "slurm" and profile["retries"] > 0


def test_profiles_that_cannot_be_followed_are_named(tmp_path, monkeypatch):
    def refuse(given: str, words: str) -> None:
        with pytest.raises(BrainLDMError, match=words):
            cluster.find_profile(given)

    refuse("moon", "--workflow-profile moon: no such profile; give 'slurm' or a folder")
    file = tmp_path / "config.yaml"
    file.write_text("executor: [")
    refuse(str(tmp_path), "config.yaml: is not YAML")
    file.write_text("slurm")
    refuse(str(tmp_path), "config.yaml: holds no settings")
    file.write_text("executor: no-such")
    refuse(str(tmp_path), "executor 'no-such' needs snakemake-executor-plugin-no-such; pip install")
    monkeypatch.setattr(cluster, "find_spec", lambda name: name)
    monkeypatch.setenv("PATH", str(tmp_path))
    refuse("slurm", "there is no sbatch here")
    file.write_text("jobs: 2")
    assert cluster.find_profile(str(tmp_path)) == tmp_path


def test_a_profile_goes_with_all_alone(capsys):
    assert cli.main(["run", "00", "--workflow-profile", "slurm"]) == 2
    assert "--workflow-profile goes with all" in capsys.readouterr().err


def snakemake(folder: Path, *options, shards: bool = False, **environment: str) -> subprocess.CompletedProcess:
    """Snakemake on our Snakefile, for a smoke run in a folder."""
    run = open_run("smoke", "atlas", 0, folder)
    config = {"profile": "smoke", "cohort": "atlas", "seed": 0, "runs": str(folder), "bids": "", "threads": 1}
    config["shards"] = shards
    (folder / "settings.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "workflow" / "Snakefile", "--nolock"]
    command += ["--directory", run.folder, "--configfile", folder / "settings.json", "--cores", "1", *options]
    environment = with_package() | environment
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done


def test_commands_without_gpus_are_those_that_anybody_can_type(tmp_path):
    done = snakemake(tmp_path, "--dry-run", "--printshellcmds", "samples/record.json")
    rest = f"--profile smoke --cohort atlas --seed 0 --runs {tmp_path}"
    words = re.findall(
        rf"exec {re.escape(sys.executable)} -m brainldm_core.cli (.*) {re.escape(rest)}$",
        done.stdout + done.stderr,
        re.MULTILINE,
    )
    assert sorted(words) == ["prepare atlas", "samples", "train autoencoder", "train diffusion"]
    assert cluster.launcher(0) == cluster.launcher(1) == []


@pytest.mark.parametrize("shards", [False, True])
def test_on_a_cluster_the_shards_of_the_release_are_jobs(tmp_path, shards):
    done = snakemake(tmp_path, "--dry-run", "--printshellcmds", "release/record.json", shards=shards)
    words = re.findall(r"brainldm_core.cli (miniature.*) --profile", done.stdout + done.stderr)
    assert sorted(words) == (
        ["miniature", *(f"miniature --shard {part}/2" for part in (1, 2))] if shards else ["miniature"]
    )


def test_a_training_has_a_process_for_each_gpu_of_its_job(tmp_path):
    """The Snakefile with a profile, and a launcher that only notes its words in place of accelerate's."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"set-resources": {"autoencoder": {"gres": "gpu:2"}}}))
    package = tmp_path / "stub" / "accelerate" / "commands"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "launch.py").write_text(
        "import sys\nfrom pathlib import Path\nPath('autoencoder').mkdir(exist_ok=True)\n"
        "Path('autoencoder/record.json').write_text(' '.join(sys.argv[1:]))\n"
    )
    cohort = open_run("smoke", "atlas", 0, tmp_path).stage("cohort")
    cohort.mkdir()
    (cohort / "record.json").write_text("{}")
    paths = os.pathsep.join([str(tmp_path / "stub"), with_package()["PYTHONPATH"]])
    snakemake(tmp_path, "--workflow-profile", tmp_path, "autoencoder/record.json", PYTHONPATH=paths)
    words = (tmp_path / "smoke-atlas" / "autoencoder" / "record.json").read_text()
    assert "--num_processes=2 " in words and "--multi_gpu " in words
    assert words.endswith(
        f" -m brainldm_core.cli train autoencoder --profile smoke --cohort atlas --seed 0 --runs {tmp_path}"
    )


def test_jobs_on_a_cluster_wait_for_no_turn(tmp_path, monkeypatch):
    monkeypatch.setenv(launch.ERROR_FILE, str(tmp_path / ".error"))
    entered = threading.Event()

    def job() -> None:
        with launch.turn():
            entered.set()

    with launch.turn():  # a job of this machine holds the turn
        monkeypatch.setenv(cluster.ON_CLUSTER, "1")
        other = threading.Thread(target=job)
        other.start()
        other.join(timeout=10)
    assert entered.is_set()


def test_an_error_that_only_the_user_can_mend_ends_retries(tmp_path, monkeypatch, capsys):
    error = tmp_path / ".error"
    error.write_text(" " * launch.ERROR_ROOM)
    monkeypatch.setenv(launch.ERROR_FILE, str(error))
    job = ["book", "--cohort", "mars", "--runs", str(tmp_path)]
    for variable in ({}, {cluster.ON_CLUSTER: "1"}):
        for name, value in variable.items():
            monkeypatch.setenv(name, value)
        error.write_text(" " * launch.ERROR_ROOM)
        assert not launch.hopeless()
        assert cli.main(job) == 2
        assert "cohort 'mars' is unknown" in error.read_text()
        assert launch.hopeless() == bool(variable)
        assert ("cohort 'mars' is unknown" in capsys.readouterr().err) == bool(variable)
    monkeypatch.setattr(cli.commands, "run_book", lambda args: pytest.fail("a retry began the work"))
    assert cli.main(job) == 2
    error.unlink()  # the launcher has gone
    launch.leave_error("words")
    assert not error.exists() and "brainldm: words" in capsys.readouterr().err


def test_cores_are_those_of_the_job(monkeypatch):
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    everything = launch.cores()
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert launch.cores() == 1
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", str(everything + 7))
    assert launch.cores() == everything


@pytest.mark.parametrize("number, passes", [(errno.ENOLCK, True), (errno.EOPNOTSUPP, True), (errno.EIO, False)])
def test_a_file_system_without_locks_is_warned_of(number, passes, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(runner.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="files cannot be locked") if passes else pytest.raises(OSError):
        with runner.locked(tmp_path / ".lock"):
            pass


@pytest.mark.parametrize("name", ["local", "slurm"])
def test_seeds_of_a_sweep_share_their_cohort_and_go_together_on_a_cluster(name, tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(f"executor: {name}\n")
    runs = [open_run("smoke", "atlas", seed, tmp_path) for seed in (0, 1, 2)]
    order, together = [], threading.Barrier(3)

    def bring(run, profile, bids, stages=("book",), where=None):
        order.append((run.seed, *stages))
        if name == "slurm" and stages == ("book",):
            together.wait(timeout=10)
            if run.seed == 1:
                raise launch.WorkflowError("seed 1")
        return run.seed > 0

    monkeypatch.setattr(launch, "bring_up_to_date", bring)
    brought = launch.bring_all(iter(runs), "smoke", None, tmp_path)
    if name == "local":
        assert next(brought) == (runs[0], False) and order == [(0, "book")]  # the next begins when it is asked for
        assert list(brought) == [(run, True) for run in runs[1:]]
        assert order == [(0, "book"), (1, "book"), (2, "book")]
    else:
        assert next(brought) == (runs[0], False)
        assert order[0] == (0, "cohort") and sorted(order[1:]) == [(0, "book"), (1, "book"), (2, "book")]
        with pytest.raises(launch.WorkflowError, match="seed 1"):
            next(brought)
