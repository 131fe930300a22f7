"""The memorisation audit of a run, in two spaces: the latents of its own autoencoder, and an extractor's features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .dataset import Cohort
from .features import Extractor, extract
from .memorisation import Audit, audit, plant_duplicates
from .neighbours import nearest
from .records import Run
from .samples import reconstruct
from .sampling import Pipeline
from .training import cached_latents, encode_latents

if TYPE_CHECKING:
    import pandas as pd

BENT = "people of training anatomies"
ANATOMY = "anatomy"  # column of a simulated cohort: whose anatomy a person was bent from


@dataclass(frozen=True)
class Space:
    """Where distances are taken: ``embed`` makes rows (N, F) of volumes (N, D, H, W); training and held-out rows."""

    name: str
    embed: Callable[[np.ndarray], np.ndarray]
    training: np.ndarray
    held_out: np.ndarray


def spaces(
    run: Run, pipeline: Pipeline, extractor: Extractor, training: np.ndarray, held_out: np.ndarray
) -> dict[str, Space]:
    """Latents and features of a run's training and held-out scans (N, D, H, W), in the order of the cohort.

    Training latents are those that training has cached.
    """

    def tensor(volumes: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(np.asarray(volumes, np.float32)).reshape(-1, 1, *np.shape(volumes)[-3:])

    def latents(volumes: np.ndarray) -> np.ndarray:
        return encode_latents(pipeline.autoencoder, tensor(volumes))[0].flatten(1).numpy()

    def features(volumes: np.ndarray) -> np.ndarray:
        return extract(extractor, tensor(volumes))

    known = cached_latents(run, run.stage("diffusion"), tensor(training))[0][: len(training)]  # behind: mirror images
    found = {"latents": Space("latents", latents, known.flatten(1).numpy(), latents(held_out))}
    name = f"features of {extractor.name}"
    return found | {"features": Space(name, features, features(training), features(held_out))}


def audit_all(
    found: Mapping[str, Space], volumes: np.ndarray, who: Mapping[str, Any], draws: int = 1000, seed: int = 0
) -> dict[str, Audit]:
    """Audit of volumes (N, D, H, W) in every space; ``who``: subjects of both sets, from ``subjects``."""
    return {
        key: audit(space.embed(volumes), space.training, space.held_out, draws=draws, seed=seed, **who)
        for key, space in found.items()
    }


def subjects(cohort: Cohort, column: str = "participant_id") -> dict[str, list[Any]]:
    """Participants of the training and test rows, or what else ``column`` names: scans of one are one subject.

    Where participants were bent from anatomies, those of the test rows are named too: kin are no strangers.
    """
    pairs = {"training_subjects": "train", "held_out_subjects": "test"}
    found = {key: list(cohort.rows(split)[column]) for key, split in pairs.items()}
    if column != ANATOMY and has_anatomies(cohort):
        found["held_out_kin"] = list(cohort.rows("test")[ANATOMY])
    return found


def by_anatomy(
    found: Mapping[str, Space], cohort: Cohort, volumes: np.ndarray, count: int = 64, draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Audit at the level of anatomies: a row a set and a space; empty where a cohort has no such level.

    A simulated person is an anatomy that was bent. A model may know no person by heart and still have only the
    anatomies of its training set. Volumes (N, D, H, W) are therefore held against anatomies, each at its nearest scan,
    and each by the same number of scans: the nearest of many is nearer than the nearest of few. Anatomies with fewer
    are left out. The power test are training people of the others, taken out of the training set, as such a model would
    draw; ``traced`` is the share of them whose nearest anatomy is their own.
    """
    import pandas as pd

    if not has_anatomies(cohort):
        return pd.DataFrame()
    known, unseen = (np.array(names) for names in subjects(cohort, ANATOMY).values())
    rng, rows = np.random.default_rng(seed), {}
    out = np.sort(rng.permutation(len(known))[: min(count, len(known) // 4)])
    rest = np.setdiff1d(np.arange(len(known)), out)
    sizes = [np.unique(names, return_counts=True)[1] for names in (known[rest], unseen)]
    each = int(min(sizes[1].min(), np.median(sizes[0])))
    train, test = rest[_thinned(known[rest], each, rng)], _thinned(unseen, each, rng)
    out = out[np.isin(known[out], known[train])]
    who = {"training_subjects": list(known[train]), "held_out_subjects": list(unseen[test])}
    for space in found.values():
        sets = {"samples": space.embed(volumes), BENT: space.training[out]}
        both = np.concatenate([space.training[train], space.held_out[test]])
        own = np.concatenate([known[train], unseen[test]])[nearest(sets[BENT], both)[1]] == known[out]
        for name, values in sets.items():
            row = audit(values, space.training[train], space.held_out[test], draws=draws, seed=seed, **who)
            rows[name, space.name] = {
                "n": row.n, "anatomies, training": row.subjects[0], "held out": row.subjects[1], "scans of each": each,
                "share": row.share, "innocent from": row.innocent[0], "to": row.innocent[1], "p_value": row.p_value,
                "traced": float(own.mean()) if name == BENT else np.nan,
            }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def _thinned(names: np.ndarray, each: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of ``each`` scans, drawn at random, of every anatomy of ``names`` (N,) that has as many."""
    rows = [np.flatnonzero(names == name) for name in np.unique(names)]
    return np.sort(np.concatenate([rng.permutation(part)[:each] for part in rows if len(part) >= each]))


def has_anatomies(cohort: Cohort) -> bool:
    """Whether people of a cohort come from anatomies of which training and test have none in common."""
    if ANATOMY not in cohort.table or cohort.table[ANATOMY].isna().any():
        return False
    known, unseen = (set(cohort.rows(split)[ANATOMY]) for split in ("train", "test"))
    return len(known) > 0 and len(unseen) > 0 and not known & unseen


def anatomies_in_words(cohort: Cohort, table: pd.DataFrame) -> str:
    """What the audit at the level of anatomies says (``by_anatomy``), or why there is none."""
    if not len(table):
        if ANATOMY not in cohort.table or cohort.table[ANATOMY].isna().any():
            return (
                "No column of this cohort names an anatomy that people were made from: every participant has an "
                "anatomy of their own, and the search above is the search for anatomies too."
            )
        count = cohort.table[ANATOMY].nunique()
        shared = "one anatomy" if count == 1 else f"{count} anatomies, of which training and test share some"
        return (
            f"All {len(cohort.table)} brains of this cohort are bent from {shared}. The level of anatomies does not "
            "exist here: a copied anatomy and a new brain cannot be told apart when everybody has the same."
        )
    said = []
    for (name, space), row in table.iterrows():
        beyond = "beyond" if row["share"] > row["to"] else "not beyond"
        said.append(
            f"**{name}**, in {space}: {row['share']:.2f} lie nearer to a training anatomy, {beyond} what an innocent "
            f"model has ({row['innocent from']:.2f} to {row['to']:.2f}; p = {row['p_value']:.2g})"
            + (f"; {row['traced']:.0%} lie nearest to their own." if name == BENT else ".")
        )
    power = table.loc[[BENT]]
    if not (power["share"] > power["to"]).any() and not (power["p_value"] < 0.05).any():
        said.append("The power test is not seen either: with so few anatomies, finding nothing proves nothing.")
    first = table.iloc[0]
    return (
        " ".join(said) + f" There are {first['anatomies, training']:.0f} training and {first['held out']:.0f} held-out "
        f"anatomies with {first['scans of each']:.0f} scans of each, cut to one size for the share; a threshold for "
        "single volumes needs 19 that were held out."
    )


def planted(
    found: Mapping[str, Space],
    pipeline: Pipeline,
    training: np.ndarray,
    who: Mapping[str, Any],
    levels: Mapping[str, Mapping[str, float] | None],
    count: int = 32,
    seed: int = 0,
) -> tuple[pd.DataFrame, dict[str, Audit]]:
    """Which share of planted copies of training scans is found and traced, a row a level; audits of the last level.

    Args:
        training: the scans (N, D, H, W) of which copies are made.
        levels: name -> settings of ``memorisation.plant_duplicates``, applied to volumes; None: what the autoencoder
            makes of the scans, the nearest to a copy that a model in its latents can come.
    """
    import pandas as pd

    rows, last, names = [], {}, np.array(who["training_subjects"])
    for name, level in levels.items():
        copies, sources = plant_duplicates(training[:, None], min(count, len(training)), seed=seed, **(level or {}))
        copies = reconstruct(pipeline, copies) if level is None else copies[:, 0].clamp(0, 1).numpy()
        last = audit_all(found, copies, who, draws=2, seed=seed)  # only single copies are looked at
        row: dict[str, Any] = {"copies": name, "n": len(copies)}
        for key, space in found.items():
            traced = float((names[nearest(space.embed(copies), space.training)[1]] == names[sources]).mean())
            row |= {f"{key}: found": last[key].flagged, f"{key}: traced": traced}
        rows.append(row)
    return pd.DataFrame(rows).set_index("copies"), last


def nearest_scans(
    space: Space, volumes: np.ndarray, training: np.ndarray, held_out: np.ndarray
) -> dict[str, np.ndarray]:
    """The nearest training and the nearest held-out scan (N, D, H, W) of each of volumes (N, D, H, W)."""
    rows = space.embed(volumes)
    pairs = {"nearest in training": (training, space.training), "nearest held out": (held_out, space.held_out)}
    return {name: scans[nearest(rows, known)[1]] for name, (scans, known) in pairs.items()}
