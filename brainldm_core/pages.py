"""What the pages of the book say about themselves: the banner of a run, results in words, cautions.

Everything here returns or shows Markdown, so that a sentence on a page is made from the numbers it speaks of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .records import Run, commit, hardware, read_json, read_record

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from IPython.display import Markdown
    from torch import nn

    from .conditioning import Agreement
    from .dataset import Cohort
    from .sampling import Pipeline

FEW_SCANS = 50
STAGE_WORDS = {
    "cohort": "making the cohort",
    "autoencoder": "training the autoencoder",
    "diffusion": "training the diffusion model",
    "baselines": "training the baselines",
    "brain_age": "training the brain-age network",
    "samples": "drawing and measuring samples",
    "release": "drawing and verifying the release",
}


def say(text: str) -> Markdown:
    """A sentence, or a few, as Markdown; line breaks inside a paragraph are only for the source."""
    from IPython.display import Markdown

    return Markdown(text)


def source(*functions: Callable) -> Markdown:
    """Functions of the package as they are written there, to stand beside their equation."""
    import inspect

    blocks = []
    for function in functions:
        place = function.__module__.replace(".", "/")
        blocks.append(f"From `{place}.py`:\n\n```python\n{inspect.getsource(function).rstrip()}\n```")
    return say("\n\n".join(blocks))


def duration(seconds: float) -> str:
    """Seconds, or minutes from two minutes on, in words."""
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min"


def machine(facts: Mapping[str, Any]) -> str:
    """The hardware of a record in a few words."""
    memory = f", {facts['memory_gib']:.0f} GiB of memory" if "memory_gib" in facts else ""
    name = facts.get("accelerator") or facts.get("processor") or facts.get("machine", "unknown")
    return f"{name} ({facts.get('cores', '?')} cores{memory})"


def banner(run: Run, *stages: str, subjects: int | None = None) -> Markdown:
    """Which run a page shows: profile, cohort, n, commit, hardware, date and seconds, from the stages' records."""
    records = {stage: record for stage in stages if (record := read_record(run.stage(stage))) is not None}
    last = list(records.values())[-1] if records else {"commit": commit(), "hardware": hardware()}
    rows = [
        ("Run", f"`{run.name}`: profile {run.profile.name}, cohort {run.cohort}, training seed {run.seed}"),
        ("Grid", f"{' × '.join(map(str, run.profile.grid.shape))} voxels of {run.profile.grid.spacing_mm:g} mm"),
    ]
    if subjects is not None:
        rows.append(("Training scans", f"{subjects}"))
    rows += [("Code", f"commit `{last['commit']}`"), ("Machine", machine(last["hardware"]))]
    if "date" in last:
        rows.append(("Date", last["date"][:10]))
    if records:
        rows.append(
            (
                "Time",
                "; ".join(f"{STAGE_WORDS[name]} {duration(record['seconds'])}" for name, record in records.items()),
            )
        )
    return say("| This page | |\n|:--|:--|\n" + "\n".join(f"| {name} | {text} |" for name, text in rows))


def caution(training_scans: int) -> Markdown:
    """What to expect of a training split of this size; says so plainly when it is small."""
    if training_scans >= FEW_SCANS:
        return say(f"The networks of this run learn from {training_scans} scans.")
    return say(
        f"> **So few scans teach a network little.** This run trains on {training_scans}; the chapters expect "
        f"{FEW_SCANS} at least. Read its pages as a test that the chain runs from these scans to a book: "
        "generated brains and correlations below are no measure of the method."
    )


def meets(run: Run, key: str, value: float) -> bool:
    """Whether a value reaches the floor that the profile expects; True where it expects nothing.

    The profile's numbers are for the simulated cohort; other cohorts have none.
    """
    expected = run.profile.expected.get(key)
    return expected is None or run.cohort != "atlas" or value >= expected.value


def expected(run: Run, key: str) -> dict[str, float]:
    """``{"expected": value}`` for a row of results where the profile has one for this cohort, else nothing."""
    found = run.profile.expected.get(key)
    return {} if found is None or run.cohort != "atlas" else {"expected": found.value}


