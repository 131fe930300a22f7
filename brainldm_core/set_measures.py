"""What ``brainldm evaluate`` measures of whole sets beside table 1: intensities, detail, anatomy, covariates, copies.

Sets are those of ``nifti_sets``: read on demand, never whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import nifti_sets
from .errors import BrainLDMError
from .nifti_sets import NiftiSet, first, requests

if TYPE_CHECKING:
    import pandas as pd

    from .evaluate_folders import Findings, Question
    from .evaluation_work import Work

APART = {"dark_share": 0.1, "percentile_99_of_head": 0.1, "median_of_head": 0.1}  # medians further apart are warned of
QUANTILES = (0.1, 0.5, 0.9)  # of power over volumes
WORDS = {
    "dark_share": "share of voxels darker than 0.05",
    "percentile_99_of_head": "brightest grey of the head (99th percentile)",
    "median_of_head": "median grey of the head",
}


def facts(volumes: NiftiSet, work: Work) -> dict[str, Any]:
    """Grid, numbers, repeats and intensities of a set."""
    hashes = work.hashes(volumes)
    return {
        "volumes": len(volumes),
        "subjects": len(set(volumes.subjects)),
        "shape": list(volumes.grid),
        "spacing_mm": np.linalg.norm(volumes.affine[:3, :3], axis=0).round(4).tolist(),
        "repeated": len(hashes) - len(np.unique(hashes)),
        "first_file": volumes.paths[0].name,
        "intensities": nifti_sets.intensity_facts(volumes),
    }


def warnings(sets: dict[str, NiftiSet], found: dict[str, dict[str, Any]], work: Work) -> list[str]:
    """What a reader should know before any number: repeats, volumes of one set in another, unlike intensities."""
    said = []
    for name, row in found.items():
        if row["repeated"]:
            said.append(f"{name}: {row['repeated']} of {row['volumes']} volumes repeat another one voxel by voxel.")
    for name in ("reference", "other real", "training"):
        if name in sets and (both := np.isin(work.hashes(sets["samples"]), work.hashes(sets[name])).sum()):
            said.append(f"samples: {both} of {len(sets['samples'])} volumes are volumes of {name}, voxel by voxel.")
    if same := np.isin(work.hashes(sets["other real"]), work.hashes(sets["reference"])).sum():
        said.append(f"other real: {same} volumes are in the reference too, so the floor is too low.")
    one, two = (found[name]["intensities"] for name in ("samples", "reference"))
    for key, gap in APART.items():
        if abs(one[key] - two[key]) > gap:
            said.append(
                f"The {WORDS[key]} is {one[key]:.2f} in samples and {two[key]:.2f} in the reference: sets that are "
                "scaled or cropped in two ways differ by that first. Prepare both alike."
            )
    few = min(len(sets[name]) for name in ("samples", "reference", "other real"))
    if few < 50:
        said.append(f"The smallest set has {few} volumes: read intervals, not values.")
    return said


def detail(sets: dict[str, NiftiSet], most: int) -> dict[str, Any]:
    """Quantiles of radially averaged power and median noise level of up to ``most`` volumes of each set."""
    from .spectra import log_spectral_distance, noise_level, power_spectrum

    spacing = np.linalg.norm(sets["reference"].affine[:3, :3], axis=0)
    found: dict[str, Any] = {"volumes": {}, "noise_level": {}, "power": {}, "log_spectral_distance": {}}
    spectra = {}
    for name in ("reference", "other real", "samples"):
        some = first(sets[name], most)
        frequencies, spectra[name] = power_spectrum(some, float(spacing.mean()))
        noise = noise_level(some)
        found["frequencies_per_mm"] = frequencies
        found["volumes"][name] = len(some)
        found["power"][name] = np.quantile(spectra[name], QUANTILES, axis=0)
        found["noise_level"][name] = float(np.nanmedian(noise)) if np.isfinite(noise).any() else float("nan")
    for name in ("samples", "other real"):
        apart = log_spectral_distance(frequencies, spectra[name], spectra["reference"])
        found["log_spectral_distance"][name] = apart
    if np.ptp(spacing) > 0.01:
        found["note"] = f"voxels are not cubes: frequencies are those of their mean side, {spacing.mean():.3g} mm"
    return found


def anatomy(question: Question, sets: dict[str, NiftiSet], work: Work, found: Findings) -> None:
    """Measure ventricles, brain and head of every set; compare sets, and requests with what came of them."""
    from .conditioning import score_table
    from .covariates import fit_ranges
    from .differences import compare_sets

    reference = sets["reference"]
    if why := _no_ruler(reference):
        found.not_measured["anatomy and covariates"] = why
        return
    tables = {name: measured(sets[name], work) for name in ("reference", "other real", "samples")}
    names = {f"measured_{key}": words for key, words in RULED.items()}
    people = [tables[name] for name in ("reference", "other real")]
    for name, others in (("samples", people), ("other real", people[:1])):
        rows = compare_sets(tables[name], _joined(others), names).reset_index().to_dict("records")
        found.regions += [{"set": name} | row for row in rows]
    known = {}
    folders = {"samples": question.samples, "reference": question.real}
    for name, folder in folders.items():
        table, why = requests(folder, sets[name])
        if table is None:
            what = "requests" if name == "samples" else "covariates of real people, the ceiling of the ruler"
            found.not_measured[what] = why
        else:
            known[name] = table
    training = requests(question.training or question.real, sets["training"])[0] if "training" in sets else None
    ranges = fit_ranges(training) if training is not None else None
    for name, table in known.items():
        tables[name] = table[[column for column in table if not column.startswith("measured_")]].join(tables[name])
        found.scorecard[name] = score_table(tables[name], ranges, sets[name].subjects)
    found.tables = {name: table.assign(volume=sets[name].names) for name, table in tables.items()}
    if "samples" in known:
        found.not_measured["age and sex of samples"] = "no ruler for them comes with the command; chapter 5 trains one"


RULED = {"lateral_ventricles_ml": "lateral ventricles", "brain_ml": "brain", "intracranial_ml": "head (intracranial)"}


def _joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    return pd.concat(tables, ignore_index=True)


def _no_ruler(volumes: NiftiSet) -> str:
    """Why no method measures volumes of this grid; nothing where one does."""
    from .morphometry import choose
    from .registration import is_brain_only

    if choose(volumes.affine) == "network":
        return ""
    try:
        brain = is_brain_only(volumes[[0]][0], volumes.affine)
    except BrainLDMError as error:
        return f"the first volume {error}"
    return "" if brain else "whole heads of voxels over 3 mm have no ruler here"


def measured(volumes: NiftiSet, work: Work) -> pd.DataFrame:
    """Morphometry of every volume of a set, as ``samples.measure_all``, in ml."""
    import pandas as pd

    from .samples import measure_all

    def make(chunk: np.ndarray) -> dict[str, np.ndarray]:
        return {name: column.to_numpy(float) for name, column in measure_all(chunk, volumes.affine).items()}

    return pd.DataFrame(work.rows("measured", volumes, make))


def copies(sets: dict[str, NiftiSet], work: Work, planted: int, seed: int) -> dict[str, Any]:
    """The memorisation audit of samples in feature space, and what share of planted copies it finds."""
    from .features import extract
    from .memorisation import audit, plant_duplicates

    training, held_out = sets["training"], sets["reference"]
    who = {"training_subjects": training.subjects, "held_out_subjects": held_out.subjects}
    rows = work.features(training), work.features(held_out)
    found = audit(work.features(sets["samples"]), *rows, **who, seed=seed)
    chosen = np.random.default_rng(seed).permutation(len(training))[:planted]
    power = {}
    for name, level in {"exact": {}, "noise of 2 %": {"noise": 0.02}, "5 % brighter or darker": {"gain": 0.05}}.items():
        made, _ = plant_duplicates(training[chosen][:, None], len(chosen), seed=seed, **level)
        embedded = extract(work.extractor, made[:, 0].clamp(0, 1).numpy())
        power[name] = audit(embedded, *rows, **who, draws=2, seed=seed).flagged
    numbers = ("n", "subjects", "share", "low", "high", "innocent", "p_value", "flagged", "threshold")
    kept = {name: getattr(found, name) for name in numbers}
    return kept | {"false_positive_rate": found.false_positive_rate, "planted": len(chosen), "found": power}
