"""Table 1 of a run (section 3.1 of the paper): which volumes stand for each model, and their rows beside the paper's.

Keys of models are those of the scoreboard: ``lsgan``, ``vaegan``, ``ldm_1000``, ``ldm_ddim50``, ``real``; beside them
``reconstruction``, what the autoencoder alone makes of the held-out volumes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .baselines import BASELINES, sample_baseline
from .dataset import load_cohort
from .evaluation import REAL, distribution_rows
from .features import default_extractor
from .loop import LOSSES
from .metrics import PairMean, ms_ssim, pair_mean
from .pages import samples
from .records import Run
from .samples import quantise
from .scoreboard import METRICS, PAPER

if TYPE_CHECKING:
    import pandas as pd

NEIGHBOURS = ("precision", "recall", "density", "coverage")
FEW = ("ldm_1000",)  # thousands of network calls a volume: so few that they have an n of their own
COLLAPSED = 0.25  # share of the cohort's standard deviation below which samples are one brain again and again


def model_names(run: Run) -> dict[str, str]:
    """Key of each row of table 1 -> its name on a page, in the paper's order."""
    profile = run.profile
    return {
        "lsgan": "LSGAN",
        "vaegan": "VAE-GAN",
        "ldm_1000": f"LDM, {profile.diffusion.timesteps:,} steps",
        "ldm_ddim50": f"LDM, DDIM {profile.sampling.steps} steps",
        "reconstruction": "autoencoder alone",
        REAL: "real, other people",
    }


def as_kept(volumes: np.ndarray) -> np.ndarray:
    """Volumes in the 256 grey values in which samples are kept, so that no model is told by its rounding."""
    return quantise(volumes) / np.float32(255)


def volumes_of(run: Run) -> dict[str, np.ndarray]:
    """Volumes (N, D, H, W) of each row of table 1, and ``reference``: the held-out volumes that all are compared with.

    ``real`` are training volumes, people other than those of the reference; each baseline gives as many samples as the
    reference has volumes.
    """
    held_out, _ = samples(run, "real")
    count = len(held_out)
    found = {name: as_kept(sample_baseline(run, name, count, run.seed)) for name in BASELINES}
    kinds = {"ldm_1000": "ddpm", "ldm_ddim50": "ddim", "reconstruction": "reconstruction"}
    found |= {name: samples(run, kind)[0] for name, kind in kinds.items()}
    found[REAL] = as_kept(load_cohort(run.stage("cohort")).volumes("train")[:count, 0].numpy())
    return found | {"reference": held_out}


def table_1(run: Run, volumes: Mapping[str, np.ndarray], pairs: int = 1000, draws: int = 200) -> pd.DataFrame:
    """Rows of ``evaluation.distribution_rows`` for a run, one a model in the paper's order, indexed by key.

    Models with fewer than two volumes have no row.

    Raises:
        BrainLDMError: fewer than two held-out or training volumes.
    """
    import pandas as pd

    systems = {name: found for name, found in volumes.items() if name not in (REAL, "reference") and len(found) > 1}
    own = [name for name in FEW if name in systems]
    rows = distribution_rows(
        volumes["reference"], volumes[REAL], systems, default_extractor(), own, pairs, draws=draws, seed=run.seed
    )
    table = pd.DataFrame(rows).set_index("model")
    return table.loc[[name for name in model_names(run) if name in table.index]]


def baseline_losses(run: Run, name: str) -> pd.DataFrame:
    """The table of losses that a baseline's training has left: ``step``, one column a loss, ``seconds``."""
    import pandas as pd

    return pd.read_csv(run.stage("baselines") / name / LOSSES)


def paper_value(metric: str, model: str) -> float | None:
    """The number of the paper's table 1, from ``paper.yaml``; None where it has none."""
    key = ("08_evaluation", f"{metric}_{model}")
    return next((row["value"] for row in PAPER if (row["notebook"], row["result"]) == key), None)


def known(value: Any) -> bool:
    """Whether a cell holds a finite number."""
    return isinstance(value, int | float) and bool(np.isfinite(value))


def with_interval(row: Mapping[str, Any], metric: str) -> str:
    """A number with its 95 % interval, or alone where so few volumes give none."""
    ends = [row[f"{metric}_low"], row[f"{metric}_high"]]
    text = f"{row[metric]:.3g}"
    return f"{text} [{ends[0]:.3g}, {ends[1]:.3g}]" if all(map(known, ends)) else text


