"""``brainldm evaluate``: any folder of generated volumes against any folder of real ones, whoever made them.

What takes long is kept in ``OUT/work`` in pieces, so that a second start goes on where the first one stopped. What
cannot be measured is not left out in silence: ``not_measured`` says what and why.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__, nifti_sets
from .errors import BrainLDMError
from .evaluation import REAL, Row, at_all, distribution_rows
from .evaluation_work import Work, finite, write_table
from .features import Extractor, default_extractor, medicalnet_extractor, offline_extractor
from .nifti_sets import NiftiSet, first
from .records import check_free, commit, hardware, write_json

SAMPLES = "samples"
COPIES = 16  # training volumes that are planted as copies
ENOUGH = 8  # volumes of a split below which a cohort is cut in halves instead
SPECTRA_OF = 128  # volumes of each set whose spectra are taken


@dataclass(frozen=True)
class Question:
    """What is compared with what, and how; the options of ``brainldm evaluate``."""

    samples: Path
    real: Path
    out: Path
    other_real: Path | None = None
    training: Path | None = None
    weights: Path | None = None
    extractor: str = "auto"
    intensity: str = "as-is"
    ignore_affines: bool = False
    most: int | None = None
    pairs: int = 1000
    draws: int = 200
    morphometry: bool = True
    pictures: bool = True
    seed: int = 0


@dataclass
class Findings:
    """What was found: the content of ``evaluation.json``, and beside it what only the page shows."""

    rows: list[Row]
    all_volumes: Row
    sets: dict[str, dict[str, Any]]
    warnings: list[str]
    not_measured: dict[str, str] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)
    regions: list[Row] = field(default_factory=list)
    scorecard: dict[str, list[Row]] = field(default_factory=dict)
    copies: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)
    """Requested and measured covariates of each volume, a table a set: a file of their own."""
    record: dict[str, Any] = field(default_factory=dict)


def evaluate(question: Question, say: Callable[[str], None] = print) -> Findings:
    """Compare two folders, and write ``evaluation.json``, ``table_1.csv`` and ``index.html`` into ``question.out``.

    Raises:
        BrainLDMError: folders that hold no volumes, or volumes that are damaged, on several grids or not in [0, 1].
    """
    from .evaluation_page import write_page

    start = time.perf_counter()
    out = Path(question.out)
    if not (out / "work").is_dir():
        check_free(out)
    sets = open_sets(question)
    extractor = choose_extractor(question.extractor)
    work = Work(out / "work", extractor)
    for name, volumes in sets.items():
        say(f"{name}: {len(volumes)} volumes of {len(set(volumes.subjects))} subjects")
    found = _findings(question, sets, work, say)
    found.record = {
        "made_by": "brainldm evaluate",
        "version": __version__,
        "commit": commit(),
        "question": {key: value if value is None or isinstance(value, int) else str(value)
                     for key, value in asdict(question).items() if key != "out"},
        "extractor": {"name": extractor.name, "sha256": extractor.sha256, "comparable": extractor.comparable},
        "hardware": hardware(),
        "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip
    content = {name: value for name, value in vars(found).items() if name != "tables"}
    write_json(out / "evaluation.json", finite(content))
    write_table(out / "table_1.csv", found.rows)
    if found.scorecard:
        rows = [{"set": name, **row} for name, rows in found.scorecard.items() for row in rows]
        write_table(out / "scorecard.csv", rows)
    for name, table in found.tables.items():
        write_table(out / f"measured_{name.replace(' ', '_')}.csv", table)
    write_page(out, found, sets, question)
    return found


def _findings(question: Question, sets: dict[str, NiftiSet], work: Work, say: Callable[[str], None]) -> Findings:
    """Everything but the page."""
    from . import set_measures, set_nulls

    systems, missing = set_nulls.nulls(question, sets, work)
    systems = {SAMPLES: sets[SAMPLES]} | systems | set_nulls.known_faults(sets["other real"])
    say(f"Table 1, features of {work.extractor.note}")

    def kept(name: str, n: int, make: Callable[[], Row]) -> Row:
        volumes = first(sets["other real"] if name == REAL else systems[name], n)
        return work.kept("pairs", [volumes.key, question.pairs, question.seed], make)

    shared = {"pairs": question.pairs, "draws": question.draws, "seed": question.seed}
    rows = distribution_rows(
        sets["reference"],
        sets["other real"],
        systems,
        work.extractor,
        own_n=[name for name in systems if name != SAMPLES],
        features_of=work.features,
        done=kept,
        **shared,
    )
    reals = work.features(sets["reference"]), work.features(sets["other real"])
    everything = at_all(np.concatenate(reals), work.features(sets[SAMPLES]), question.draws, question.seed)
    facts = {name: set_measures.facts(volumes, work) for name, volumes in sets.items()}
    found = Findings(rows, everything, facts, set_measures.warnings(sets, facts, work), missing)
    say("Spectra and noise")
    found.detail = set_measures.detail(sets, SPECTRA_OF)
    if question.morphometry:
        say("Volumes of ventricles, brain and head")
        set_measures.anatomy(question, sets, work, found)
    else:
        found.not_measured["anatomy and covariates"] = "morphometry was switched off"
    if "training" in sets:
        found.copies = set_measures.copies(sets, work, COPIES, question.seed)
    else:
        found.not_measured["copies of training volumes"] = "no --training folder was given"
    return found


def choose_extractor(name: str) -> Extractor:
    """The extractor of that name: ``auto``, ``offline``, ``medicalnet`` (fetched), or the path of MedicalNet's file.

    Raises:
        BrainLDMError: MedicalNet is not here, or its file is another one.
    """
    if name == "offline":
        return offline_extractor()
    if name == "auto":
        return default_extractor()
    if name == "medicalnet":
        extractor = default_extractor()
        if not extractor.comparable:
            raise BrainLDMError("--extractor medicalnet: is not here; get it with: brainldm data fetch medicalnet")
        return extractor
    return medicalnet_extractor(Path(name))


def open_sets(question: Question) -> dict[str, NiftiSet]:
    """Samples, reference, other real volumes and, if given, training volumes, all on one grid.

    The real folder is cut in two halves with no subject in both, unless other real volumes are given. A cohort of this
    project brings its splits: held-out volumes are the reference, training volumes the other real ones, unless there
    are hardly any.

    Raises:
        BrainLDMError: a folder holds no volumes, they are on several grids, or too few.
    """
    open_one = partial(nifti_sets.open_set, intensity=question.intensity, ignore_affines=question.ignore_affines)
    samples, real = open_one(question.samples), open_one(question.real)
    sets = {SAMPLES: samples}
    splits = nifti_sets.splits(question.real, real)
    if min(len(splits.get(name, ())) for name in ("train", "test")) < ENOUGH:
        splits = {}
    if question.other_real is not None:
        sets |= {"reference": splits.get("test", real), "other real": open_one(question.other_real)}
    elif splits:
        sets |= {"reference": splits["test"], "other real": splits["train"]}
    else:
        sets |= dict(zip(("reference", "other real"), nifti_sets.halves(real, question.seed), strict=True))
    if question.training is not None:
        training = open_one(question.training)
        sets["training"] = nifti_sets.splits(question.training, training).get("train", training)
    elif splits:
        sets["training"] = splits["train"]
    for name, option in (("other real", "--other-real"), ("training", "--training")):
        if both := set(sets["reference"].subjects) & set(sets[name].subjects if name in sets else ()):
            raise BrainLDMError(f"{sorted(both)[0]}: is in --against and in {option}; give other people there")
    for name, volumes in sets.items():
        nifti_sets.check_same_grid(volumes, sets["reference"], question.ignore_affines)
        sets[name] = first(nifti_sets.shuffled(volumes, question.seed), question.most or len(volumes))
        if len(sets[name]) < 2:
            raise BrainLDMError(f"{volumes.paths[0].parent}: {len(sets[name])} volume; {name} needs at least 2")
    return sets
