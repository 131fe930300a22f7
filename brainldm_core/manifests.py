"""Manifests: where data and weights come from, what may be done with them, and how tables become our covariates.

``data_manifests/<name>.yaml`` has one file a data set; ``data_manifests/schema.json`` is its JSON schema. A folder of
scans without a manifest may use our own column names, or the names ``age`` and ``sex`` of BIDS.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .covariates import COLUMNS, MISSING, REFERENCE_ICV_ML
from .errors import BrainLDMError

if TYPE_CHECKING:
    import pandas as pd

FOLDER = Path(__file__).resolve().parent.parent / "data_manifests"

COHORTS = ("simulated", "bids")
"""Kinds that a model is trained on; the others are files that something else is made of."""

CHECKSUM = "^(md5:[0-9a-f]{32}|(sha1|git):[0-9a-f]{40}|sha256:[0-9a-f]{64})$"

_FACTORS = {"years": 1.0, "months": 1 / 12, "weeks": 7 / 365.25, "days": 1 / 365.25}
_FACTORS |= {"ml": 1.0, "cm3": 1.0, "mm3": 1e-3, "l": 1e3}
_SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Entry):
    """A file or service that the data come from."""

    url: str
    version: str


class File(_Entry):
    """A file to be had at an address."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$",
        description="Its name in our folder, and in a mirror's",
    )
    url: str = Field(pattern="^https?://")
    bytes: int | None = Field(description="Exact size; null: not known")
    about: str | None = Field(default=None, description="Size in words, where bytes is not known")
    checksum: str | None = Field(pattern=CHECKSUM, description="git is the SHA-1 of a git blob; null: not known")
    unpack: bool = Field(default=False, description="Whether it is a tar or zip to unpack into a folder of its name")


class Column(_Entry):
    """How one of our covariates is made from columns of the table; several columns are summed."""

    source: str | list[str] = Field(description="Column of participants.tsv, or columns to sum")
    unit: Literal["years", "months", "weeks", "days", "ml", "cm3", "mm3", "l", "none"]
    levels: dict[str, Literal["F", "M"]] | None = Field(default=None, description="Meaning of codes of sex")
    head: str | None = Field(default=None, description="Column with the head size to normalise by, in the same unit")
    range: tuple[float, float] | None = Field(
        default=None, description="Values that occur, in our unit; others are errors"
    )
    optional: bool = Field(default=False, description="The column may be absent from the table")

    @property
    def sources(self) -> list[str]:
        """Columns to sum."""
        return [self.source] if isinstance(self.source, str) else self.source


class Manifest(_Entry):
    """A data set, or weights: source, files, terms, and columns of its table."""

    name: str
    title: str
    kind: Literal["simulated", "bids", "labels", "volumes", "weights"]
    source: list[Source]
    files: list[File] = Field(default=[], description="What brainldm data fetch gets")
    torrent: str | None = Field(default=None, pattern="^[0-9a-f]{40}$", description="Info-hash of a torrent")
    agreement: str | None = Field(default=None, description="Address of terms to accept before files are fetched")
    obtain: str = Field(default="", description="How to get what cannot be fetched")
    licence: str
    citation: list[str]
    access: Literal["open", "restricted"]
    non_commercial: bool
    faces: Literal["absent", "present"] = Field(description="Whether scans show faces")
    reference_icv_ml: float | None = Field(
        description="Head size that brain volumes are normalised to; null: the source's"
    )
    columns: dict[str, Column] = {}
    notes: str = ""

    @property
    def publishable(self) -> tuple[bool, str]:
        """Whether pages made from this cohort may leave this machine, and why (law 10)."""
        if self.access == "restricted":
            return False, f"{self.title} is of restricted access ({self.licence})"
        if self.non_commercial:
            return False, f"{self.title} has a non-commercial licence ({self.licence})"
        if self.faces == "present":
            return False, f"scans of {self.title} show faces"
        return True, f"{self.title}: {self.licence}"


