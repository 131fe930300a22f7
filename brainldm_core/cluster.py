"""Where the jobs of a workflow run: on this machine, or the nodes of a cluster that a Snakemake profile describes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from .errors import BrainLDMError
from .notebooks import project_root

ON_CLUSTER = "BRAINLDM_ON_CLUSTER"  # set for jobs that have a node, or a part of one, to themselves


def on_cluster() -> bool:
    """Whether this process is a job that a workflow sent to a cluster."""
    return ON_CLUSTER in os.environ


def find_profile(given: str) -> Path:
    """Folder of a Snakemake profile: a path, or the name of one in ``workflow/profiles``.

    Raises:
        BrainLDMError: there is none, or this machine cannot send jobs where it says.
    """
    folders = [Path(given), project_root() / "workflow" / "profiles" / given]
    folder = next((folder for folder in folders if any(folder.glob("config*.yaml"))), None)
    if folder is None:
        raise BrainLDMError(f"--workflow-profile {given}: no such profile; give 'slurm' or a folder with a config.yaml")
    name = executor(folder)
    package = f"snakemake-executor-plugin-{name}"
    if name != "local" and find_spec(package.replace("-", "_")) is None:
        raise BrainLDMError(f"{folder}: executor {name!r} needs {package}; pip install -e '.[slurm]' has that of Slurm")
    if name == "slurm" and shutil.which("sbatch") is None:
        raise BrainLDMError(f"{folder}: there is no sbatch here; start this where jobs are submitted to Slurm")
    return folder.resolve()


def executor(profile: Path) -> str:
    """Name of the Snakemake executor that a profile sends jobs to."""
    file = sorted(profile.glob("config*.yaml"))[-1]
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BrainLDMError(f"{file}: is not YAML ({' '.join(str(error).split())}); correct it") from None
    if not isinstance(settings, dict):
        raise BrainLDMError(f"{file}: holds no settings; write lines such as 'executor: slurm'")
    return settings.get("executor", "local")


def gpus(resources: Mapping[str, Any]) -> int:
    """GPUs of a job, by its resource ``gres`` (``gpu:2``, ``gpu:a100:2``) or ``gpu`` (2)."""
    kind, *rest = str(resources.get("gres") or "").split(":")
    listed = int(rest[-1]) if rest and rest[-1].isdigit() else 1
    return max(listed if kind == "gpu" else 0, int(resources.get("gpu") or 0))


def launcher(processes: int) -> list[str]:
    """Words between ``python -m`` and the module of a training in several processes on one node; none for one."""
    if processes < 2:
        return []
    words = ["accelerate.commands.launch", "--multi_gpu", "--num_machines=1", f"--num_processes={processes}"]
    # Any free port: two trainings may share a node. Precision is chosen by the training itself.
    return [*words, "--main_process_port=0", "--mixed_precision=no", "--dynamo_backend=no", "-m"]
