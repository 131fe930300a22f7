"""``brainldm release``: draw, finish, verify and plan a public set of brains. Heavy imports stay inside."""

from __future__ import annotations

import argparse
from pathlib import Path

from .sample_command import SAMPLERS


def add_options(release: argparse.ArgumentParser) -> None:
    """What ``brainldm release`` can do; without a word it draws (``main``)."""
    subcommands = release.add_subparsers(dest="release", required=True, metavar="COMMAND")

    def add(name: str, text: str, function) -> argparse.ArgumentParser:
        command = subcommands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(function=function)
        return command

    draw = add("draw", "draw a shard of a set; the last one finishes the set (the default)", run_release)
    draw.add_argument("--weights", type=Path, metavar="RUN", help="a run's folder; default: the weights that ship")
    draw.add_argument("--n", type=int, help="volumes of the whole set, the same for every shard")
    draw.add_argument(
        "--shard", type=shard_of, default=(1, 1), metavar="I/N", help="draw part I of N, from 1/N to N/N (default 1/1)"
    )
    draw.add_argument("--sampler", choices=SAMPLERS, help="default: the profile's for releases")
    draw.add_argument("--steps", type=int, help="of all samplers but ddpm; default: the profile's for releases")
    draw.add_argument("--seed", type=int, help="of requests and noise; default: that of the training")
    draw.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that compress, measure and write; 0: none (default: none on a CPU, up to 8 on a GPU)",
    )
    draw.add_argument("--title", default="Synthetic brains", help="name of the set (default Synthetic brains)")
    draw.add_argument(
        "--author", action="append", default=[], metavar="NAME", help="of the set; give it again for more"
    )
    draw.add_argument("--out", type=Path, required=True, metavar="DIR")
    finish = add("finish", "write tables and checksums of a set whose shards are all drawn", run_finish)
    finish.add_argument("folder", type=Path, metavar="DIR")
    verify = add("verify", "read a set again, list what is wrong, and make it again if asked to", run_verify)
    verify.add_argument("folder", type=Path, metavar="DIR")
    verify.add_argument(
        "--remeasure", type=int, default=1000, metavar="N", help="measure N volumes again, evenly spread (default 1000)"
    )
    verify.add_argument("--repair", action="store_true", help="make again what is missing or damaged")
    verify.add_argument(
        "--weights", type=Path, metavar="RUN", help="for --repair: what the set was drawn with; default: as for draw"
    )
    verify.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read (default 0: none)")
    plan = add("plan", "work out hours, shards and storage of a set from what was measured", run_plan)
    plan.add_argument("--n", type=int, default=100_000, help="volumes (default 100,000, the paper's)")
    plan.add_argument("--hours", type=float, default=4.0, help="of a shard (default 4)")
    plan.add_argument("--steps", type=int, default=10, help="of the sampler at 1 mm (default 10)")
    plan.add_argument("--run", type=Path, metavar="RUN", help="whose release was measured (default: the published one)")


def shard_of(text: str) -> tuple[int, int]:
    """Part I of N, as ``3/64``."""
    try:
        part, parts = text.split("/")
        return int(part), int(parts)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: write I/N, for instance 3/64") from None


def run_release(args: argparse.Namespace) -> None:
    """Draw a shard of a set."""
    from .release_run import draw_release

    names = ("shard", "sampler", "steps", "seed", "workers", "title")
    how = {name: getattr(args, name) for name in names} | {"authors": args.author}
    print(draw_release(args.out, args.weights, args.n, **how))


def run_finish(args: argparse.Namespace) -> None:
    """Finish a set."""
    from .release_run import end_release

    print(end_release(args.folder))


def run_verify(args: argparse.Namespace) -> int:
    """List the problems of a released set, or repair them; 1 if there are any left."""
    from .release_run import find_release, mend_release, verify_release

    folder = find_release(args.folder)
    problems = verify_release(folder, args.remeasure, args.workers)
    if problems and args.repair:
        print("\n".join(problems))
        for name in mend_release(folder, args.weights):
            print(f"{folder / name}: made again")
        problems = verify_release(folder, args.remeasure, args.workers)
    print("\n".join(problems) or f"{args.folder}: nothing is wrong")
    return int(bool(problems))


def run_plan(args: argparse.Namespace) -> None:
    """Say what a large set takes."""
    from .release_plan import plan_text

    print(plan_text(args.n, args.hours, args.steps, args.run))