def manifest_names() -> list[str]:
    """Data sets that have a manifest."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_manifest(name: str) -> Manifest:
    """Manifest of a data set.

    Raises:
        BrainLDMError: there is none of that name, or it breaks the schema.
    """
    if name not in manifest_names():
        raise BrainLDMError(f"data set {name!r} has no manifest; choose one of {', '.join(manifest_names())}")
    path = FOLDER / f"{name}.yaml"
    try:
        manifest = Manifest.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise BrainLDMError(f"{path}: breaks the schema ({where}); mend it") from None
    except yaml.YAMLError as error:
        raise BrainLDMError(f"{path}: is not YAML ({' '.join(str(error).split())}); mend it") from None
    unknown = set(manifest.columns) - {*COLUMNS, "intracranial_volume_ml"}
    if unknown or manifest.name != name:
        wrong = f"column {sorted(unknown)[0]!r} is unknown" if unknown else f"says name {manifest.name!r}"
        raise BrainLDMError(f"{path}: {wrong}; mend it")
    return manifest


def find_manifest(*names: str) -> Manifest | None:
    """Manifest of a cohort: of the first of ``names`` that has one, whatever its case."""
    known = set(manifest_names())
    found = (load_manifest(name.lower()) for name in names if name.lower() in known)
    return next((manifest for manifest in found if manifest.kind in COHORTS), None)


def publishable(cohort: str) -> tuple[bool, str]:
    """Whether notebooks and pages made from a cohort may be published, and why (law 10)."""
    manifest = find_manifest(cohort)
    if manifest is None:
        return False, f"cohort {cohort!r} has no manifest that says it may be shown"
    return manifest.publishable


def json_schema() -> dict[str, Any]:
    """JSON schema of a manifest."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Manifest.model_json_schema()}


def map_columns(table: pd.DataFrame, source: Path, manifest: Manifest | None) -> pd.DataFrame:
    """Text table with our column names from a table of a data set; texts that are not numbers pass for the later check.

    Brain volume is normalised for head size: volume x reference / head (``reference_icv_ml`` of the manifest).
    """
    rules = manifest.columns if manifest else bids_columns(source)
    reference = (manifest.reference_icv_ml if manifest else None) or REFERENCE_ICV_ML
    result = table[[column for column in ("participant_id", "session_id") if column in table]].copy()
    for ours in (*COLUMNS, "intracranial_volume_ml"):
        rule = rules.get(ours)
        needed = rule.sources + ([rule.head] if rule.head else []) if rule else []
        if rule and all(column in table for column in needed):
            cells = zip(table.index, *(table[column] for column in needed), strict=True)
            result[ours] = [_convert(ours, rule, texts, reference, f"{source} line {line}") for line, *texts in cells]
        elif ours in table:
            result[ours] = table[ours]
        elif ours in ("age_years", "sex") or (rule and not rule.optional):
            names = " and ".join(column for column in needed if column not in table) or ours
            raise BrainLDMError(
                f"{source}: has no column {names}, from which {ours} is made; add it or a column {ours}"
            )
        else:
            result[ours] = MISSING
    return result


def _convert(ours: str, rule: Column, texts: list[str], reference: float, where: str) -> str:
    """Cell of one of our columns from the cells it is made of."""
    if rule.levels is not None:
        return rule.levels.get(texts[0], rule.levels.get(texts[0].lower(), texts[0]))
    if MISSING in texts or "" in texts:
        return MISSING if MISSING in texts else ""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        return next(text for text in texts if not _is_number(text))
    value = sum(numbers[: len(rule.sources)]) * _FACTORS[rule.unit]
    if min(numbers) < 0:
        return f"{min(numbers):g}"
    if rule.head:
        head = numbers[-1] * _FACTORS[rule.unit]
        if not 0 < value < head < 3000:
            raise BrainLDMError(
                f"{where}: brain {value:g} ml in a head of {head:g} ml ({rule.head}) is impossible; correct the volumes"
            )
        value *= reference / head
    if rule.range and not rule.range[0] <= value <= rule.range[1]:
        low, high = rule.range
        raise BrainLDMError(
            f"{where}: {ours} {value:g} is impossible in this data set, whose manifest says {low:g} to {high:g}; "
            "correct the value or its unit"
        )
    return format(value, ".8g")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def bids_columns(source: Path) -> dict[str, Column]:
    """Rules for a table without a manifest: ``age`` and ``sex`` of BIDS, with units from ``participants.json``."""
    sidecar = Path(source).with_suffix(".json")
    unit, levels = "years", dict(_SEXES)
    if sidecar.exists():
        try:
            told = json.loads(sidecar.read_text(encoding="utf-8"))
            unit = str(told.get("age", {}).get("Units", "years")).lower().rstrip("s") + "s"
            for code, meaning in told.get("sex", {}).get("Levels", {}).items():
                meaning = meaning if isinstance(meaning, str) else str(meaning.get("TermURL", ""))
                if meaning.lower() in _SEXES:
                    levels[code] = _SEXES[meaning.lower()]
        except (ValueError, AttributeError) as error:
            raise BrainLDMError(
                f"{sidecar}: is not a BIDS description of columns ({error}); mend or remove it"
            ) from None
    unit = {"yrs": "years", "ys": "years", "mos": "months", "wks": "weeks"}.get(unit, unit)
    if unit not in ("years", "months", "weeks", "days"):
        raise BrainLDMError(f"{sidecar}: age is in {unit!r}; write Units: years, months, weeks or days")
    return {"age_years": Column(source="age", unit=unit), "sex": Column(source="sex", unit="none", levels=levels)}