def finite(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Rows of results that are numbers: a correlation of two scans is none, and results files hold no NaN."""
    from math import isfinite

    return {key: row for key, row in rows.items() if isfinite(row["value"])}


def begin(profile: str, cohort: str, seed: int, runs: str) -> Run:
    """Open the run of a notebook; a relative folder of runs is the checkout's, wherever the notebook lies.

    Warnings are then said in a line without the path of a file, which has no place on a page; those about the
    future of other packages are not said at all.
    """
    import warnings

    from .notebooks import project_root
    from .records import open_run

    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.formatwarning = lambda message, *_: f"Note: {message}\n"
    return open_run(profile, cohort, seed, project_root() / runs)


def pipeline_banner(pipeline: Pipeline) -> Markdown:
    """What a trained model says about itself: grid, training, and the covariate ranges that it has seen."""
    from .covariates import COLUMNS
    from .networks import parameter_count

    profile, training = pipeline.profile, pipeline.training
    rows = [
        (
            "Profile",
            f"{profile.name}: {' × '.join(map(str, profile.grid.shape))} voxels of {profile.grid.spacing_mm:g} mm",
        ),
        ("Trained on", f"{training['subjects']} scans of cohort {training['cohort']}, seed {training['seed']}"),
        ("Training", f"diffusion model {duration(training['seconds'])}"),
        ("Size", f"{parameter_count(pipeline.autoencoder):,} + {parameter_count(pipeline.unet):,} parameters"),
        ("Checkpoint", f"UNet sha256 `{pipeline.sha256['unet'][:12]}`"),
    ]
    units = {"age_years": "years", "ventricular_volume_ml": "ml", "brain_volume_ml": "ml"}
    rows += [
        (
            f"`{column}`",
            "F or M" if column == "sex" else "{:.1f} to {:.1f} {}".format(*pipeline.ranges[column], units[column]),
        )
        for column in COLUMNS
    ]
    return say("| This model | |\n|:--|:--|\n" + "\n".join(f"| {name} | {text} |" for name, text in rows))


def any_pipeline(run: Run) -> tuple[Pipeline, str]:
    """The model that ships with the project, or this run's own where none ships; and which it is, in words."""
    from .errors import BrainLDMError
    from .sampling import load_pipeline

    try:
        return load_pipeline(), "the trained weights that ship with the project"
    except BrainLDMError:
        return load_pipeline(run.folder), f"the weights that run `{run.name}` has trained"


def losses(run: Run, stage: str) -> pd.DataFrame:
    """The table of losses that a training stage has left: ``step``, one column a loss, ``seconds``."""
    import pandas as pd

    return pd.read_csv(run.stage(stage) / "losses.csv")


def published(kind: str, name: str) -> dict[str, Any] | None:
    """A published file of ``trials`` or ``benchmarks``, or None where there is none."""
    from .notebooks import project_root

    path = project_root() / "book" / "published" / kind / f"{name}.json"
    return read_json(path) if path.exists() else None


def trials(*names: str) -> pd.DataFrame:
    """Published trials of ``benchmarks/design.py``, a row each: FID and correlations of samples with requests."""
    import pandas as pd

    rows = {}
    for name in names:
        found = published("trials", name)
        row = next(row for kind, row in found["rows"].items() if kind.startswith("samples"))
        spans = {
            f"{title}: r [95 %]": f"{row[f'{title}_r']:.3f} [{row[f'{title}_low']:.3f}, {row[f'{title}_high']:.3f}]"
            for title in ("ventricles", "brain")
        }
        rows[name] = {"n": row["n"], **spans, "FID": f"{row['fid']:.4f}"}
    return pd.DataFrame.from_dict(rows, orient="index")


def trained_autoencoder(run: Run) -> nn.Module:
    """The autoencoder that a run has trained, ready for use."""
    from .networks import load_network

    return load_network(run.stage("autoencoder") / "weights.safetensors", "autoencoder")[0]


def number(value: float, digits: int = 2) -> str:
    """A number with its digits, or in words that there is none."""
    return f"{round(value, digits) + 0.0:.{digits}f}" if value == value else "undefined"


def panel_row(
    volumes: np.ndarray, table: pd.DataFrame, pair: tuple[str, str], unit: str = "ml"
) -> tuple[np.ndarray, list[str], list[str]]:
    """A row of ``figures.panels``: the volumes (N, D, H, W) of a table's rows, what was asked above, measured below."""
    above, below = (
        [f"{word} {value:.0f} {unit}" if value == value else "not asked" for value in table[column].astype(float)]
        for word, column in zip(("asked", "measured"), pair, strict=True)
    )
    return volumes[table.index], above, below


def samples(run: Run, kind: str) -> tuple[np.ndarray, pd.DataFrame]:
    """Volumes (N, D, H, W) in [0, 1] and table of a kind of sample: real, reconstruction, mean, ddim, ddpm."""
    import numpy as np
    import pandas as pd

    folder = run.stage("samples")
    with np.load(folder / f"{kind}.npz") as file:
        volumes = file["volumes"].astype(np.float32) / 255
    return volumes, pd.read_csv(folder / f"{kind}.tsv", sep="\t", na_values="n/a")


def asked_and_measured(table: pd.DataFrame) -> list[str]:
    """Titles of a montage: requested and measured ventricular volume in ml."""
    return [
        f"{asked:.0f} → {found:.0f}"
        for asked, found in zip(table["ventricular_volume_ml"], table["measured_lateral_ventricles_ml"], strict=True)
    ]


def agreements(
    run: Run, kinds: Mapping[str, str], requested: str, measured: str
) -> tuple[dict[str, tuple[pd.Series, pd.Series, str]], dict[str, Agreement]]:
    """Two columns of several kinds of samples (kind -> its name on the page): panels to draw, and their agreement."""
    from .conditioning import agreement

    panels, found = {}, {}
    for kind, name in kinds.items():
        _, table = samples(run, kind)
        found[name] = agreement(table[requested], table[measured])
        panels[name] = (table[requested], table[measured], found[name].note())
    return panels, found


def manifest(run: Run) -> Markdown:
    """The manifest of a run's cohort as a table, or what it means that there is none."""
    from .manifests import find_manifest, publishable

    found = find_manifest(run.cohort)
    if found is None:
        return say(f"The folder `{run.cohort}` has no manifest, so nothing made from it may be published from here.")
    allowed, reason = publishable(run.cohort)
    rows = [
        ("Data set", found.title),
        ("Licence", found.licence),
        ("Access", found.access + (", non-commercial use" if found.non_commercial else "")),
        ("Pages may be published", f"{'yes' if allowed else 'no'} ({reason})"),
        ("Citation", " ".join(found.citation)),
        ("Notes", " ".join(found.notes.split())),
    ]
    return say("| Manifest | |\n|:--|:--|\n" + "\n".join(f"| {name} | {text} |" for name, text in rows if text))


def measured(scans: Cohort, splits: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the ruler finds in every scan of some splits, and the rows of the table beside it."""
    import numpy as np
    import pandas as pd

    from .samples import measure_all

    volumes = np.concatenate([scans.volumes(split)[:, 0].numpy() for split in splits if len(scans.rows(split))])
    return measure_all(volumes, scans.affine), pd.concat([scans.rows(split) for split in splits], ignore_index=True)
