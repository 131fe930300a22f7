"""Requests that share a noise: one covariate moved (figure 2 of the paper), parts left out, far outside (figure 4).

Requests are tables in years and millilitres, a row a volume, with the columns of ``covariates``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .covariates import COLUMNS, Ranges, numeric, warn_outside
from .dataset import load_cohort
from .records import Record, Run, read_record, stage_key

if TYPE_CHECKING:
    import pandas as pd

    from .profiles import Profile
    from .sampling import Pipeline

PAPER_RANGES = {"ventricular_volume_ml": (6.99568, 171.375), "brain_volume_ml": (1144.24, 1793.91)}
"""What 0 and 1 stand for in the paper's normalised units (ml; UK Biobank fields 25004 and 25009)."""


def typical_request(rows: pd.DataFrame) -> dict[str, Any]:
    """Medians of a cohort's covariates and its more frequent sex; what no row knows stays missing."""
    typical: dict[str, Any] = {}
    for column in COLUMNS:
        values = numeric(rows, column)
        values = values[np.isfinite(values)]
        typical[column] = float(np.median(values)) if len(values) else np.nan
    if np.isfinite(typical["sex"]):
        typical["sex"] = "M" if typical["sex"] > 0.5 else "F"
    return typical


def spread(rows: pd.DataFrame, column: str, count: int, low: float = 0.05, high: float = 0.95) -> list[Any]:
    """``count`` evenly spaced values of a covariate between two quantiles of a cohort; both sexes for ``sex``."""
    if column == "sex":
        return ["F", "M"]
    values = numeric(rows, column)
    values = values[np.isfinite(values)]
    if not len(values):
        return [np.nan] * count
    return [float(value) for value in np.linspace(*np.quantile(values, [low, high]), count)]


def sweep_requests(base: Mapping[str, Any], column: str, values: Sequence[Any]) -> pd.DataFrame:
    """``base`` once for each value of one covariate, all else the same (figure 2); ``moved`` names the covariate."""
    import pandas as pd

    return pd.DataFrame([{**base, column: value, "moved": column} for value in values])


