"""Is this normal? The losses of a training in front of those of the published runs of the same settings.

The rule: a loss is normal if its mean over the last tenth of the steps lies between the smallest and the largest of the
published runs at these steps, widened on both sides by their distance and by a tenth of their middle. Three runs that
differ in their seed alone are too few for a narrower one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .records import Run, read_json

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

POINTS = 100  # of a published curve
TAIL, SLACK = 0.1, 0.1
STAGES = {"autoencoder": "autoencoder", "diffusion": "diffusion", "brain_age": "brain_age"}
STAGES |= {"lsgan": "baselines", "vaegan": "baselines"}  # training -> section of the profile, and stage


def losses_path(run: Run, training: str) -> Path:
    """Where a training keeps its table of losses."""
    folder = run.stage(STAGES[training])
    return (folder / training if folder.name == "baselines" else folder) / "losses.csv"


def thin(table: pd.DataFrame, points: int = POINTS) -> pd.DataFrame:
    """Means of a table of losses by step over ``points`` stretches of equally many steps, seconds left out."""
    stretches = np.arange(len(table)) * min(points, len(table)) // max(len(table), 1)
    return table.drop(columns="seconds", errors="ignore").groupby(stretches).mean()


def published_losses(run: Run, training: str, published: Path | None = None) -> dict[str, pd.DataFrame]:
    """Thinned losses of the published runs, by name, whose training had the profile and settings of this run."""
    import pandas as pd

    if published is None:
        from .notebooks import project_root

        published = project_root() / "book" / "published"
    stage = STAGES[training]
    section = getattr(run.profile, stage)
    wanted = section.model_dump(mode="json") if section else None
    found = {}
    for path in sorted(published.glob(f"{run.profile.name}-*/losses/{training}.csv")):
        folder = path.parent.parent
        settings = read_json(folder / "records" / f"{stage}.json")["settings"]
        settings.pop("seconds", None)  # of a baseline: what the diffusion model took on that machine
        if settings == wanted:
            found[folder.name] = pd.read_csv(path)
    return found


def judge(
    table: pd.DataFrame, column: str, published: Mapping[str, pd.DataFrame]
) -> tuple[str, float, tuple[float, float]]:
    """Verdict on a loss in words, its mean over the last tenth of the steps, and the ends of what is normal for it.

    Of a run that is not finished, or longer than the published ones, the last tenth of the steps that both have.
    """
    unknown = np.nan, (np.nan, np.nan)
    curves = [other[["step", column]].dropna() for other in published.values() if column in other]
    curves = [other for other in curves if len(other)]
    if not curves:
        return "no published run of this profile", *unknown
    known = table[["step", column]].dropna() if column in table else table[:0]
    last = min([table["step"].max(), *(other["step"].max() for other in curves)])
    end = known[(known["step"] >= (1 - TAIL) * last) & (known["step"] <= last)]
    if not len(end):
        return "has not begun", *unknown
    ours = float(end[column].mean())
    theirs = [float(np.interp(end["step"], other["step"], other[column]).mean()) for other in curves]
    low, high = min(theirs), max(theirs)
    room = high - low + SLACK * abs(low + high) / 2
    low, high = low - room, high + room
    word = "within" if low <= ours <= high else "lower than" if ours < low else "higher than"
    return f"{word} the published runs", ours, (low, high)


def verdicts(
    run: Run, training: str, columns: Mapping[str, str], published: Path | None = None
) -> dict[str, tuple[str, float, tuple[float, float]]]:
    """``judge`` of each loss (column -> title) of a run's training."""
    import pandas as pd

    table, others = pd.read_csv(losses_path(run, training)), published_losses(run, training, published)
    return {column: judge(table, column, others) for column in columns}


def is_this_normal(run: Run, training: str, columns: Mapping[str, str], published: Path | None = None) -> Figure:
    """Losses (column -> title) of a run's training, those of the published runs behind them, and the verdict on each.

    ``training`` is autoencoder, diffusion, lsgan, vaegan or brain_age.
    """
    import pandas as pd

    from .charts import loss_curves

    table, others = pd.read_csv(losses_path(run, training)), published_losses(run, training, published)
    words = {column: judge(table, column, others)[0] for column in columns}
    titles = {column: f"{title}\n{words[column]}" for column, title in columns.items()}
    cohorts = {re.sub(rf"^{re.escape(run.profile.name)}-|-seed\d+$", "", name) for name in others}
    foreign = sorted(cohorts - {run.cohort})
    note = f"grey: published runs, which learnt from another cohort ({', '.join(foreign)})" if foreign else ""
    return loss_curves(table, titles, behind=others, note=note or ("grey: published runs" if others else ""))
