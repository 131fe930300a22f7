"""The paper's five questions, each answered in a few sentences made from the numbers of one run."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from .comparison import known, with_interval
from .conditioning import ASKED_AND_MEASURED
from .evaluation import REAL
from .pages import agreements, number
from .records import Run, read_record

if TYPE_CHECKING:
    import pandas as pd

LDM, GANS = "ldm_ddim50", {"lsgan": "LSGAN", "vaegan": "VAE-GAN"}
KINDS = {"real": "real", "ddim": "samples"}


def nearer(one: pd.Series, other: pd.Series, metric: str, goal: float = 0.0) -> bool | None:
    """Whether the first row is nearer to a goal than the second; None where their intervals overlap or are unknown."""
    if not all(known(row[f"{metric}_{end}"]) for row in (one, other) for end in ("low", "high")):
        return None
    if one[f"{metric}_low"] <= other[f"{metric}_high"] and other[f"{metric}_low"] <= one[f"{metric}_high"]:
        return None
    return bool(abs(one[metric] - goal) < abs(other[metric] - goal))


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return text[:1].upper() + text[1:]


def _matches(run: Run, table: pd.DataFrame) -> str:
    ours, real = table.loc[LDM], table.loc[REAL]
    verdicts = {True: "Not fully, here.", False: "Yes, by this measure.", None: "No difference is shown at this n."}
    text = f"{verdicts[nearer(real, ours, 'fid')]} The FID of {int(ours['n'])} samples is {with_interval(ours, 'fid')}"
    text += f"; as many real volumes of other people have {with_interval(real, 'fid')}"
    if "reconstruction" in table.index:
        text += f", and the autoencoder alone {with_interval(table.loc['reconstruction'], 'fid')}"
    text += f". Pairs of samples have MS-SSIM {with_interval(ours, 'ms_ssim')}, real pairs {real['ms_ssim']:.3g}."
    return f"{text} Features are those of {ours['extractor']}."


def _controls(run: Run, table: pd.DataFrame) -> str:
    parts, shown = [], run.profile.diffusion.mean_latent
    for title, columns in ASKED_AND_MEASURED.items():
        _, found = agreements(run, KINDS | ({"mean": "regression"} if shown else {}), *columns)
        ours, real = found["samples"], found["real"]
        parts.append(
            f"{title}: r = {number(ours.r, 3)} between request and measurement (n = {ours.n}, mean error "
            f"{number(ours.mae, 1)} ml, slope {number(ours.slope)}); real volumes reach {number(real.r, 3)}"
            + (f", the regression that the network is shown {number(found['regression'].r, 3)}" if shown else "")
        )
    return f"{_sentence(parts)}. A slope below 1 is a request answered in part. Age and sex are in chapter 5."


def _beats(run: Run, table: pd.DataFrame) -> str:
    ours, real, parts = table.loc[LDM], table.loc[REAL], []
    words = {True: "LDM better", False: "LDM worse", None: "not told apart"}
    for model, name in GANS.items():
        if model in table.index:
            row = table.loc[model]
            realism, variety = (words[nearer(ours, row, *rest)] for rest in (("fid",), ("ms_ssim", real["ms_ssim"])))
            parts.append(
                f"against {name}, realism: {realism} (FID {ours['fid']:.3g} and {row['fid']:.3g}); diversity: "
                f"{variety} (MS-SSIM {ours['ms_ssim']:.3g} and {row['ms_ssim']:.3g}, real {real['ms_ssim']:.3g})"
            )
    return f"{_sentence(parts)}. The baselines were given the seconds of the diffusion model's training; one seed each."


def _latents(run: Run, table: pd.DataFrame) -> str:
    voxels, values = prod(run.profile.grid.shape), prod(run.profile.latent_shape)
    text = f"Here {voxels:,} voxels become {values:,} latent values, {voxels / values:.1f} times fewer for the network "
    text += f"that each step calls; in the paper {160 * 224 * 160:,} become {3 * 20 * 28 * 20:,}, 171 times fewer."
    record = read_record(run.stage("samples")) or {"results": {}}
    if seconds := record["results"].get("seconds_a_volume"):
        text += f" A volume takes {seconds['ddpm']:.2g} s with all steps and {seconds['ddim']:.2g} s with DDIM."
    if "reconstruction" in table.index:
        text += f" What latents cost is the FID of the autoencoder alone, {table.loc['reconstruction', 'fid']:.3g}."
    return f"{text} Voxels of {run.profile.grid.spacing_mm:g} mm do not test the paper's resolution."


def _public(run: Run, table: pd.DataFrame) -> str:
    if (record := read_record(run.stage("release"))) is None:
        return "This run had no set of synthetic brains when this page was made; chapter 9 makes and verifies one."
    made = record["results"]
    return (
        f"This run's set has {made['volumes']:,} volumes in BIDS with the covariates that were asked for, "
        f"{made['problems']} problems found when it was verified, {made['seconds_a_volume']:.2g} s a volume. Chapter 9 "
        "shows what it can be used for, chapter 10 whether it shows anybody of the training set."
    )


QUESTIONS = {
    "Can a latent diffusion model generate three-dimensional brains that match the real distribution?": _matches,
    "How far do the covariates control them?": _controls,
    "Does it beat generative adversarial networks in realism and diversity?": _beats,
    "Does working in latents make high resolution feasible?": _latents,
    "What use is the public synthetic set?": _public,
}


def answers(run: Run, table: pd.DataFrame) -> str:
    """Markdown: each question with the evidence of this run; ``table`` is that of ``comparison.table_1``.

    Raises:
        BrainLDMError: the samples stage is not there.
    """
    places = enumerate(QUESTIONS.items(), 1)
    return "\n".join(f"{place}. **{question}** {answer(run, table)}" for place, (question, answer) in places)