def apart(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Two rows of a table whose covariate lies near its 10 % and 90 % quantiles: requests that differ much."""
    values = numeric(rows, column)
    order = np.argsort(values, kind="stable")[: max(int(np.isfinite(values).sum()), 1)]
    ends = [order[round(place * (len(order) - 1))] for place in (0.1, 0.9)]
    return rows.iloc[ends][list(COLUMNS)].reset_index(drop=True)


def cross_talk_requests(base: Mapping[str, Any], rows: pd.DataFrame) -> pd.DataFrame:
    """Two requests a covariate: ``base`` with it at the 16 % and 84 % quantiles of ``rows``; for sex, both."""
    import pandas as pd

    sweeps = [sweep_requests(base, column, spread(rows, column, 2, 0.16, 0.84)) for column in COLUMNS]
    return pd.concat(sweeps, ignore_index=True)


def pushed(rows: pd.DataFrame, column: str, values: Sequence[float]) -> pd.DataFrame:
    """The first rows of a table, each with one covariate replaced by a value of its own; ``moved`` names the covariate.

    Shorter than ``values`` where there are fewer rows; the values that are left are spread over all that were given.
    """
    count = min(len(rows), len(values))
    chosen = [values[round(place)] for place in np.linspace(0, len(values) - 1, count)]
    return rows[list(COLUMNS)].head(count).reset_index(drop=True).assign(**{column: chosen, "moved": column})


def partial_requests(pipeline: Pipeline, request: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What may be left out of a request, by name: all, all but age, all but ventricles, nothing.

    A profile without mask channels has the paper's exact input and knows only whole requests.
    """
    requests = {"everything": dict(request)}
    if pipeline.profile.diffusion.mask_channels:
        for name, column in (("ventricles alone", "ventricular_volume_ml"), ("age alone", "age_years")):
            requests[name] = dict.fromkeys(COLUMNS, np.nan) | {column: request[column]}
        requests["nothing"] = dict.fromkeys(COLUMNS, np.nan)
    return requests


def physical(ranges: Ranges, column: str, normalised: Sequence[float]) -> np.ndarray:
    """Millilitres or years of values in the paper's normalised units, 0 and 1 being the ends of the training range."""
    low, high = ranges[column]
    return low + np.asarray(normalised, float) * (high - low)


def in_both_units(panels: Mapping[str, Sequence[float]], ranges: Ranges) -> pd.DataFrame:
    """Requests in normalised units (covariate -> values) beside the millilitres they mean here and in the paper."""
    import pandas as pd

    parts = [
        {
            "covariate": column,
            "normalised": values,
            "here (ml)": physical(ranges, column, values),
            "in the paper (ml)": physical(PAPER_RANGES, column, values),
        }
        for column, values in panels.items()
    ]
    return pd.concat([pd.DataFrame(part) for part in parts], ignore_index=True)


def outside(requests: pd.DataFrame, ranges: Ranges) -> list[str]:
    """What ``warn_outside`` has to say about requests, as sentences instead of warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return warn_outside(requests, ranges)


def ensure_brain_age(run: Run) -> dict[str, Any]:
    """The record of the run's age network, trained if need be; a cohort without ages gets a record that says so."""
    from .brain_age import train_brain_age

    cohort = load_cohort(run.stage("cohort"))
    ages = {split: numeric(cohort.rows(split), "age_years") for split in ("train", "test")}
    if len(set(ages["train"][np.isfinite(ages["train"])])) > 1 and np.isfinite(ages["test"]).any():
        return train_brain_age(run)
    if (done := read_record(run.stage("brain_age"))) is not None:
        return done
    inputs = {"cohort": stage_key(run.stage("cohort"))}
    record = Record(run.stage("brain_age"), "brainldm train brain_age", {}, inputs, run.seed)
    return record.finish(skipped="the cohort has no ages that differ, so no network can learn them")


def age_reader(run: Run) -> Callable[[np.ndarray], np.ndarray]:
    """What reads years from volumes (N, D, H, W): the run's age network, or NaN where its cohort has no ages."""
    from .brain_age import predict_age

    if "skipped" in ensure_brain_age(run)["results"]:
        return lambda volumes: np.full(len(volumes), np.nan)
    return lambda volumes: predict_age(run, volumes)


def departures(profile: Profile) -> str:
    """What helps the samples of a profile to follow a request that the paper did without, in a sentence or two."""
    usual = profile.sampling
    if usual.guidance_scale == 1:
        text = "Samples are drawn without guidance, as in the paper."
    else:
        guided = ", ".join(f"`{name}`" for name in usual.guided) or "all covariates"
        text = f"Samples are drawn with a guidance of {usual.guidance_scale:g} for {guided}; the paper used none."
    if profile.diffusion.mean_latent:
        text += " The network is shown the mean latent that a linear regression foretells for the request (chapter 3)."
    return text


def draw(
    pipeline: Pipeline,
    requests: pd.DataFrame,
    noises: Sequence[int],
    seed: int = 0,
    age: Callable[[np.ndarray], np.ndarray] | None = None,
    crossed: bool = True,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Every request from every noise (a sample id), with DDIM: volumes (R x K, D, H, W) and what is measured in them.

    Steps, eta and guidance are the profile's. Rows are ordered by request, then noise; not ``crossed``: a noise each
    request, R volumes. ``age`` gives years for volumes and fills ``measured_age_years``. Nothing is said of requests
    outside the training range: see ``outside``.
    """
    from .samples import measure_all
    from .sampling import sample

    times = len(noises) if crossed else 1
    table = requests.iloc[np.repeat(np.arange(len(requests)), times)].reset_index(drop=True)
    ids, usual = list(noises) * (len(requests) if crossed else 1), pipeline.profile.sampling
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*outside the training range")
        volumes = sample(pipeline, table, ids, steps=usual.steps, eta=usual.eta, seed=seed)
    table = table.assign(noise=ids).join(measure_all(volumes, pipeline.profile.grid.affine))
    return volumes, table if age is None else table.assign(measured_age_years=age(volumes))
