"""Trainings in real processes: two give the gradients of one, and one that is killed goes on bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml
from test_training import blob_run

from brainldm_core import networks, processes
from brainldm_core.errors import BrainLDMError
from brainldm_core.loop import EVENTS
from brainldm_core.notebooks import with_package
from brainldm_core.profiles import Optimisation, load_profile
from brainldm_core.records import read_record

pytestmark = pytest.mark.filterwarnings("ignore")
STAGES, GANS = ("autoencoder", "diffusion"), ("lsgan", "vaegan")
SIGNALS = {"killed": signal.SIGKILL, "stopped": signal.SIGTERM}
# Runs of the same steps: processes, and micro-batches of each.
SHARED = {"one": (1, 1), "two": (2, 1), "parts": (1, 2), "two in parts": (2, 2)}
TRAINED = {"one": (*STAGES, *GANS), "two": (*STAGES, *GANS), "parts": (*STAGES, "vaegan"), "two in parts": STAGES}
BUILDERS = {
    "autoencoder": networks.build_autoencoder,
    "diffusion": networks.build_unet,
    "lsgan": networks.build_gan_generator,
    "vaegan": networks.build_gan_generator,
}


def profile(path: Path, stages: dict[str, dict]) -> str:
    """A file with the smoke profile, some settings of its trainings changed."""
    settings = load_profile("smoke").settings()
    for stage, values in stages.items():
        settings[stage]["training"] |= values
    path.write_text(yaml.safe_dump(settings))
    return str(path)


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Folders of runs by name, and exit codes by (run, network, whether it was to be killed)."""
    root = tmp_path_factory.mktemp("runs")
    folders = {name: root / name / "smoke-atlas" for name in ("whole", *SIGNALS, *SHARED, "moved")}
    cohort = blob_run(root / "cohort").stage("cohort")
    for folder in folders.values():
        shutil.copytree(cohort, folder / "cohort")
    twenty = profile(root / "twenty.yaml", dict.fromkeys(STAGES, {"steps": 20, "checkpoint_seconds": 1e-9}))
    jobs = {}

    def job(name: str, network: str, settings: str, **how) -> None:
        words = ["train", network, "--profile", settings, "--runs", str(root / name)]
        jobs[name, network, "kill" in how] = {"words": words, **how}

    for stage in STAGES:
        job("whole", stage, twenty)
        for name, number in SIGNALS.items():
            job(name, stage, twenty, kill={"step": 10, "number": int(number)})
            job(name, stage, twenty)
    for name, (count, parts) in SHARED.items():
        plan = {"batch_size": 4, "accumulation": parts}
        settings = profile(root / f"{name}.yaml", dict.fromkeys((*STAGES, "baselines", "brain_age"), plan))
        for network in TRAINED[name]:
            job(name, network, settings, processes=count, plain=True)
    job("two in parts", "brain-age", settings, processes=2)
    often = {"autoencoder": {"batch_size": 4, "checkpoint_seconds": 1e-9}}
    settings = profile(root / "often.yaml", often)
    job("moved", "autoencoder", settings, processes=2, plain=True, kill={"step": 2, "number": int(signal.SIGTERM)})
    job("moved", "autoencoder", settings, plain=True)
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("started.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=with_package() | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
    ) as driver:  # fmt: skip
        try:
            said = driver.communicate(json.dumps(list(jobs.values())), timeout=900)[0].splitlines()
        finally:
            if driver.returncode is None:
                os.killpg(driver.pid, signal.SIGKILL)
    return folders, dict(zip(jobs, json.loads(said[-1]), strict=True)), said[:-1]


def weights(run: Path, network: str) -> dict[str, torch.Tensor]:
    return networks.load_checkpoint(place(run, network) / "weights.safetensors")[0]


def losses(run: Path, network: str) -> pd.DataFrame:
    return pd.read_csv(place(run, network) / "losses.csv").drop(columns="seconds")


