"""What a GPU gives, in up to an hour that may be cut into calls: forward passes, sampling, training steps, a training.

    python benchmarks/gpu_hour.py --minutes 9 --state /tmp/gpu --carried .carried/anatomies.zip --pack out

Each step writes one small JSON file into ``--out`` when it is done, and is skipped where that file exists: the same
call again goes on where the last one ended, also in the midst of a training (``--state`` keeps its state, on the same
machine). The steps, in order of worth:

    environment   machine, versions, cuDNN, measured ceilings
    forward-...   the profile's UNet (one volume, a batch) and decoder: layout x eager or compiled x bf16, later fp32
    recipe-...    seconds a volume as the released bundle draws, as the package does, and tuned
    step-...      a training step of ours and as MONAI's tutorial writes it (see training_step.py)
    train-...     the demo profile: cohort, number of steps, autoencoder, diffusion model, samples

The machine needs torch and what benchmarks/gpu_wheels.sh says, and no network. The cohort is simulated there, in the
background, from packed anatomies (benchmarks/carried.py): 600 people of 2 mm are about half an hour of one core, where
as finished volumes they would be 90 MB. ``--pack FOLDER`` leaves there all that should travel back, in at most 8 files
of 15 MiB: results, the finished autoencoder's stage, and, once both trainings are done, exported weights and samples
(``cat weights.tar.* | tar x``). With these as ``--restore FOLDER`` a fresh machine goes on behind the last finished
step; a training that was cut off can go on only where its state lies, as that of the diffusion model is 350 MB.

A rehearsal: ``--profile smoke --train-profile smoke --device cpu --backend eager``.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import tarfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import carried
import gpu_training
import torch
from forward import RECIPES, forms, time_form, time_recipe
from measures import choose_device, environment
from training_step import STAGES, time_case

from brainldm_core.errors import BrainLDMError
from brainldm_core.launch import cores
from brainldm_core.profiles import load_profile
from brainldm_core.records import Run, commit, read_json, read_record, write_json, write_text

PIECE = 15 * 2**20
MARGIN = 25.0  # seconds that are kept for saving a training and packing

SHOWN = ("median_ms", "seconds_a_volume", "tflops", "peak_gib", "steps", "psnr_db", "cudnn_advice")
SHOWN += ("out_of_memory", "not_implemented")


@dataclass(frozen=True)
class Step:
    """One measurement: its name, the seconds that should be left when it begins, and what it does."""

    name: str
    needs: float
    work: Callable[[], dict[str, Any]]


def all_steps(options: argparse.Namespace, device: torch.device, simulation: gpu_training.Simulation) -> list[Step]:
    """The steps, in order of worth."""
    profile, trained = load_profile(options.profile), simulation.run.profile
    quiet, backend, results = simulation.resting, options.backend, options.out

    def forward(precision: str) -> list[Step]:
        return [
            Step(form.name, 90 if form.compiled else 15, partial(time_form, form, profile, device, backend, quiet))
            for form in forms(precision, profile.sampling.batch_size)
        ]

    def timed(which: Any, stage: str, recipe: str) -> dict[str, Any]:
        with quiet():
            return time_case(which, stage, recipe, device, options.timed_steps)

    def run() -> Run:
        steps = read_json(results / "train-plan.json")["steps"]
        return Run(gpu_training.with_steps(trained, steps), simulation.run.cohort, 0, simulation.run.root)

    def cohort() -> dict[str, Any]:
        record = simulation.wait()
        facts = {key: record[key] for key in ("settings", "seconds", "results", "hardware")}
        return facts | {"maps_rounded_to": f"1/{carried.LEVELS}"}

    def plan() -> dict[str, Any]:
        with quiet():
            return gpu_training.planned_steps(trained, device, options.train_minutes, results)

    def train(stage: str) -> dict[str, Any]:
        simulation.wait()
        return gpu_training.train(run(), stage, device, results)

    return [
        Step("environment", 5, partial(environment, device)),
        *forward("bf16"),
        *(Step(f"recipe-{name}", 60, partial(time_recipe, name, profile, device, backend, quiet)) for name in RECIPES),
        *(
            Step(f"step-{which.name}-{stage}-{recipe}", 40, partial(timed, which, stage, recipe))
            for which in {trained.name: trained, profile.name: profile}.values()
            for stage in STAGES
            for recipe in ("ours", "tutorial")
        ),
        *forward("fp32"),
        Step("train-plan", 20, plan),
        Step("train-cohort", 5, cohort),
        *(Step(f"train-{stage}", 30, partial(train, stage)) for stage in STAGES),
        Step("train-samples", 30, lambda: gpu_training.draw(run(), results, options.state / "export")),
    ]


@contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """Leave as if a cluster had asked for it (SIGTERM) when the time is over: a training saves its state first."""

    def leave(*_: Any) -> None:
        raise SystemExit(143)

    previous = signal.signal(signal.SIGTERM, leave)
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, previous)


def do(step: Step, out: Path, facts: dict[str, Any]) -> bool:
    """Do a step and write its result; what fails leaves a note and is tried again by the next call."""
    start = time.perf_counter()
    note = out / f"{step.name}.error.txt"
    try:
        result = step.work()
    except torch.OutOfMemoryError:
        result = {"out_of_memory": True}  # a result too: this form does not fit the device
    except NotImplementedError as error:  # bfloat16 pooling on a processor
        result = {"not_implemented": str(error).split("\n")[0]}
    except Exception:
        write_text(note, traceback.format_exc())
        print(f"{step.name}: failed, see {note}", flush=True)
        return False
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    note.unlink(missing_ok=True)
    result |= facts | {"name": step.name, "step_seconds": round(time.perf_counter() - start, 1)}
    write_json(out / f"{step.name}.json", result)
    short = [f"{key} {result[key]}" for key in SHOWN if key in result]
    print(f"{step.name}: {', '.join(short) or 'done'}", flush=True)
    return True


def pack(options: argparse.Namespace, run: Run) -> None:
    """Leave what should travel back in the folder ``--pack``."""
    if options.pack is None:
        return
    found = [path for path in options.out.iterdir() if path.suffix in (".json", ".csv", ".png", ".txt")]
    carried.write_tar(options.pack / "results.tar", {path.name: path for path in found})
    stage = run.stage("autoencoder")
    if read_record(stage) is not None:
        carried.write_tar(options.pack / "autoencoder.tar", {path.name: path for path in stage.iterdir()})
    if (options.out / "train-samples.json").exists():
        whole = options.state / "weights.tar"
        carried.write_tar(whole, {path.name: path for path in (options.state / "export").iterdir()})
        carried.write_pieces(whole, options.pack, PIECE)


def restore(options: argparse.Namespace, run: Run) -> None:
    """Take over the results and the finished autoencoder that another machine packed."""
    if options.restore is None:
        return
    for name, place in (("results.tar", options.out), ("autoencoder.tar", run.stage("autoencoder"))):
        if (options.restore / name).exists() and not place.exists():
            place.mkdir(parents=True)
            with tarfile.open(options.restore / name) as archive:
                archive.extractall(place, filter="data")


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--minutes", type=float, default=9.0, help="of this call; default 9")
    add("--profile", default="paper", help="of forward passes, sampling and training steps; default paper")
    add("--train-profile", default="demo", help="that is trained; default demo")
    add("--train-minutes", type=float, default=16.0, help="of training in all; default 16")
    add("--subjects", type=int, default=600, help="to train on, at most; default 600")
    add("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    add("--backend", default="inductor", help="of torch.compile; eager only checks that networks can be traced")
    add("--timed-steps", type=int, default=20, help="of each training step that is timed; default 20")
    add("--only", default="", help="names of steps, or how they begin, with commas; default: all")
    add("--carried", type=Path, help="packed anatomies; without them there is no training")
    add("--workers", type=int, default=max(1, cores() - 2), help="that simulate; default: cores less two")
    add("--out", type=Path, default=Path("book/published/gpu"), help="for results")
    add("--state", type=Path, default=Path("runs/gpu"), help="for what a later call needs")
    add("--pack", type=Path, help="folder for what should travel back")
    add("--restore", type=Path, help="what another machine packed")
    add("--commit", default=commit(), help="of the code, where there is no checkout")
    return parser.parse_args()


def main() -> int:
    """Do what is left to do and what the time allows; 0 when all is done, 3 when something is left."""
    options = parsed()
    end = time.monotonic() + 60 * options.minutes
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(options.state.resolve() / "inductor"))
    device = choose_device(options.device)
    cohort = carried.facts(options.carried)["cohort"] if options.carried else "anatomies"
    trained = gpu_training.with_subjects(load_profile(options.train_profile), options.subjects)
    run = Run(trained, cohort, 0, options.state / "runs")
    restore(options, run)
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = tuple(options.only.split(",")) if options.only else ("",)
    training = any("train".startswith(word) or word.startswith("train") for word in wanted)
    finished = (options.out / "train-samples.json").exists()
    packed = options.carried if training and not finished else None
    simulation = gpu_training.Simulation(run, packed, options.workers, options.state / "simulate.log")
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    facts = {"commit": options.commit, "measured_on": gpu, "torch_version": torch.__version__}
    left = []
    try:
        steps = [step for step in all_steps(options, device, simulation) if step.name.startswith(wanted)]
        left = [step for step in steps if not (options.out / f"{step.name}.json").exists()]
        with ended_after(max(1.0, end - time.monotonic() - min(MARGIN, 6 * options.minutes))):
            for step in list(left):
                if end - time.monotonic() > step.needs and do(step, options.out, facts):
                    left.remove(step)
    except BrainLDMError as error:
        print(error)
    except SystemExit:
        print("time is over", flush=True)
    finally:
        simulation.stop()
        pack(options, run)
    print("all done" if not left else f"left: {', '.join(step.name for step in left)}", flush=True)
    return 3 if left else 0


if __name__ == "__main__":
    raise SystemExit(main())
