"""``brainldm sample``: its options, and brains on disk as soon as they are drawn. Heavy imports stay inside."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BrainLDMError
from .startup import import_networks, seconds_since_start

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from .sampling import Pipeline

SAMPLERS = ("ddim", "ddpm", "dpmpp", "unipc")  # ``samplers.SAMPLERS``, which imports torch
EXAMPLES = """A covariate may be a value, a range that is drawn from evenly (44:82), a quantile of the training cohort
in per cent (q90) or a range of quantiles (q10:q90). What is not asked for is unknown to the model, which
fills it in. For a negative number write --ventricles=-5ml.

  brainldm sample --age 70 --sex F --ventricles 45ml --brain 1150ml
  brainldm sample --age 44:82 --sex both --ventricles q10:q90 --n 20 --sampler dpmpp --steps 10
  brainldm sample --cohort design.tsv --labels --out designed
  brainldm sample --like participants.tsv --n 100 --out twins"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``brainldm sample``, in groups."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EXAMPLES
    asked = parser.add_argument_group("what to ask for")
    asked.add_argument("--age", metavar="YEARS", help="70, 44:82, q90 or q10:q90")
    asked.add_argument("--sex", choices=["F", "M", "both"], help="both: F and M in turn")
    asked.add_argument("--ventricles", metavar="VOLUME", help="lateral ventricles: 45ml, 10:60ml, q90 or q10:q90")
    asked.add_argument("--brain", metavar="VOLUME", help="brain volume normalised for head size: 1150ml, 1050:1250ml")
    tables = asked.add_mutually_exclusive_group()
    tables.add_argument(
        "--cohort",
        type=Path,
        metavar="FILE.tsv",
        help="a design: a row a volume, with any of the columns sex, age_years, ventricular_volume_ml and "
        "brain_volume_ml, n/a where unknown",
    )
    tables.add_argument(
        "--like",
        type=Path,
        metavar="FILE.tsv",
        help="a participants.tsv, ours or with the fields of UK Biobank: whole rows of it, drawn with replacement; "
        "with either table, what is given singly goes before its column",
    )
    many = parser.add_argument_group("how many")
    many.add_argument("--n", type=int, help="default 4; of a design: all rows")
    many.add_argument("--seed", type=int, default=0, help="of noise, ranges and chosen rows (default 0)")
    many.add_argument("--first-id", type=int, metavar="ID", help="number of the first, to go on with a series (1)")
    how = parser.add_argument_group("how to draw")
    how.add_argument(
        "--sampler",
        choices=SAMPLERS,
        help="DDIM, DDPM (all steps), DPM-Solver++ or UniPC; default: the profile's",
    )
    how.add_argument("--steps", type=int, help="of all samplers but ddpm; default: the profile's")
    how.add_argument("--guidance", type=float, metavar="SCALE", help="1 is none; default: the profile's")
    how.add_argument(
        "--weights",
        type=lambda text: text if text == "bundle" else Path(text),  # ./bundle is a folder
        metavar="RUN",
        help="a run's folder, or bundle: the network that the paper's authors released, once brainldm data fetch "
        "brain-ldm-bundle has got it, or a folder with its models; default: the weights that ship",
    )
    how.add_argument("--profile", help="what the weights must be of; the released ones are of paper")
    files = parser.add_argument_group("what to write")
    files.add_argument("--out", type=Path, default=Path("brains"), metavar="DIR", help="default brains")
    files.add_argument("--labels", action="store_true", help="also label maps, measured, in derivatives/labels")


def run_sample(args: argparse.Namespace) -> None:
    """Draw brains from trained weights."""
    from .designs import parse_range

    asked = {
        "sex": args.sex,
        "age_years": args.age and parse_range(args.age, "years"),
        "ventricular_volume_ml": args.ventricles and parse_range(args.ventricles, "ml"),
        "brain_volume_ml": args.brain and parse_range(args.brain, "ml"),
    }
    asked = {column: wish for column, wish in asked.items() if wish is not None}
    _check(args)
    from .records import check_free

    check_free(args.out)
    import_networks(args.own_process)
    if args.sampler in ("dpmpp", "unipc"):  # here, so that its seconds are counted as an import's
        from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler  # noqa: F401
    from .covariates import warn_outside
    from .label_files import label_method
    from .samples import write_samples
    from .sampling import load_pipeline

    table, ids, words = _table(args)
    times = {"start and imports": seconds_since_start()}
    pipeline = load_pipeline(args.weights, profile=args.profile)
    times["weights"] = seconds_since_start()
    if args.labels:
        label_method(pipeline)
    table, more = _filled(table, asked, ids, pipeline, args)
    words += more
    print(f"Requests: {'; '.join(words) or 'nothing is asked for'}.")
    warn_outside(table, pipeline.ranges)
    usual = pipeline.profile.sampling
    how = {
        "sampler": args.sampler or usual.sampler,
        "steps": usual.steps if args.steps is None else args.steps,
        "seed": args.seed,
        "guidance": args.guidance,
    }
    mark = partial(_mark, times)
    volumes = drawn(pipeline, table, ids, how, lambda: mark("sampling"))
    origin = "; ".join(words) or None
    write_samples(
        pipeline, table, volumes, ids, args.out, **how, origin=origin, labels=args.labels,
        written=lambda _: mark("writing"),
    )  # fmt: skip
    print(f"{args.out}: {len(ids)} brain{'s'[: len(ids) - 1]}; look at {args.out / 'montage.png'}")
    print(_in_words(times, len(ids)))


