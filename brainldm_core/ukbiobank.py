"""A ``participants.tsv`` from the field columns that UK Biobank gives its applicants."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING

from .covariates import MISSING, check_table
from .errors import BrainLDMError
from .manifests import load_manifest, map_columns
from .records import write_text

if TYPE_CHECKING:
    import pandas as pd

_SPELLINGS = (  # field, instance and array of a column in the three ways it is exported
    r"(\d+)-(\d+)\.(\d+)",  # 25004-2.0
    r"f\.(\d+)\.(\d+)\.(\d+)",  # f.25004.2.0
    r"(?:participant\.)?p(\d+)(?:_i(\d+))?(?:_a(\d+))?",  # p25004_i2
)
_PERSON = ("eid", "f.eid", "participant.eid")
_EMPTY = ("", "NA", "NaN", "nan", MISSING)


def field_name(column: str) -> str:
    """The name ``field-instance.array`` of a column, whichever way it is spelt; other names stay as they are."""
    for spelling in _SPELLINGS:
        if match := re.fullmatch(spelling, column.strip()):
            return "{}-{}.{}".format(*(part or "0" for part in match.groups()))
    return column.strip()


def read_fields(path: Path) -> tuple[pd.DataFrame, int]:
    """Rows of people who have an age at the imaging visit, and how many have none; the index holds line numbers.

    Columns are ``participant_id`` (``sub-`` and the eid) and those of the manifest ``ukbiobank``, as text.

    Raises:
        BrainLDMError: the file is no table, lacks a column, or a row is malformed or the second one of a person.
    """
    import pandas as pd

    rules = load_manifest("ukbiobank").columns
    wanted = [source for rule in rules.values() for source in rule.sources]
    rows, people, without = {}, {}, 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            tabs = "\t" in file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter="\t" if tabs else ",", strict=True)
            header = next(reader, [])
            places = _places(path, header, wanted)
            for cells in reader:
                where = f"{path} line {reader.line_num}"
                if not any(cells):
                    continue
                if len(cells) != len(header):
                    raise BrainLDMError(f"{where}: has {len(cells)} cells, the header {len(header)}; export it again")
                found = {name: cells[place].strip() for name, place in places.items()}
                found = {name: MISSING if text in _EMPTY else text for name, text in found.items()}
                person = found.pop("eid")
                if not re.fullmatch("[0-9]+", person):
                    raise BrainLDMError(f"{where}: eid {person!r} is not a number; export it again")
                if person in people:
                    raise BrainLDMError(f"{where}: eid {person} is already on line {people[person]}; keep one of them")
                people[person] = reader.line_num
                if found[rules["age_years"].sources[0]] == MISSING:
                    without += 1
                else:
                    rows[reader.line_num] = {"participant_id": f"sub-{person}", **found}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BrainLDMError(f"{path}: cannot be read as a table ({error}); export the fields as CSV") from None
    if not rows:
        raise BrainLDMError(f"{path}: has nobody with an age at the imaging visit; is it the right export?")
    return pd.DataFrame.from_dict(rows, orient="index"), without


def _places(path: Path, header: list[str], wanted: list[str]) -> dict[str, int]:
    """Where ``eid`` and the wanted columns stand in a row."""
    names = ["eid" if column.strip().lower() in _PERSON else field_name(column) for column in header]
    for name in ("eid", *wanted):
        if names.count(name) != 1:
            how = "two columns" if name in names else "no column"
            raise BrainLDMError(
                f"{path} line 1: has {how} {name}; export it once, in that spelling, as f.{name.replace('-', '.')}, or "
                "with names such as p31 and p21003_i2"
            )
    return {name: names.index(name) for name in ("eid", *wanted)}


def write_participants(source: Path, out: Path) -> tuple[int, int]:
    """Write a ``participants.tsv`` from an export of fields; return its number of rows, and of people left out.

    Raises:
        BrainLDMError: see ``read_fields``; or a value is impossible.
    """
    source, out = Path(source), Path(out)
    if out.exists():
        raise BrainLDMError(f"{out}: exists already; give another --out, or delete it")
    table, without = read_fields(source)
    check_table(map_columns(table, source, load_manifest("ukbiobank")), source)
    write_text(out, table.to_csv(sep="\t", index=False, lineterminator="\n"))
    return len(table), without
