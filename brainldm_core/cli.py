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

from . import commands, data_commands, evaluate_command, release_command, sample_command
from .errors import BrainLDMError

ABOUT = "Brains from latent diffusion: every stage, notebook and page of a run, and samples from trained weights."


def build_parser() -> argparse.ArgumentParser:
    """All subcommands and options; abbreviations are not accepted."""
    parser = argparse.ArgumentParser(prog="brainldm", description=ABOUT, allow_abbrev=False)
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument("--profile", default="tiny", help="smoke, tiny, demo, paper, or a YAML file (default tiny)")
    common.add_argument("--cohort", help="atlas, or the name of your scans' folder (default atlas)")
    common.add_argument("--seed", type=int, default=0, help="seed of the training (default 0)")
    common.add_argument("--runs", default="runs", metavar="DIR", help="where runs live (default runs)")
    subcommands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, function, *, run: bool = True) -> argparse.ArgumentParser:
        parents = [common] if run else []
        command = subcommands.add_parser(name, help=text, description=text, parents=parents, allow_abbrev=False)
        command.set_defaults(function=function)
        return command

    add("doctor", "say what this machine can do and what is missing", commands.run_doctor, run=False)
    _add_data(add("data", "list, fetch and verify data sets and weights that others give", None, run=False))
    prepare = add(
        "prepare",
        "make the cohort: simulated (atlas; people: anatomies, heads), or your own scans (bids FOLDER)",
        commands.run_prepare,
    )
    prepare.add_argument("source", choices=["atlas", "anatomies", "heads", "bids"])
    prepare.add_argument(
        "folder",
        nargs="?",
        type=Path,
        metavar="FOLDER",
        help="label maps (default: the fetched synthseg-labels); or BIDS with a participants.tsv",
    )
    prepare.add_argument("--out", type=Path, metavar="DIR", help="put the volumes here instead of in the run")
    bids = prepare.add_argument_group("options of bids, recorded; another one does the scans again")
    bids.add_argument("--bias-correction", action="store_true", help="take the bias field off by N4 (default: no)")
    bids.add_argument(
        "--brain-extraction", action="store_true", help="cut the brain out of whole heads; needs deepbet (default: no)"
    )
    bids.add_argument(
        "--intensity",
        choices=["white", "field", "percentile"],
        default="white",
        help="white matter to 0.8; the paper's darkest to 0 and brightest to 1; percentile 99.5 to 1 (default white)",
    )
    networks = ("autoencoder", "diffusion", "lsgan", "vaegan", "baselines", "brain-age")
    add("train", "train a network, or go on with its training", commands.run_train).add_argument(
        "network",
        choices=[*networks, "brain_age"],
        metavar="NETWORK",
        help=f"{', '.join(networks)}; baselines: both lsgan and vaegan, for the seconds that diffusion took",
    )
    add("samples", "draw the run's evaluation samples and measure them", commands.run_samples)

    miniature = add("miniature", "make the run's own small release in BIDS, and verify it", commands.run_miniature)
    miniature.add_argument(
        "--shard", type=release_command.shard_of, metavar="I/N", help="only draw part I of N, as jobs of a cluster do"
    )

    sample_command.add_options(
        add("sample", "draw brains with the covariates that you ask for", sample_command.run_sample, run=False)
    )

    release_command.add_options(
        add("release", "draw a public set of brains in BIDS, check and repair it", None, run=False)
    )
    words = "compare a folder of generated volumes, anybody's, with real ones"
    evaluate_command.add_options(add("evaluate", words, evaluate_command.run_evaluate, run=False))

    run = add("run", "run a notebook, or bring everything of a run up to date (all)", commands.run_run)
    run.add_argument("notebook", help="all, or a notebook: 01, 01_data, notebooks/01_data.py")
    run.add_argument("--bids", type=Path, metavar="FOLDER", help="your own scans as cohort")
    run.add_argument("--sweep", metavar="seed=0,1,2", help="one run for each value")
    run.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="given", help="another parameter of a notebook"
    )
    run.add_argument(
        "--workflow-profile",
        metavar="NAME_OR_DIR",
        help="with all: where jobs run, as a Snakemake profile; slurm is workflow/profiles/slurm (default: here)",
    )
    add("book", "build the book of a run", commands.run_book).add_argument(
        "--published", action="store_true", help="the published book instead, from committed outputs, into _build/html"
    )
    export = add(
        "export", "write the weights of a finished run as a pair in half precision", commands.run_export, run=False
    )
    export.add_argument("run", help="name of the run, e.g. tiny-atlas, or its folder")
    export.add_argument("--runs", default="runs", metavar="DIR")
    export.add_argument("--out", type=Path, required=True, metavar="DIR")
    export.add_argument(
        "--released",
        action="store_true",
        help="in single precision, in the layout of the network that the paper's authors released; for MONAI",
    )
    publish = add(
        "publish",
        "put the outputs and results of a finished run in the published book",
        commands.run_publish,
        run=False,
    )
    publish.add_argument("run", help="name of the run, e.g. tiny-atlas, or its folder")
    publish.add_argument("--runs", default="runs", metavar="DIR")
    publish.add_argument("--results", action="store_true", help="only results and records, for another training seed")
    add("sync", "bring each .ipynb in step with its .py, the file that is edited", commands.run_sync, run=False)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    """What ``brainldm data`` can do."""
    subcommands = parser.add_subparsers(dest="data", required=True, metavar="COMMAND")

    def add(name: str, text: str, function) -> argparse.ArgumentParser:
        command = subcommands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(function=function)
        return command

    add("list", "what there is, its licence and size, where to get it, and whether it is here", data_commands.run_list)
    fetch = add("fetch", "get files, check them, unpack archives; goes on where it stopped", data_commands.run_fetch)
    fetch.add_argument("name", metavar="NAME", help="see brainldm data list")
    fetch.add_argument("--out", type=Path, metavar="DIR", help="default: a folder of that name in BRAINLDM_DATA")
    fetch.add_argument("--from", dest="mirror", metavar="DIR_OR_URL", help="a copy of the files, in a folder or online")
    fetch.add_argument("--agree", action="store_true", help="you have read and accept the terms of the data")
    verify = add("verify", "read files again and list what is missing or changed", data_commands.run_verify)
    verify.add_argument("name", metavar="NAME")
    verify.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="default: where fetch puts it")
    table = add("table", "make participants.tsv from an export of UK Biobank's fields", data_commands.run_table)
    table.add_argument("name", choices=["ukbiobank"])
    table.add_argument("fields", type=Path, metavar="FIELDS.csv", help="with eid, sex, age and the two volumes")
    table.add_argument("--out", type=Path, default=Path("participants.tsv"), metavar="FILE")


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
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["release"] and words[1:2] and words[1].startswith("-") and words[1] not in ("-h", "--help"):
        words.insert(1, "draw")  # brainldm release --n 8 --out DIR
    args = build_parser().parse_args(words)
    args.own_process = arguments is None  # else another program called us, and has imports of its own
    from .launch import hopeless, turn  # after the parser: --help stays quick

    warnings.showwarning = _warn
    if hopeless():
        return 2
    try:
        with turn():
            return args.function(args) or 0
    except BrainLDMError as error:
        commands.forget(getattr(args, "begun", None))
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
