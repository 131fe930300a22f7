"""What each subcommand of ``brainldm`` does, once ``cli`` has read its options. Heavy imports stay inside."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BrainLDMError

if TYPE_CHECKING:
    from .records import Run


def _open(args: argparse.Namespace, bids: Path | None = None) -> Run:
    """The run that the common options name; scans bring the name of their folder."""
    from .profiles import load_profile
    from .records import Run, open_run

    if bids is not None and args.cohort is None:
        args.cohort = bids.resolve().name
    args.cohort = args.cohort or "atlas"
    if bids is not None and args.cohort == "atlas":
        raise BrainLDMError("cohort 'atlas' is the simulated one; give your scans another name: --cohort NAME")
    if args.profile.endswith((".yaml", ".yml")):
        args.profile = str(Path(args.profile).resolve())
    folder = Run(load_profile(args.profile), args.cohort, args.seed, Path(args.runs)).folder
    args.begun = None if folder.exists() else folder
    run = open_run(args.profile, args.cohort, args.seed, args.runs)
    if args.cohort != "atlas" and bids is None and not (run.stage("cohort") / "record.json").exists():
        if args.cohort in ("anatomies", "heads"):
            raise BrainLDMError(
                f"cohort {args.cohort!r} needs label maps: brainldm data fetch synthseg-labels gets some; then: "
                f"brainldm prepare {args.cohort}, or with others: brainldm prepare {args.cohort} FOLDER"
            )
        raise BrainLDMError(f"cohort {run.cohort!r} is unknown; choose atlas, or give your scans: --bids FOLDER")
    return run


def forget(folder: Path | None) -> None:
    """Remove a run that was begun by a command that failed before it made anything."""
    if (
        folder is not None
        and folder.is_dir()
        and all(path.name == "run.json" or path.name.startswith(".") for path in folder.iterdir())
    ):
        shutil.rmtree(folder, ignore_errors=True)


def _stage(run: Run, stage: str, function, name: str | None = None) -> None:
    """Run an ensure-function of a stage, alone in its folder, or of the part of it that has a ``name``."""
    from .processes import alone, is_main

    with alone(run.stage(stage).parent / f".{stage}.lock"):
        record = function()
    if is_main():
        print(f"{run.name}: {name or stage} finished, {record['seconds']:.0f} s", flush=True)


def run_doctor(args: argparse.Namespace) -> int:
    """Say what this machine can do."""
    from .doctor import report

    return report()


def run_prepare(args: argparse.Namespace) -> None:
    """Make the cohort of a run, simulated or from scans."""
    from .launch import cores

    if args.source == "bids":
        if args.folder is None:
            raise BrainLDMError("prepare bids: which folder? brainldm prepare bids FOLDER")
        from .preprocess import prepare_bids
        from .scans import Preparation

        how = Preparation(args.bias_correction, args.brain_extraction, args.intensity)
        run = _open(args, args.folder)
        _stage(run, "cohort", lambda: prepare_bids(args.folder, run, args.out, cores(), how))
        if args.out is not None:
            forget(args.begun)  # the volumes lie elsewhere: no run was meant
    else:
        from .fetch import fetched
        from .simulate_run import simulate_cohort

        if args.out is not None or args.cohort not in (None, args.source):
            raise BrainLDMError(
                f"prepare {args.source}: takes no --out or other --cohort; for scans: prepare bids FOLDER"
            )
        if args.source == "atlas" and args.folder is not None:
            raise BrainLDMError("prepare atlas: takes no folder; for scans: prepare bids FOLDER")
        if args.bias_correction or args.brain_extraction or args.intensity != "white":
            raise BrainLDMError(f"prepare {args.source}: simulated brains take no options of bids; leave them out")
        if args.source != "atlas" and args.folder is None:
            args.folder = fetched("synthseg-labels")
        args.cohort = args.source
        run = _open(args, args.folder)
        _stage(run, "cohort", lambda: simulate_cohort(run, workers=cores(), labels=args.folder))


def run_train(args: argparse.Namespace) -> None:
    """Train a network of a run, or its two baselines."""
    from .baselines import BASELINES, train_baselines
    from .sweeps import ensure_brain_age
    from .training import train_autoencoder, train_diffusion

    run = _open(args)
    name = args.network.replace("-", "_")
    functions = {"autoencoder": train_autoencoder, "diffusion": train_diffusion, "brain_age": ensure_brain_age}
    if name in functions:
        _stage(run, name, lambda: functions[name](run))
    else:
        only = name if name in BASELINES else None
        _stage(run, "baselines", lambda: train_baselines(run, only=only), only)


def run_samples(args: argparse.Namespace) -> None:
    """Draw and measure the evaluation samples of a run."""
    from .samples import sample_stage

    run = _open(args)
    _stage(run, "samples", lambda: sample_stage(run))


def run_miniature(args: argparse.Namespace) -> None:
    """Draw, finish and verify the release of a run, or draw one shard of it."""
    from .records import write_json
    from .release_run import release_stage

    run = _open(args)
    if args.shard is None:
        _stage(run, "release", lambda: release_stage(run))
        return
    made = release_stage(run, shard=args.shard)
    name = "-of-".join(map(str, args.shard))
    write_json(run.stage("release") / "shards" / f"{name}.json", made)
    print(f"{run.name}: release, shard {args.shard[0]}/{args.shard[1]} finished, {made['seconds']:.0f} s", flush=True)


def _sweep(args: argparse.Namespace) -> list[int]:
    """Seeds of a sweep, or the one of ``--seed``."""
    if args.sweep is None:
        return [args.seed]
    name, _, values = args.sweep.partition("=")
    try:
        if name != "seed":
            raise ValueError
        return [int(value) for value in values.split(",")]
    except ValueError:
        raise BrainLDMError(f"--sweep {args.sweep}: write whole numbers, for instance seed=0,1,2") from None


def run_run(args: argparse.Namespace) -> None:
    """Run a notebook, or everything."""
    everything = args.notebook == "all"
    if everything and args.given:
        raise BrainLDMError("--set goes with one notebook, not with all")
    if args.workflow_profile and not everything:
        raise BrainLDMError("--workflow-profile goes with all, not with one notebook")
    args.runs = str(Path(args.runs).resolve())
    bids = args.bids.resolve() if args.bids else None
    if bids is not None and not bids.is_dir():
        raise BrainLDMError(f"{args.bids}: no such folder; give a BIDS folder with a participants.tsv")
    (_run_all if everything else _run_one)(args, bids)


def _runs(args: argparse.Namespace, bids: Path | None) -> Iterator[Run]:
    """The run of each seed of a sweep, opened when its turn comes."""
    for seed in _sweep(args):
        args.seed = seed
        yield _open(args, bids)


def _run_all(args: argparse.Namespace, bids: Path | None) -> None:
    """Bring all of a run, or of each run of a sweep, up to date: here, or where a profile says."""
    from .cluster import find_profile
    from .launch import bring_all, results_table

    where = find_profile(args.workflow_profile) if args.workflow_profile else None
    runs = []
    for run, changed in bring_all(_runs(args, bids), args.profile, bids, where):
        runs.append(run)
        if not changed:
            print(f"{run.folder.name}: nothing to do, everything is up to date")
    print(f"\n{results_table(runs)}\n")
    for run in runs:
        print(f"Book: {Path(os.path.relpath(run.stage('book') / 'html' / 'index.html'))}")


def _run_one(args: argparse.Namespace, bids: Path | None) -> None:
    """Run a notebook with its parameters, after the stages that it needs."""
    from .launch import bring_up_to_date, inside_workflow
    from .notebooks import check_parameters, find_notebook, needs, project_root, read_notebook
    from .runner import run_notebook

    source = find_notebook(args.notebook)
    for run in _runs(args, bids):
        root, where = project_root(), Path(args.runs)
        short = where.relative_to(root) if where.is_relative_to(root) else where  # pages should not show our folders
        given = {"profile": args.profile, "cohort": run.cohort, "seed": run.seed, "runs": str(short)}
        given |= dict(item.partition("=")[::2] for item in args.given)
        check_parameters(read_notebook(source), given, source)  # before hours of training
        waiting = [stage for stage in needs(source.stem) if not (run.stage(stage) / "record.json").exists()]
        if waiting and not inside_workflow():
            bring_up_to_date(run, args.profile, bids, waiting)
        record = run_notebook(source.stem, given)
        print(f"{run.name}: {source.stem} finished, {record['seconds']:.0f} s", flush=True)


def run_book(args: argparse.Namespace) -> None:
    """Build a book."""
    from .bookbuild import build_published_book, build_run_book

    if args.published:
        print(f"Book: {os.path.relpath(build_published_book() / 'index.html')}")
    else:
        run = _open(args)
        _stage(run, "book", lambda: build_run_book(run))


def _run_folder(args: argparse.Namespace) -> Path:
    """Folder of a run that is named, or given as a folder."""
    return Path(args.run) if Path(args.run).is_dir() else Path(args.runs) / args.run


def run_export(args: argparse.Namespace) -> None:
    """Write the weights of a run as a pair."""
    from .released import save_released
    from .training import export_weights

    for path in (save_released if args.released else export_weights)(_run_folder(args), args.out):
        print(path)


def run_publish(args: argparse.Namespace) -> None:
    """Publish a run."""
    from .publish import publish

    for path in publish(_run_folder(args), outputs=not args.results):
        print(path)


def run_sync(args: argparse.Namespace) -> None:
    """Bring pairs of notebooks in step."""
    from .notebooks import sync

    written = sync()
    print(f"written: {', '.join(written)}" if written else "all notebooks are in step")
