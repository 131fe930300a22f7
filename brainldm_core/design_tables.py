"""Tables that say what volumes are asked for: a design, a row a volume, or people whose joint distribution is copied.

What cannot be right is refused in one line with the file, the line and the mend; a misspelt column never goes unseen.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from .covariates import COLUMNS, KEYS, MISSING, check_table, parse_quantity, read_table
from .designs import UNITS
from .errors import BrainLDMError
from .manifests import Manifest, find_manifest, load_manifest, manifest_names, map_columns
from .records import read_json

if TYPE_CHECKING:
    import pandas as pd

_STEMS = {
    "sex": ("sex", "gender"),
    "age_years": ("age",),
    "ventricular_volume_ml": ("ventric", "lateral"),
    "brain_volume_ml": ("brain",),
}
"""How the names begin that other tables give to our covariates."""


def read_design(path: Path) -> tuple[pd.DataFrame, list[int] | None, list[str]]:
    """A design from a tab-separated file: covariates (years, ml), ids of the volumes, names of columns not used.

    Cells that are empty or ``n/a``, and columns that are not there, are unknown. A ``participant_id`` of ``sub-`` and
    up to six digits in every row is the volume's id, so that a table of ``sample`` or ``release`` gives the same
    volumes again; other names are not used, and ids are None.

    Raises:
        BrainLDMError: not such a table, none of our columns, one of another name or unit, or an impossible value.
    """
    path = Path(path)
    table = read_table(path)
    _check_header(path, list(table))
    check_units(path)
    ids = _ids(path, table)
    used = [column for column in COLUMNS if column in table]
    unused = [column for column in table if column not in (*used, *(KEYS[:1] if ids else ()))]
    design = table[used].replace("", MISSING).reindex(columns=list(COLUMNS), fill_value=MISSING)
    design.insert(0, "participant_id", [f"sub-{line}" for line in design.index])
    return check_table(design, path)[list(COLUMNS)], ids, unused


def _check_header(path: Path, names: list[str]) -> None:
    """Refuse a header whose covariates have other names than ours."""
    if len(names) == 1 and any(mark in names[0] for mark in ",;"):
        raise BrainLDMError(f"{path}: its header has no tabs; separate cells by tabs, as in participants.tsv")
    for column in COLUMNS:
        near = [name for name in names if name.lower().startswith(_STEMS[column])]
        if near and column not in names:
            unit = f", in {UNITS[column]}" if column in UNITS else ", F or M"
            raise BrainLDMError(f"{path}: column {near[0]!r} is not known; if it is {column}{unit}, rename it so")
    if not set(COLUMNS) & set(names):
        raise BrainLDMError(f"{path}: asks for nothing; give one or more of the columns {', '.join(COLUMNS)}")


def check_units(path: Path) -> None:
    """Refuse a table whose ``.json`` beside it states another unit for one of our columns than its name.

    Raises:
        BrainLDMError: another unit, or the file is not JSON.
    """
    sidecar = Path(path).with_suffix(".json")
    told = read_json(sidecar) if sidecar.is_file() else {}
    for column, unit in UNITS.items():
        facts = told.get(column, {}) if isinstance(told, dict) else {}
        stated = str(facts.get("Units", unit)) if isinstance(facts, dict) else unit
        try:
            same = parse_quantity(f"1 {stated}", unit) == 1
        except BrainLDMError:
            same = False
        if not same:
            raise BrainLDMError(f"{sidecar}: says that {column} is in {stated}; convert the column to {unit}")


def _ids(path: Path, table: pd.DataFrame) -> list[int] | None:
    """Ids of volumes by ``participant_id``; None where it names something else."""
    names = table.get("participant_id", [])
    if not len(names) or not all(re.fullmatch(r"sub-\d{1,6}", name) and int(name[4:]) for name in names):
        return None
    first: dict[int, int] = {}
    for line, name in names.items():
        if int(name[4:]) in first:
            raise BrainLDMError(
                f"{path} line {line}: {name} is already on line {first[int(name[4:])]}; give each volume a number of "
                "its own, or leave the column out"
            )
        first[int(name[4:])] = line
    return list(first)


def read_people(path: Path) -> pd.DataFrame:
    """Rows (years, ml) of a ``participants.tsv``: ours, one with ``age`` and ``sex`` of BIDS, or of a known data set.

    A data set is known by its folder's name or by its columns, for instance the fields of UK Biobank in cubic mm.

    Raises:
        BrainLDMError: not such a table, a row twice, or an impossible value.
    """
    path = Path(path)
    table = read_table(path)
    check_units(path)
    manifest = find_manifest(path.resolve().parent.name)
    if manifest is None and not set(UNITS) & set(table):
        manifest = next((each for each in map(load_manifest, manifest_names()) if _fits(each, set(table))), None)
    return check_table(map_columns(table, path, manifest), path)[list(COLUMNS)]


def _fits(manifest: Manifest, names: set[str]) -> bool:
    """Whether a table has all columns that the manifest of a data set names."""
    sources = {source for rule in manifest.columns.values() for source in rule.sources}
    return manifest.kind == "bids" and bool(sources) and sources <= names