def place(run: Path, network: str) -> Path:
    return run / "baselines" / network if network in GANS else run / network


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", SIGNALS)
def test_twenty_steps_are_ten_a_killed_process_and_ten_more_bit_for_bit(started, name, stage):
    folders, codes, _ = started
    assert codes[name, stage, True] == [{"killed": -signal.SIGKILL, "stopped": 143}[name]]
    assert codes[name, stage, False] == [0]
    whole, resumed = (weights(folders[each], stage) for each in ("whole", name))
    assert whole.keys() == resumed.keys() and all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert (
        losses(folders["whole"], stage).equals(losses(folders[name], stage)) and len(losses(folders[name], stage)) == 20
    )


@pytest.mark.parametrize("name", ["whole", *SIGNALS])
def test_tensorboard_has_every_step_once(started, name):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = started[0][name] / "autoencoder"
    events = accumulator.EventAccumulator(str(folder / EVENTS)).Reload()
    table = losses(folder.parent, "autoencoder")
    assert set(events.Tags()["scalars"]) == set(table) - {"step"}
    for column in events.Tags()["scalars"]:
        points, known = events.Scalars(column), table[["step", column]].dropna()
        assert [point.step for point in points] == known["step"].tolist()
        assert [point.value for point in points] == pytest.approx(known[column].tolist(), rel=1e-6)


def moved_and_apart(one: Path, other: Path, network: str) -> tuple[float, float]:
    """How far the trained values of a run moved from their beginning, and how far those of another are from them."""
    torch.manual_seed(0)
    begin = dict(BUILDERS[network](load_profile("smoke")).named_parameters())
    ours, theirs = weights(one, network), weights(other, network)
    moved = max(float((ours[name] - value).abs().max()) for name, value in begin.items())
    return moved, max(float((ours[name] - theirs[name]).abs().max()) for name in begin)


@pytest.mark.parametrize("name, network", [(name, network) for name in list(SHARED)[1:] for network in TRAINED[name]])
def test_processes_and_parts_of_a_batch_give_the_weights_of_one_process(started, name, network):
    folders, codes, _ = started
    count, parts = SHARED[name]
    assert codes[name, network, False] == [0] * count
    moved, apart = moved_and_apart(folders["one"], folders[name], network)
    # A discriminator with spectral norms estimates them once a part, which shows a little.
    assert moved > 1e-5 and apart < moved * (0.02 if network in GANS and parts > 1 else 1e-3)


def test_a_training_stopped_in_two_processes_goes_on_in_one(started):
    folders, codes, _ = started
    assert codes["moved", "autoencoder", True] == [143, 143]  # one is asked to stop, and both do
    assert codes["moved", "autoencoder", False] == [0]
    moved, apart = moved_and_apart(folders["one"], folders["moved"], "autoencoder")
    assert apart < moved * 1e-3


def test_only_the_main_process_speaks_and_writes_and_the_record_counts_them(started):
    folders, codes, said = started
    assert codes["two in parts", "brain-age", False] == [0, 0]
    assert len(said) == sum(code == [0] * len(code) for code in codes.values())
    for network in (*STAGES, *GANS):
        assert read_record(place(folders["two"], network))["results"]["processes"] == 2
        assert "processes" not in read_record(place(folders["one"], network))["results"]


def shares(rank: int, count: int, batch: int, parts: int = 1) -> list[list[int]]:
    plan = Optimisation(steps=1, batch_size=batch, learning_rate=1, accumulation=parts)
    accelerator = SimpleNamespace(num_processes=count, process_index=rank)
    return [list(range(batch))[rows] for rows in processes.parts(accelerator, plan)]


def test_every_row_of_a_batch_is_one_process_and_one_parts():
    assert shares(0, 1, 3) == [[0, 1, 2]]
    assert [shares(rank, 3, 12, parts=2) for rank in range(3)] == [
        [[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]],
    ]  # fmt: skip


def test_a_batch_that_cannot_be_divided_says_so():
    with pytest.raises(BrainLDMError, match="batch_size 8 cannot be divided among 3 processes.*that 6 divides"):
        shares(0, 3, 8, parts=2)
