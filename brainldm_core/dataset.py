"""Cohort folders: the one layout of simulated and of prepared cohorts, written and read here only.

A cohort is a BIDS derivative: ``participants.tsv`` in physical units with a split, and one uint8 volume a scan on the
profile's grid in MNI space. A simulated cohort has label maps beside its volumes.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import __version__
from .covariates import KEYS, MISSING, check_table, read_table
from .errors import BrainLDMError
from .records import atomic_path, read_json, write_json, write_text

if TYPE_CHECKING:
    import nibabel as nib
    import pandas as pd
    import torch

SPLITS = ("train", "validation", "test")
LABELS = {0: "background", 1: "CSF", 2: "grey matter", 3: "white matter", 4: "lateral ventricles"}

_COLUMNS = {
    "split": {"Description": "Part of the cohort: whole participants, never single scans, are split"},
    "age_years": {"Description": "Age at the scan", "Units": "years"},
    "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
    "ventricular_volume_ml": {"Description": "Lateral and inferior-lateral ventricles", "Units": "ml"},
    "brain_volume_ml": {
        "Description": "Brain parenchyma normalised for head size: volume x reference / intracranial volume",
        "Units": "ml",
    },
    "intracranial_volume_ml": {"Description": "Intracranial volume of this head", "Units": "ml"},
}


def scan_name(participant_id: str, session_id: str = MISSING) -> str:
    """BIDS name of a scan: ``sub-X`` or ``sub-X_ses-Y``."""
    return participant_id if session_id == MISSING else f"{participant_id}_{session_id}"


def volume_path(folder: Path, participant_id: str, session_id: str = MISSING) -> Path:
    """Where a cohort keeps the volume of a scan."""
    name = scan_name(participant_id, session_id)
    return Path(folder, *name.split("_"), "anat", f"{name}_desc-preproc_T1w.nii.gz")


def labels_path(folder: Path, participant_id: str, session_id: str = MISSING) -> Path:
    """Where a simulated cohort keeps the label map of a scan."""
    path = volume_path(folder, participant_id, session_id)
    return path.with_name(path.name.replace("_desc-preproc_T1w", "_dseg"))


def nifti_image(array: np.ndarray, affine: Any, slope: float = 1.0) -> nib.Nifti1Image:
    """An image (D, H, W) uint8 with an affine in MNI space (sform and qform code 4)."""
    import nibabel as nib

    image = nib.Nifti1Image(np.ascontiguousarray(array, dtype=np.uint8), np.asarray(affine, dtype=float))
    image.header.set_slope_inter(slope, 0)
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, code=4)
    image.set_qform(image.affine, code=4)
    return image


def save_nifti(path: Path, array: np.ndarray, affine: Any, slope: float = 1.0) -> None:
    """Write (D, H, W) uint8 with an affine in MNI space; the same array, the same bytes."""
    import nibabel as nib

    image = nifti_image(array, affine, slope)
    with atomic_path(path) as partial:
        nib.save(image, partial)


def save_volume(path: Path, volume: np.ndarray, affine: Any) -> None:
    """Write a volume (D, H, W) in [0, 1] as uint8 with slope 1/255; values outside are clipped."""
    save_nifti(path, np.round(np.clip(volume, 0, 1) * 255), affine, slope=1 / 255)


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A 3-D scan (D, H, W) float32 and its affine (4, 4).

    Raises:
        BrainLDMError: not a NIfTI, truncated, not 3-D, not finite, constant, or without a usable affine.
    """
    import nibabel as nib

    mend = "; replace this file"
    try:
        content = Path(path).read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)  # reads to the end, so that the checksum is verified
        if content[344:348] not in (b"n+1\0", b"ni1\0") and content[4:7] != b"n+2":
            raise BrainLDMError(f"{path}: is not a NIfTI file{mend}")
        image = (nib.Nifti2Image if content[4:7] == b"n+2" else nib.Nifti1Image).from_bytes(content)
        shape = tuple(side for side in image.shape)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) != 3 or min(shape) < 2:
            raise BrainLDMError(f"{path}: has shape {image.shape}, not one 3-D volume{mend} or split it")
        if not np.issubdtype(image.get_data_dtype(), np.number) or np.issubdtype(image.get_data_dtype(), complex):
            raise BrainLDMError(f"{path}: has voxels of type {image.get_data_dtype()}, not plain numbers{mend}")
        volume = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
    except FileNotFoundError:
        raise BrainLDMError(f"{path}: no such file; restore it or remove its row from the table") from None
    except BrainLDMError:
        raise
    except Exception as error:  # nibabel, zlib and numpy each have their own ways to report a damaged file
        reason = str(error).split("\n")[0][:120] or type(error).__name__
        raise BrainLDMError(f"{path}: damaged or truncated NIfTI ({reason}){mend}") from None
    if not np.isfinite(volume).all():
        raise BrainLDMError(f"{path}: has {np.sum(~np.isfinite(volume))} voxels that are NaN or infinite{mend}")
    if volume.min() == volume.max():
        raise BrainLDMError(f"{path}: is empty, every voxel is {volume.flat[0]:g}{mend}")
    affine = image.affine
    if affine is None or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise BrainLDMError(f"{path}: its header places the voxels nowhere (singular affine); mend the header")
    return volume, affine