def beside_paper(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """Table 1 for a page: each metric with interval, the floor of FID at the same n, and the paper's number."""
    import pandas as pd

    names, rows = model_names(run), {}
    for model, row in table.iterrows():
        cells: dict[str, Any] = {"n": row["n"], "pairs": row["pairs"]}
        for metric, title in METRICS.items():
            cells[title] = with_interval(row, metric)
            if metric == "fid":
                cells["floor"] = f"{row['fid_floor']:.3g}"
            printed = paper_value(metric, str(model))
            cells[f"paper's {title}"] = "" if printed is None else f"{printed:.4f}"
        rows[names[str(model)]] = cells
    return pd.DataFrame.from_dict(rows, orient="index")


def _short(value: float) -> float:
    """Six digits of a number, however small: KID of sets of one kind is below a millionth."""
    return float(f"{value:.6g}")


def result_rows(run: Run, table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Rows of a results file, as the scoreboard reads them: ``<metric>_<model>``; n counts volumes, or pairs."""
    found: dict[str, dict[str, Any]] = {}
    for model, row in table.iterrows():
        for metric in (*METRICS, "kid", "mmd"):
            distance = metric in ("fid", "kid", "mmd")
            cells = {"value": _short(row[metric]), "n": int(row["n"] if distance else row["pairs"])}
            ends = {end: row[f"{metric}_{end}"] for end in ("low", "high")}
            if all(map(known, ends.values())):
                cells |= {end: _short(value) for end, value in ends.items()}
            if metric == "fid":
                cells["floor"] = _short(row["fid_floor"])
            if not distance and REAL in table.index:
                cells["floor"] = _short(table.loc[REAL, metric])
            if distance:
                cells |= {"extractor": row["extractor"], "note": row["note"]}
            elif metric == "ms_ssim":
                cells["note"] = f"{int(row['ms_ssim_scales'])} of 5 scales"
            if model == "ldm_ddim50" and run.profile.sampling.steps != 50:
                words = f"DDIM of {run.profile.sampling.steps} steps"
                cells["note"] = f"{cells['note']}; {words}" if "note" in cells else words
            found[f"{metric}_{model}"] = {"unit": "", **cells}
        for name in NEIGHBOURS:
            found[f"{name}_{model}"] = {"value": round(float(row[name]), 4), "n": int(row["n"])}
    return found


def intervals(run: Run, table: pd.DataFrame, metric: str) -> dict[str, tuple[float, float, float]]:
    """Name of each model -> value and interval of one metric, for ``charts.dots``; NaN where there is none."""
    names = model_names(run)
    return {
        names[str(model)]: tuple(
            float(value) if known(value := row[f"{metric}{end}"]) else np.nan for end in ("", "_low", "_high")
        )
        for model, row in table.iterrows()
        if model != REAL
    }


def spread(volumes: np.ndarray) -> np.ndarray:
    """Standard deviation over volumes (N, D, H, W) at each voxel (D, H, W): where samples differ, and how much."""
    return volumes.std(0)


def alikeness(volumes: np.ndarray, pairs: int = 1000, seed: int = 0) -> PairMean:
    """Mean MS-SSIM among pairs of volumes (N, D, H, W): the nearer to 1, the more they are one and the same."""
    return pair_mean(ms_ssim, torch.from_numpy(np.ascontiguousarray(volumes, np.float32))[:, None], pairs, seed)


def collapse_words(name: str, share: float, found: PairMean, real: PairMean) -> str:
    """Whether a model's samples repeat themselves, in a sentence made from the numbers.

    Args:
        share: the mean standard deviation over samples, as a share of the cohort's.
    """
    facts = f"its samples vary by {share:.0%} of what the cohort varies, and pairs have MS-SSIM {found.value:.3f}"
    facts += f" (cohort {real.value:.3f})"
    if share < COLLAPSED:
        return f"**{name} has collapsed**: {facts}. It draws nearly one brain, whatever its latent vector."
    ends = (found.low, found.high, real.low, real.high)
    if not all(map(np.isfinite, ends)):
        return f"**{name}**: {facts}. With {found.n} volumes nothing can be said for certain."
    if found.low > real.high:
        return f"**{name} has lost variety**, without repeating one brain: {facts}."
    if found.high < real.low:
        return f"**{name} shows no collapse**: {facts}. Pairs are less alike than real ones; noise would do that too."
    return f"**{name} shows no collapse**: {facts}, and the intervals overlap."