def _check(args: argparse.Namespace) -> None:
    """Refuse numbers that mean nothing."""
    if args.n is not None and args.n < 1:
        raise BrainLDMError(f"--n {args.n}: ask for at least one brain")
    if args.seed < 0:
        raise BrainLDMError(f"--seed {args.seed}: give a whole number from 0")
    if args.first_id is not None and args.first_id < 1:
        raise BrainLDMError(f"--first-id {args.first_id}: give a whole number from 1")
    if args.guidance is not None and not 0 <= args.guidance < float("inf"):
        raise BrainLDMError(f"--guidance {args.guidance:g}: give a number from 0; 1 is none")


def _table(args: argparse.Namespace) -> tuple[pd.DataFrame, list[int], list[str]]:
    """The design before what is given singly: covariates, ids of volumes, and where they come from in words."""
    import pandas as pd

    from .design_tables import read_design, read_people
    from .release import draw_requests

    first = args.first_id or 1
    ids = list(range(first, first + (args.n or 4)))
    if args.like is not None:
        people = read_people(args.like)
        words = [f"whole rows of the {len(people)} in {args.like.name}, drawn with replacement"]
        return draw_requests(people, ids[-1], args.seed).iloc[first - 1 :], ids, words
    if args.cohort is None:
        return pd.DataFrame(index=range(len(ids)), columns=[]), ids, []
    table, named, unused = read_design(args.cohort)
    if unused:
        print(f"{args.cohort}: columns that are not used: {', '.join(unused)}")
    if named is not None and args.first_id is not None:
        raise BrainLDMError(f"--first-id: {args.cohort} has ids of its own in participant_id; leave one of them out")
    last = first - 1 + (args.n or len(table) - first + 1)
    if not first <= last <= len(table):
        raise BrainLDMError(f"{args.cohort}: has {len(table)} rows, and {first} to {last} are asked for; ask for fewer")
    chosen = slice(first - 1, last)
    return table.iloc[chosen], (named or list(range(1, len(table) + 1)))[chosen], [f"rows of {args.cohort.name}"]


def _filled(
    table: pd.DataFrame, asked: dict[str, Any], ids: Sequence[int], pipeline: Pipeline, args: argparse.Namespace
) -> tuple[pd.DataFrame, list[str]]:
    """The design with what is given singly, and that in words; quantiles say whose they are."""
    from .covariates import COLUMNS
    from .designs import fill, quantile, training_rows

    if not any(end.quantile for wish in asked.values() if not isinstance(wish, str) for end in wish):
        rows, whose = None, []
    else:
        rows, whose = training_rows(pipeline, args.weights)
        whose = [f"quantiles are those of {whose}"]
    table, words = fill(table, asked, ids, args.seed, lambda column, per_cent: quantile(rows, column, per_cent))
    return table.reindex(columns=list(COLUMNS)), words + whose


def drawn(
    pipeline: Pipeline, table: pd.DataFrame, ids: Sequence[int], how: dict[str, Any], batch_done: Callable[[], None]
) -> Iterator[np.ndarray]:
    """Volumes (D, H, W) of a design one after another, drawn a batch at a time; the same as all of them at once."""
    from .samples import progress_bar
    from .sampling import sample

    size = pipeline.profile.sampling.batch_size
    with progress_bar("sampling") as seen:
        for start in range(0, len(ids), size):
            batch = slice(start, start + size)
            place, parts = start // size, -(-len(ids) // size)

            def bar(done: int, steps: int, place: int = place, parts: int = parts) -> None:
                seen(place * steps + done, parts * steps)

            with warnings.catch_warnings():  # of the whole design it has been said
                warnings.filterwarnings("ignore", ".*is outside the training range")
                volumes = sample(pipeline, table.iloc[batch], ids[batch], **how, progress=bar)
            batch_done()
            yield from volumes


def _mark(times: dict[str, float], name: str) -> None:
    """Note when something was done for the first time."""
    times.setdefault(name, seconds_since_start())


def _in_words(times: dict[str, float], count: int) -> str:
    """Seconds from pressing return to the first volume, part by part, and to the last."""
    ends = list(times.values())
    parts = [f"{name} {end - before:.1f} s" for name, end, before in zip(times, ends, [0.0, *ends], strict=False)]
    whole = f"; all {count}, measured, after {seconds_since_start():.1f} s" if count > 1 else ""
    return f"The first volume was drawn and written {ends[-1]:.1f} s after the start ({', '.join(parts)}){whole}."