def hash_order(names: Iterable[str]) -> list[str]:
    """Names in the order of their hashes: as good as shuffled, and the same everywhere."""
    return sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).hexdigest())


def cut_splits(ids: Iterable[str], sizes: dict[str, int]) -> dict[str, str]:
    """Split of each participant: the order of hashes of ids, cut into parts of given ``sizes``."""
    names = [split for split in SPLITS for _ in range(sizes[split])]
    return dict(zip(hash_order(ids), names, strict=True))


def assign_splits(ids: Iterable[str], shares: tuple[float, float] = (0.15, 0.15)) -> dict[str, str]:
    """Split of each participant by the order of hashes of ids: about ``shares`` for validation and test, at least one.

    Raises:
        BrainLDMError: fewer than three participants.
    """
    order = hash_order(ids)
    if len(order) < 3:
        raise BrainLDMError(
            f"cohort of {len(order)} participants: at least 3 are needed, one for each split; add scans"
        )
    validation, test = (max(1, round(share * len(order))) for share in shares)
    names = ["test"] * test + ["validation"] * validation
    return {name: (names[place] if place < len(names) else "train") for place, name in enumerate(order)}


def write_tables(
    folder: Path, table: pd.DataFrame, name: str | None = None, facts: dict[str, Any] | None = None
) -> None:
    """Write ``participants.tsv`` and ``.json`` and ``dataset_description.json`` of a cohort folder.

    ``facts`` (for instance ``brain_only``, ``simulated``, ``access``) lie in the description under ``BrainLDM``.
    """
    folder = Path(folder)
    columns = [*KEYS, *_COLUMNS]
    extra = [column for column in table if column not in columns]
    table = table.reindex(columns=columns + extra)
    text = table.to_csv(sep="\t", index=False, na_rep=MISSING, lineterminator="\n")
    write_json(folder / "participants.json", _COLUMNS)
    description = {
        "Name": name or folder.resolve().parent.name,
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "brainldm", "Version": __version__}],
        "BrainLDM": facts or {},
    }
    write_json(folder / "dataset_description.json", description)
    write_text(folder / "participants.tsv", text)


@dataclass(frozen=True)
class Cohort:
    """A finished cohort: ``table`` has a row a scan, ``affine`` (4, 4) places voxels in MNI space (mm)."""

    folder: Path
    table: pd.DataFrame
    affine: np.ndarray

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What ``write_tables`` was told about the cohort."""
        return read_json(self.folder / "dataset_description.json").get("BrainLDM", {})

    def rows(self, split: str) -> pd.DataFrame:
        """Rows of a split, in the order of ``volumes``."""
        if split not in SPLITS:
            raise BrainLDMError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
        return self.table[self.table["split"] == split].reset_index(drop=True)

    def volumes(self, split: str) -> torch.Tensor:
        """Volumes (N, 1, D, H, W) of a split, float32 in [0, 1]."""
        import torch

        paths = [volume_path(self.folder, *keys) for keys in self.rows(split)[list(KEYS)].itertuples(index=False)]
        volumes = [self._read(path) for path in paths]
        return torch.from_numpy(np.stack(volumes)[:, None]) if volumes else torch.empty(0)

    def labels(self, split: str) -> np.ndarray:
        """Label maps (N, D, H, W) uint8 of a split of a simulated cohort."""
        paths = [labels_path(self.folder, *keys) for keys in self.rows(split)[list(KEYS)].itertuples(index=False)]
        return np.stack([read_nifti(path)[0].astype(np.uint8) for path in paths])

    def _read(self, path: Path) -> np.ndarray:
        volume, affine = read_nifti(path)
        if not np.allclose(affine, self.affine, atol=1e-3):
            raise BrainLDMError(f"{path}: is on another grid than the rest; delete {self.folder} and prepare it again")
        return np.clip(volume, 0, 1)


def load_cohort(folder: Path) -> Cohort:
    """Open a cohort folder.

    Raises:
        BrainLDMError: there is none, or its table is damaged.
    """
    folder = Path(folder)
    source = folder / "participants.tsv"
    if not source.exists():
        raise BrainLDMError(f"{folder}: there is no cohort here; run `brainldm prepare` first")
    table = check_table(read_table(source), source)
    unknown = set(table["split"]) - set(SPLITS) if "split" in table else {"no column split"}
    if unknown:
        raise BrainLDMError(f"{source}: split {sorted(unknown)[0]!r} is unknown; prepare the cohort again")
    first = volume_path(folder, *table.loc[0, list(KEYS)])
    return Cohort(folder, table, read_nifti(first)[1])
