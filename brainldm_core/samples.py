"""Generated brains on disk: a folder of samples for a reader, and the samples stage that the chapters measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import __version__
from .covariates import COLUMNS, KEYS, MISSING
from .dataset import load_cohort, save_volume
from .label_files import describe_labels, label_method, write_labels
from .morphometry import choose, measure
from .networks import in_batches, mixed_precision
from .records import Record, Run, atomic_folder, atomic_path, read_record, stage_key, write_json, write_text
from .sampling import Pipeline, load_pipeline, sample

if TYPE_CHECKING:
    import pandas as pd

TITLE = "Synthetic brains"
SHOWN = 32  # volumes of a montage
MEASURED = ("lateral_ventricles_ml", "brain_ml", "intracranial_ml", "brain_volume_ml")

NOTES = {
    "participant_id": {"Description": "Name of the volume; its number is the sample's id, which makes its noise"},
    "sex": {"Description": "Requested sex", "Levels": {"F": "female", "M": "male"}},
    "age_years": {"Description": "Requested age", "Units": "years"},
    "ventricular_volume_ml": {"Description": "Requested volume of both lateral ventricles", "Units": "ml"},
    "brain_volume_ml": {"Description": "Requested parenchyma, normalised for head size", "Units": "ml"},
    "measured_lateral_ventricles_ml": {"Description": "Lateral ventricles of this volume", "Units": "ml"},
    "measured_brain_ml": {"Description": "Parenchyma of this volume", "Units": "ml"},
    "measured_intracranial_ml": {"Description": "Intracranial volume of this volume", "Units": "ml"},
    "measured_brain_volume_ml": {"Description": "Parenchyma of this volume, normalised for head size", "Units": "ml"},
}
"""What the columns of ``participants.tsv`` are; measured ones come from the intensities of the volume alone."""


@contextmanager
def progress_bar(desc: str, show: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, none in a page; gives ``callback(steps done, steps in all)`` for ``sampling.sample``."""
    from tqdm import tqdm

    with tqdm(desc=desc, unit="step", disable=None if show else True) as bar:

        def seen(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield seen


def measure_all(volumes: np.ndarray, affine: Any, method: str = "auto") -> pd.DataFrame:
    """Morphometry of volumes (N, D, H, W) as columns ``measured_<name>`` in millilitres; 0 where nothing is found."""
    import pandas as pd

    rows = [measure(volume, np.asarray(affine), method) for volume in volumes]
    return pd.DataFrame(
        [{f"measured_{name}": round(row[name], 2) for name in MEASURED} for row in rows],
        columns=[f"measured_{name}" for name in MEASURED],
    )


def measure_drawn(pipeline: Pipeline, volumes: np.ndarray) -> pd.DataFrame:
    """``measure_all`` of what a model drew; no columns where the method for its voxels would take a skull for brain."""
    import pandas as pd

    affine = pipeline.profile.grid.affine
    if pipeline.training.get("brain_only", True) or choose(affine) == "network":
        return measure_all(volumes, affine)
    return pd.DataFrame(index=range(len(volumes)))


def quantise(volumes: np.ndarray) -> np.ndarray:
    """Volumes in [0, 1] as the uint8 that is kept; what is measured is what is kept."""
    return np.round(np.clip(volumes, 0, 1) * 255).astype(np.uint8)


def participant(identity: int) -> str:
    """BIDS name of a sample, ``sub-NNNNNN``."""
    return f"sub-{identity:06d}"


def volume_name(identity: int) -> str:
    """Where a BIDS folder keeps the volume of a sample: ``sub-NNNNNN/anat/sub-NNNNNN_T1w.nii.gz``."""
    return f"{participant(identity)}/anat/{participant(identity)}_T1w.nii.gz"


def sampling_facts(
    pipeline: Pipeline, sampler: str, steps: int, seed: int, guidance: float | None = None
) -> dict[str, Any]:
    """What is the same for all volumes of a draw, as a BIDS sidecar says it (law 5); ``guidance``: None, the usual."""
    usual = pipeline.profile.sampling
    return {
        "Description": "Synthetic T1-weighted brain of no person, drawn from a latent diffusion model",
        "Synthetic": True,
        "CheckpointSHA256": pipeline.sha256,
        "Profile": pipeline.profile.name,
        "Sampler": sampler,
        "Steps": pipeline.profile.diffusion.timesteps if sampler == "ddpm" else steps,
        "GuidanceScale": usual.guidance_scale if guidance is None else guidance,
        "Guided": list(usual.guided),
        "GuidanceInterval": list(usual.guidance_interval),
        "Precision": mixed_precision(pipeline.device),
        "BatchSize": usual.batch_size,
        "Seed": seed,
        "Units": {"age_years": "years", "ventricular_volume_ml": "ml", "brain_volume_ml": "ml"},
        "SpaceName": "MNI152",
    }


def write_participants(folder: Path, table: pd.DataFrame, name: str, **more: Any) -> None:
    """Write ``participants.tsv`` and ``.json`` and ``dataset_description.json`` (with ``more``) of a BIDS folder."""
    with atomic_path(folder / "participants.tsv") as partial:
        table.to_csv(partial, sep="\t", index=False, na_rep=MISSING, lineterminator="\n")
    write_json(folder / "participants.json", {name: NOTES[name] for name in table if name in NOTES})
    description = {
        "Name": name,
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "GeneratedBy": [{"Name": "brainldm", "Version": __version__}],
    }
    write_json(folder / "dataset_description.json", description | more)


def write_samples(
    pipeline: Pipeline,
    covariates: pd.DataFrame,
    volumes: Iterable[np.ndarray],
    ids: Sequence[int],
    out: Path,
    sampler: str,
    steps: int,
    seed: int,
    guidance: float | None = None,
    origin: str | None = None,
    labels: bool = False,
    written: Callable[[Path], None] | None = None,
) -> Path:
    """Write volumes (D, H, W) as a BIDS folder: NIfTI in MNI space with sidecars, ``participants.tsv``, a montage.

    A volume is written when it comes, and only the first few are kept in memory; the folder appears whole or not at
    all.

    Args:
        origin: where requests come from, in words.
        labels: with a label map beside each volume, see ``label_files``.
        written: called with each volume's path once it is on disk, before it is measured.

    Raises:
        BrainLDMError: the folder exists and is not empty, the disk is full, or there is no way to label such volumes.
    """
    import pandas as pd

    from . import figures

    affine = pipeline.profile.grid.affine
    method = label_method(pipeline) if labels else None
    table = covariates[[name for name in COLUMNS if name in covariates]].reset_index(drop=True)
    facts = sampling_facts(pipeline, sampler, steps, seed, guidance)
    measured, shown = [], []
    with atomic_folder(out) as draft:
        for place, (identity, volume) in enumerate(zip(ids, volumes, strict=True)):
            path = draft / volume_name(identity)
            save_volume(path, volume, affine)
            if written is not None:
                written(path)
            kept = quantise(volume) / np.float32(255)
            measured.append(measure_drawn(pipeline, kept[None]))
            sidecar = facts | {
                "SampleID": identity,
                "RequestedCovariates": _plain(table.iloc[place]),
                "MeasuredVolumes": _plain(measured[-1].iloc[0]),
            }
            write_json(path.with_name(path.name.replace(".nii.gz", ".json")), sidecar)
            if method is not None:
                write_labels(draft, volume_name(identity), kept, affine, method)
            shown += [volume] if len(shown) < SHOWN else []
        rows = table.join(pd.concat(measured, ignore_index=True))
        rows.insert(0, "participant_id", [participant(identity) for identity in ids])
        facts = {"Synthetic": True} | ({"Requests": origin} if origin else {})
        write_participants(draft, rows, TITLE, BrainLDM=facts)
        if method is not None:
            describe_labels(draft, method, TITLE)
        with atomic_path(draft / "montage.png") as partial:
            figures.montage(np.stack(shown), _titles(rows)[:SHOWN]).savefig(partial, dpi=150, format="png")
        write_text(draft / ".bidsignore", "montage.png\n")
    return Path(out)


def _titles(rows: pd.DataFrame) -> list[str]:
    """Ventricular volume of each sample as asked for and as found, as far as they are known."""
    nothing = [None] * len(rows)
    pairs = zip(
        rows.get("ventricular_volume_ml", nothing), rows.get("measured_lateral_ventricles_ml", nothing), strict=True
    )
    said = ([f"{value:.0f}" for value in pair if value is not None and value == value] for pair in pairs)
    return [" → ".join(values) + " ml" if values else "" for values in said]


def _plain(row: pd.Series) -> dict[str, Any]:
    """JSON-able values; a missing one is null."""
    return {name: None if value is None or value != value else value for name, value in row.items()}


def _save_kind(folder: Path, kind: str, volumes: np.ndarray, rows: pd.DataFrame, affine: Any) -> pd.DataFrame:
    """Keep one kind of volumes (uint8) and its table; what is measured is what is kept."""
    kept = quantise(volumes)
    measured = measure_all(kept / np.float32(255), affine)
    table = rows[[name for name in (*KEYS, *COLUMNS, "intracranial_volume_ml") if name in rows]].join(measured)
    with atomic_path(folder / f"{kind}.npz") as partial:
        with open(partial, "wb") as file:
            np.savez_compressed(file, volumes=kept)
    with atomic_path(folder / f"{kind}.tsv") as partial:
        table.to_csv(partial, sep="\t", index=False, na_rep=MISSING)
    return table


def reconstruct(pipeline: Pipeline, volumes: torch.Tensor) -> np.ndarray:
    """What the autoencoder alone makes of volumes (N, 1, D, H, W): posterior mean, decoded; (N, D, H, W) in [0, 1]."""
    batch = pipeline.profile.sampling.batch_size
    return in_batches(pipeline.autoencoder.reconstruct, volumes, batch, pipeline.device)[:, 0].clamp(0, 1).numpy()


def sample_stage(run: Run, progress: bool = True) -> dict[str, Any]:
    """Ensure the samples of a run: requests are held-out rows, so that r is not flattered by training rows.

    ``samples/<kind>.npz`` and ``.tsv`` for the kinds ``real`` (the held-out volumes), ``reconstruction`` (the same
    through the autoencoder), ``ddim`` and ``ddpm`` (drawn for their covariates from the same first noise), and
    ``mean`` where the profile shows the network the mean latent of a request: that alone, decoded.
    """
    from .conditioning import ASKED_AND_MEASURED, agreement
    from .nulls import mean_for_requests

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
    if run.profile.diffusion.mean_latent:
        tables["mean"] = _save_kind(folder, "mean", mean_for_requests(pipeline, rows), rows, cohort.affine)
    seconds = {}
    for kind, count in (("ddim", len(rows)), ("ddpm", settings.ddpm_samples)):
        part = rows.head(count)
        with progress_bar(f"samples, {kind}", progress) as seen:
            start = time.perf_counter()
            volumes = sample(
                pipeline, part, list(range(len(part))), kind, settings.steps, settings.eta, run.seed, seen
            )  # fmt: skip
        # Padding costs time too: count the volumes that were computed.
        computed = -(-len(part) // settings.batch_size) * settings.batch_size
        seconds[kind] = round((time.perf_counter() - start) / computed, 4)
        tables[kind] = _save_kind(folder, kind, volumes, part, cohort.affine)
    results: dict[str, Any] = {"seconds_a_volume": seconds, "precision": mixed_precision(pipeline.device)}
    for name, (asked, found) in ASKED_AND_MEASURED.items():
        for kind, table in tables.items():
            results[f"{name}_{kind}"] = agreement(table[asked], table[found]).record()
    return record.finish(sorted([*folder.glob("*.npz"), *folder.glob("*.tsv")]), **results)
