"""``brainldm evaluate``: its options, and two folders of volumes compared. Heavy imports stay inside."""

from __future__ import annotations

import argparse
from pathlib import Path

from .errors import BrainLDMError


def add_options(evaluate: argparse.ArgumentParser) -> None:
    """Options of ``brainldm evaluate``."""
    evaluate.add_argument("samples", type=Path, metavar="SAMPLES", help="folder of generated NIfTI volumes")
    evaluate.add_argument("--against", type=Path, required=True, metavar="REAL", help="folder of real NIfTI volumes")
    evaluate.add_argument("--out", type=Path, required=True, metavar="DIR", help="where tables and the page go")
    evaluate.add_argument(
        "--other-real",
        type=Path,
        metavar="DIR",
        help="real volumes of other people (default: half of REAL)",
    )
    evaluate.add_argument("--training", type=Path, metavar="DIR", help="what the generator has seen; looks for copies")
    evaluate.add_argument(
        "--weights", type=Path, metavar="RUN", help="a run of this project, for rows that need a model"
    )
    evaluate.add_argument(
        "--extractor",
        default="auto",
        metavar="NAME",
        help="auto, offline, medicalnet, or MedicalNet's file (default auto: medicalnet where it was fetched)",
    )
    evaluate.add_argument(
        "--intensity",
        choices=["as-is", "field", "percentile"],
        default="as-is",
        help="of both sets: in [0, 1] already; darkest to 0 and brightest to 1 as in the paper; percentile 99.5 to 1 "
        "(default as-is)",
    )
    evaluate.add_argument(
        "--ignore-affines", action="store_true", help="compare voxel by voxel, whatever headers say of place and size"
    )
    evaluate.add_argument("--n", type=int, metavar="N", help="take at most N volumes of each set")
    evaluate.add_argument("--pairs", type=int, default=1000, help="of the similarities (default 1000, as in the paper)")
    evaluate.add_argument("--seed", type=int, default=0, help="of halves, pairs and intervals (default 0)")
    evaluate.add_argument("--no-morphometry", action="store_true", help="leave out volumes of brain and ventricles")
    evaluate.add_argument("--no-pictures", action="store_true", help="no slices of real volumes on the page")


def run_evaluate(args: argparse.Namespace) -> None:
    """Compare two folders of volumes."""
    from .evaluate_folders import Question, evaluate
    from .evaluation_words import text_table

    if args.pairs < 1 or (args.n is not None and args.n < 2):
        raise BrainLDMError(f"--pairs {args.pairs}, --n {args.n}: at least 1 pair and 2 volumes are needed")
    question = Question(
        samples=args.samples,
        real=args.against,
        out=args.out,
        other_real=args.other_real,
        training=args.training,
        weights=args.weights,
        extractor=args.extractor,
        intensity=args.intensity,
        ignore_affines=args.ignore_affines,
        most=args.n,
        pairs=args.pairs,
        morphometry=not args.no_morphometry,
        pictures=not args.no_pictures,
        seed=args.seed,
    )
    found = evaluate(question)
    print(f"\n{text_table(found.rows)}\n")
    for text in found.warnings:
        print(f"Note: {text}")
    print(f"Page: {args.out / 'index.html'}")
