"""Generated brains on disk: a folder of samples for a reader, and the samples stage that the chapters measure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import __version__
from .covariates import COLUMNS, KEYS, MISSING
from .dataset import load_cohort, save_volume
from .morphometry import measure
from .networks import mixed_precision
from .records import Record, Run, atomic_folder, atomic_path, read_record, stage_key, write_json
from .sampling import Pipeline, load_pipeline, sample

if TYPE_CHECKING:
    import pandas as pd

MEASURED = ("lateral_ventricles_ml", "brain_ml", "intracranial_ml", "brain_volume_ml")


def measure_all(volumes: np.ndarray, affine: Any) -> pd.DataFrame:
    """Morphometry of volumes (N, D, H, W) as columns ``measured_<name>`` in millilitres; NaN where nothing is found."""
    import pandas as pd

    rows = [measure(volume, np.asarray(affine)) for volume in volumes]
    return pd.DataFrame([{f"measured_{name}": round(row[name], 2) for name in MEASURED} for row in rows])


def write_samples(
    pipeline: Pipeline,
    covariates: pd.DataFrame,
    volumes: np.ndarray,
    ids: Sequence[int],
    out: Path,
    sampler: str,
    steps: int,
    seed: int,
) -> Path:
    """Write volumes (N, D, H, W) as a BIDS folder: NIfTI in MNI space with sidecars, ``participants.tsv``, a montage.

    The folder appears whole or not at all.

    Raises:
        BrainLDMError: the folder exists and is not empty, or the disk is full.
    """
    from . import figures

    affine = pipeline.profile.grid.affine
    measured = measure_all(volumes, affine)
    table = covariates[[name for name in COLUMNS if name in covariates]].reset_index(drop=True)
    table.insert(0, "participant_id", [f"sub-{identity:06d}" for identity in ids])
    with atomic_folder(out) as draft:
        for place, (volume, name) in enumerate(zip(volumes, table["participant_id"], strict=True)):
            anat = draft / name / "anat"
            save_volume(anat / f"{name}_T1w.nii.gz", volume, affine)
            sidecar = {
                "Description": "Synthetic T1-weighted brain of no person, drawn from a latent diffusion model",
                "Synthetic": True,
                "CheckpointSHA256": pipeline.sha256,
                "Profile": pipeline.profile.name,
                "Sampler": sampler,
                "Steps": pipeline.profile.diffusion.timesteps if sampler == "ddpm" else steps,
                "Precision": mixed_precision(pipeline.device),
                "BatchSize": pipeline.profile.sampling.batch_size,
                "Seed": seed,
                "SampleID": ids[place],
                "RequestedCovariates": _plain(table.iloc[place].drop("participant_id")),
                "MeasuredVolumes": _plain(measured.iloc[place]),
                "Units": {"age_years": "years", "ventricular_volume_ml": "ml", "brain_volume_ml": "ml"},
                "SpaceName": "MNI152",
            }
            write_json(anat / f"{name}_T1w.json", sidecar)
        rows = table.join(measured)
        with atomic_path(draft / "participants.tsv") as partial:
            rows.to_csv(partial, sep="\t", index=False, na_rep=MISSING)
        description = {
            "Name": "Synthetic brains",
            "BIDSVersion": "1.10.0",
            "DatasetType": "raw",
            "GeneratedBy": [{"Name": "brainldm", "Version": __version__}],
        }
        write_json(draft / "dataset_description.json", description)
        ventricles = table.get("ventricular_volume_ml", [None] * len(table))
        titles = [
            f"{found:.0f} ml" if asked is None or asked != asked else f"{asked:.0f} → {found:.0f} ml"
            for asked, found in zip(ventricles, measured["measured_lateral_ventricles_ml"], strict=True)
        ]
        with atomic_path(draft / "montage.png") as partial:
            figures.montage(volumes[:32], titles[:32]).savefig(partial, dpi=150, format="png")
    return Path(out)


def _plain(row: pd.Series) -> dict[str, Any]:
    """JSON-able values; a missing one is null."""
    return {name: None if value is None or value != value else value for name, value in row.items()}


def _save_kind(folder: Path, kind: str, volumes: np.ndarray, rows: pd.DataFrame, affine: Any) -> pd.DataFrame:
    """Keep one kind of volumes (uint8) and its table; what is measured is what is kept."""
    kept = np.round(volumes * 255).astype(np.uint8)
    measured = measure_all(kept.astype(np.float32) / 255, affine)
    table = rows[[name for name in (*KEYS, *COLUMNS, "intracranial_volume_ml") if name in rows]].join(measured)
    with atomic_path(folder / f"{kind}.npz") as partial:
        with open(partial, "wb") as file:
            np.savez_compressed(file, volumes=kept)
    with atomic_path(folder / f"{kind}.tsv") as partial:
        table.to_csv(partial, sep="\t", index=False, na_rep=MISSING)
    return table


def reconstruct(pipeline: Pipeline, volumes: torch.Tensor) -> np.ndarray:
    """What the autoencoder alone makes of volumes (N, 1, D, H, W): posterior mean, decoded; (N, D, H, W) in [0, 1]."""
    batch, parts = pipeline.profile.sampling.batch_size, []
    with torch.inference_mode():
        for part in volumes.split(batch):
            padded = torch.cat([part, part[-1:].expand(batch - len(part), -1, -1, -1, -1)])
            result = pipeline.autoencoder.reconstruct(padded.to(pipeline.device))[: len(part), 0]
            parts.append(result.float().clamp(0, 1).cpu().numpy())
    return np.concatenate(parts)


def sample_stage(run: Run, progress: bool = True) -> dict[str, Any]:
    """Ensure the samples of a run: requests are held-out rows, so that r is not flattered by training rows.

    ``samples/<kind>.npz`` and ``.tsv`` for the kinds ``real`` (the held-out volumes), ``reconstruction`` (the same
    through the autoencoder), ``ddim`` and ``ddpm`` (drawn for their covariates from the same first noise).
    """
    from tqdm import tqdm

    from .conditioning import agreement

    folder, settings = run.stage("samples"), run.profile.sampling
    if (done := read_record(folder)) is not None:
        return done
    inputs = {stage: stage_key(run.stage(stage)) for stage in ("cohort", "autoencoder", "diffusion")}
    record = Record(folder, "brainldm samples", settings.model_dump(mode="json"), inputs, run.seed)
    pipeline = load_pipeline(run.folder)
    cohort = load_cohort(run.stage("cohort"))
    rows = cohort.rows("test").head(settings.evaluation_samples)
    real = cohort.volumes("test")[: len(rows)]
    tables = {
        "real": _save_kind(folder, "real", real[:, 0].numpy(), rows, cohort.affine),
        "reconstruction": _save_kind(folder, "reconstruction", reconstruct(pipeline, real), rows, cohort.affine),
    }
    seconds = {}
    for kind, count in (("ddim", len(rows)), ("ddpm", settings.ddpm_samples)):
        part = rows.head(count)
        with tqdm(desc=f"samples, {kind}", unit="step", disable=None if progress else True) as bar:

            def seen(step: int, total: int, bar: tqdm = bar) -> None:
                bar.total = total
                bar.update(step - bar.n)

            start = time.perf_counter()
            volumes = sample(
                pipeline, part, list(range(len(part))), kind, settings.steps, settings.eta, run.seed, seen
            )  # fmt: skip
        # Padding costs time too: count the volumes that were computed.
        computed = -(-len(part) // settings.batch_size) * settings.batch_size
        seconds[kind] = round((time.perf_counter() - start) / computed, 4)
        tables[kind] = _save_kind(folder, kind, volumes, part, cohort.affine)
    results: dict[str, Any] = {"seconds_a_volume": seconds, "precision": mixed_precision(pipeline.device)}
    pairs = {"ventricles": ("ventricular_volume_ml", "lateral_ventricles_ml"), "brain": ("brain_volume_ml",) * 2}
    for name, (asked, found) in pairs.items():
        for kind, table in tables.items():
            fit = agreement(table[asked], table[f"measured_{found}"])
            results[f"{name}_{kind}"] = {key: _finite(value) for key, value in vars(fit).items()}
    return record.finish(sorted([*folder.glob("*.npz"), *folder.glob("*.tsv")]), **results)


def _finite(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None
