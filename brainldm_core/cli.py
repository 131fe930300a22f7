"""The ``brainldm`` command: every stage, notebook and page of a run, and brains from trained weights.

What a user can mend is one line on standard error and exit code 2; a failed notebook, book or job is exit code 1.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BrainLDMError

if TYPE_CHECKING:
    from .records import Run


ABOUT = "Brains from latent diffusion: every stage, notebook and page of a run, and samples from trained weights."


def build_parser() -> argparse.ArgumentParser:
    """All subcommands and options; abbreviations are not accepted."""
    parser = argparse.ArgumentParser(prog="brainldm", description=ABOUT, allow_abbrev=False)
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument("--profile", default="tiny", help="smoke, tiny, demo, paper, or a YAML file (default tiny)")
    common.add_argument("--cohort", help="atlas, or the name of your scans' folder (default atlas)")
    common.add_argument("--seed", type=int, default=0, help="seed of the training (default 0)")
    common.add_argument("--runs", default="runs", metavar="DIR", help="where runs live (default runs)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, function, *, run: bool = True) -> argparse.ArgumentParser:
        parents = [common] if run else []
        command = commands.add_parser(name, help=text, description=text, parents=parents, allow_abbrev=False)
        command.set_defaults(function=function)
        return command

    add("doctor", "say what this machine can do and what is missing", _doctor, run=False)
    prepare = add("prepare", "make the cohort: simulated (atlas), or your own scans (bids FOLDER)", _prepare)
    prepare.add_argument("source", choices=["atlas", "bids"])
    prepare.add_argument("bids", nargs="?", type=Path, metavar="FOLDER", help="BIDS folder with a participants.tsv")
    prepare.add_argument("--out", type=Path, metavar="DIR", help="put the volumes here instead of in the run")
    add("train", "train a network, or go on with its training", _train).add_argument(
        "network", choices=["autoencoder", "diffusion"]
    )
    add("samples", "draw the run's evaluation samples and measure them", _samples)

    sample = add("sample", "draw brains with the covariates that you ask for", _sample, run=False)
    sample.add_argument("--age", metavar="YEARS")
    sample.add_argument("--sex", choices=["F", "M"])
    sample.add_argument("--ventricles", metavar="VOLUME", help="lateral ventricles, e.g. 45ml")
    sample.add_argument("--brain", metavar="VOLUME", help="brain volume normalised for head size, e.g. 1150ml")
    sample.add_argument("--n", type=int, default=4, help="how many (default 4)")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--sampler", choices=["ddim", "ddpm"], help="default: the profile's")
    sample.add_argument("--steps", type=int, help="steps of ddim; default: the profile's")
    sample.add_argument("--weights", type=Path, metavar="RUN", help="a run's folder; default: the weights that ship")
    sample.add_argument("--out", type=Path, default=Path("brains"), metavar="DIR", help="default brains")

    run = add("run", "run a notebook, or bring everything of a run up to date (all)", _run)
    run.add_argument("notebook", help="all, or a notebook: 01, 01_data, notebooks/01_data.py")
    run.add_argument("--bids", type=Path, metavar="FOLDER", help="your own scans as cohort")
    run.add_argument("--sweep", metavar="seed=0,1,2", help="one run for each value")
    run.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="given", help="another parameter of a notebook"
    )
    add("book", "build the book of a run", _book).add_argument(
        "--published", action="store_true", help="the published book instead, from committed outputs, into _build/html"
    )
    export = add("export", "write the weights of a finished run as a pair in half precision", _export, run=False)
    export.add_argument("run", help="name of the run, e.g. tiny-atlas, or its folder")
    export.add_argument("--runs", default="runs", metavar="DIR")
    export.add_argument("--out", type=Path, required=True, metavar="DIR")
    publish = add("publish", "put the outputs and results of a finished run in the published book", _publish, run=False)
    publish.add_argument("run", help="name of the run, e.g. tiny-atlas, or its folder")
    publish.add_argument("--runs", default="runs", metavar="DIR")
    add("sync", "bring each .ipynb in step with its .py, the file that is edited", _sync, run=False)
    return parser


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
        raise BrainLDMError(f"cohort {run.cohort!r} is unknown; choose atlas, or give your scans: --bids FOLDER")
    return run


def _forget(folder: Path | None) -> None:
    """Remove a run that was begun by a command that failed before it made anything."""
    if (
        folder is not None
        and folder.is_dir()
        and all(path.name == "run.json" or path.name.startswith(".") for path in folder.iterdir())
    ):
        import shutil

        shutil.rmtree(folder, ignore_errors=True)


def _stage(run: Run, stage: str, function) -> None:
    """Run an ensure-function of a stage, alone in its folder."""
    from .runner import locked

    with locked(run.stage(stage).parent / f".{stage}.lock"):
        record = function()
    print(f"{run.name}: {stage} finished, {record['seconds']:.0f} s", flush=True)


def _doctor(args: argparse.Namespace) -> int:
    from .doctor import report

    return report()


def _prepare(args: argparse.Namespace) -> None:
    from .launch import cores

    if args.source == "bids":
        if args.bids is None:
            raise BrainLDMError("prepare bids: which folder? brainldm prepare bids FOLDER")
        from .preprocess import prepare_bids

        run = _open(args, args.bids)
        _stage(run, "cohort", lambda: prepare_bids(args.bids, run, args.out, workers=cores()))
        if args.out is not None:
            _forget(args.begun)  # the volumes lie elsewhere: no run was meant
    else:
        from .simulate import simulate_cohort

        if args.bids is not None or args.out is not None or args.cohort not in (None, "atlas"):
            raise BrainLDMError(
                "prepare atlas: takes no folder, --out or other --cohort; for scans: prepare bids FOLDER"
            )
        run = _open(args)
        _stage(run, "cohort", lambda: simulate_cohort(run, workers=cores()))


def _train(args: argparse.Namespace) -> None:
    from . import training

    run = _open(args)
    _stage(run, args.network, lambda: getattr(training, f"train_{args.network}")(run))


def _samples(args: argparse.Namespace) -> None:
    from .samples import sample_stage

    run = _open(args)
    _stage(run, "samples", lambda: sample_stage(run))


def _sample(args: argparse.Namespace) -> None:
    from .covariates import parse_quantity

    asked = {
        "sex": args.sex,
        "age_years": args.age and parse_quantity(args.age, "years"),
        "ventricular_volume_ml": args.ventricles and parse_quantity(args.ventricles, "ml"),
        "brain_volume_ml": args.brain and parse_quantity(args.brain, "ml"),
    }
    if args.n < 1:
        raise BrainLDMError(f"--n {args.n}: ask for at least one brain")
    import pandas as pd
    from tqdm import tqdm

    from .samples import write_samples
    from .sampling import load_pipeline, sample

    pipeline = load_pipeline(args.weights)
    table = pd.DataFrame([asked] * args.n)
    ids = list(range(1, args.n + 1))
    usual = pipeline.profile.sampling
    how = {"sampler": args.sampler or usual.sampler, "steps": args.steps or usual.steps, "seed": args.seed}
    with tqdm(desc="sampling", unit="step", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        volumes = sample(pipeline, table, ids, **how, progress=progress)
    write_samples(pipeline, table, volumes, ids, args.out, **how)
    print(f"{args.out}: {args.n} brains; look at {args.out / 'montage.png'}")


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


def _run(args: argparse.Namespace) -> None:
    from .launch import bring_up_to_date, inside_workflow, results_table
    from .notebooks import check_parameters, find_notebook, needs, project_root, read_notebook
    from .runner import run_notebook

    everything, runs = args.notebook == "all", []
    pairs = [item.partition("=")[::2] for item in args.given]
    if everything and pairs:
        raise BrainLDMError("--set goes with one notebook, not with all")
    source = None if everything else find_notebook(args.notebook)
    args.runs = str(Path(args.runs).resolve())
    bids = args.bids.resolve() if args.bids else None
    if bids is not None and not bids.is_dir():
        raise BrainLDMError(f"{args.bids}: no such folder; give a BIDS folder with a participants.tsv")
    for seed in _sweep(args):
        args.seed = seed
        run = _open(args, bids)
        runs.append(run)
        if everything:
            if not bring_up_to_date(run, args.profile, bids):
                print(f"{run.folder.name}: nothing to do, everything is up to date")
            continue
        root, where = project_root(), Path(args.runs)
        short = where.relative_to(root) if where.is_relative_to(root) else where  # pages should not show our folders
        given = {"profile": args.profile, "cohort": run.cohort, "seed": run.seed, "runs": str(short), **dict(pairs)}
        check_parameters(read_notebook(source), given, source)  # before hours of training
        waiting = [stage for stage in needs(source.stem) if not (run.stage(stage) / "record.json").exists()]
        if waiting and not inside_workflow():
            bring_up_to_date(run, args.profile, bids, waiting)
        record = run_notebook(source.stem, given)
        print(f"{run.name}: {source.stem} finished, {record['seconds']:.0f} s", flush=True)
    if everything:
        print(f"\n{results_table(runs)}\n")
        for run in runs:
            print(f"Book: {Path(os.path.relpath(run.stage('book') / 'html' / 'index.html'))}")


def _book(args: argparse.Namespace) -> None:
    from .bookbuild import build_published_book, build_run_book

    if args.published:
        print(f"Book: {os.path.relpath(build_published_book() / 'index.html')}")
    else:
        run = _open(args)
        _stage(run, "book", lambda: build_run_book(run))


def _run_folder(args: argparse.Namespace) -> Path:
    """Folder of a run that is named, or given as a folder."""
    return Path(args.run) if Path(args.run).is_dir() else Path(args.runs) / args.run


def _export(args: argparse.Namespace) -> None:
    from .training import export_weights

    for path in export_weights(_run_folder(args), args.out):
        print(path)


def _publish(args: argparse.Namespace) -> None:
    from .publish import publish

    for path in publish(_run_folder(args)):
        print(path)


def _sync(args: argparse.Namespace) -> None:
    from .notebooks import sync

    written = sync()
    print(f"written: {', '.join(written)}" if written else "all notebooks are in step")


def _say(message: str) -> None:
    """One line for the user; inside the workflow it is the launcher that prints it."""
    from .launch import inside_workflow, leave_error

    if inside_workflow():
        leave_error(message)
    else:
        print(f"brainldm: {message}", file=sys.stderr)


def _warn(message: Warning | str, category: type, filename: str, *_) -> None:
    """Our own warnings in one line; those of libraries are about libraries."""
    if Path(filename).parent == Path(__file__).parent:
        print(f"brainldm: warning: {' '.join(str(message).split())}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit code."""
    args = build_parser().parse_args(arguments)
    warnings.showwarning = _warn
    try:
        return args.function(args) or 0
    except BrainLDMError as error:
        _forget(getattr(args, "begun", None))
        _say(" ".join(str(error).split()))
        return 2
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _say(f"{error.filename or 'the disk'}: no space left; free some, then start again to go on")
        return 2
    except RuntimeError as error:
        if type(error).__module__.partition(".")[0] != __package__:
            raise
        print(f"brainldm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("brainldm: stopped; start again to go on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
