"""Covariates in physical units, their vector inside the model, and a population to draw them from.

The model's vector is [sex, age, ventricular volume, brain volume] (section 2.3 of the paper), min-max scaled by the
ranges of the training cohort. The [0, 1] vector exists only inside the model: everything else speaks years and ml.
"""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import BrainLDMError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("sex", "age_years", "ventricular_volume_ml", "brain_volume_ml")
"""Covariates in model order."""

KEYS = ("participant_id", "session_id")
"""What names a row of a table; ``session_id`` is ``n/a`` where there are no sessions."""

MISSING = "n/a"
REFERENCE_ICV_ML = 1369.0
"""Mean intracranial volume of the 291 people; brain volume is stated for a head of this size."""

LIMITS = {
    "age_years": (0.0, 120.0),
    "ventricular_volume_ml": (0.0, 400.0),
    "brain_volume_ml": (0.0, 2500.0),
    "intracranial_volume_ml": (0.0, 3000.0),
}
"""What a table may hold; volumes must also be above 0. Requests to a model are not limited."""

Ranges = dict[str, tuple[float, float]]

_UNITS = {
    "ml": {"": 1.0, "ml": 1.0, "cm3": 1.0, "cc": 1.0, "mm3": 1e-3, "ul": 1e-3, "l": 1e3},
    "years": {"": 1.0, "y": 1.0, "yr": 1.0, "yrs": 1.0, "year": 1.0, "years": 1.0},
}
_NUMBER = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*([a-zµ]*[3³]?)\s*", re.IGNORECASE)


def parse_quantity(text: str, unit: str) -> float:
    """Number of ``ml`` or ``years`` that a text such as ``45ml``, ``0.045 l`` or ``70`` means.

    Raises:
        BrainLDMError: not a finite number, or another unit.
    """
    known = _UNITS[unit]
    match = _NUMBER.fullmatch(str(text))
    suffix = match.group(2).lower().replace("³", "3").replace("µ", "u") if match else None
    if suffix not in known or not math.isfinite(float(match.group(1))):
        example = "45ml" if unit == "ml" else "70"
        raise BrainLDMError(f"{text!r}: not a quantity in {unit}; write a number, for instance {example}")
    return float(match.group(1)) * known[suffix]


def numeric(table: pd.DataFrame, column: str) -> np.ndarray:
    """Values of a covariate (N,) as floats, F = 0 and M = 1; NaN where missing or where there is no such column."""
    import pandas as pd

    if column not in table:
        return np.full(len(table), np.nan)
    values = table[column]
    absent = values.isna() | values.isin([MISSING, ""])
    if column != "sex":
        return pd.to_numeric(values.where(~absent), errors="raise").to_numpy(dtype=float, na_value=np.nan)
    unknown = values[~absent & ~values.isin(["F", "M"])]
    if len(unknown):
        raise BrainLDMError(f"sex {unknown.iloc[0]!r}: unknown; write F or M")
    return np.where(absent, np.nan, (values == "M").astype(float))


def fit_ranges(table: pd.DataFrame) -> Ranges:
    """Minimum and maximum of each covariate over a training cohort; they travel in the checkpoint (law 1)."""
    ranges: Ranges = {"sex": (0.0, 1.0)}
    for column in COLUMNS[1:]:
        values = numeric(table, column)
        values = values[np.isfinite(values)]
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        # One value only: any width does, the vector is 0 for all.
        ranges[column] = (low, high if high > low else low + 1.0)
    return ranges


def encode(table: pd.DataFrame, ranges: Ranges) -> tuple[np.ndarray, np.ndarray]:
    """Model vectors (N, 4) and which of them are present (N, 4), both float32.

    Min-max by ``ranges``, never clamped: requests outside the training range extrapolate (section 3.3 of the paper).
    A missing covariate has value 0 and presence 0.
    """
    columns = []
    for column in COLUMNS:
        low, high = ranges[column]
        columns.append((numeric(table, column) - low) / (high - low))
    values = np.stack(columns, axis=1)
    present = np.isfinite(values)
    return np.where(present, values, 0.0).astype(np.float32), present.astype(np.float32)


def warn_outside(table: pd.DataFrame, ranges: Ranges) -> list[str]:
    """Warn of requests outside the training ranges, which the model extrapolates; returns what was said."""
    said = []
    for column in COLUMNS[1:]:
        low, high = ranges[column]
        values = numeric(table, column)
        outside = values[(values < low) | (values > high)]
        if len(outside):
            shown = " to ".join(dict.fromkeys(f"{value:g}" for value in (outside.min(), outside.max())))
            said.append(f"{column} {shown} is outside the training range {low:g} to {high:g}: extrapolating")
            warnings.warn(said[-1], stacklevel=2)
    return said


def read_table(path: Path) -> pd.DataFrame:
    """A tab-separated table as text, every cell stripped, nothing interpreted.

    Raises:
        BrainLDMError: the file is missing, is not text, has no rows, or a row has another number of cells.
    """
    import pandas as pd

    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise BrainLDMError(f"{path}: cannot be read ({error.strerror}); a table of participants is needed") from None
    except UnicodeDecodeError:
        raise BrainLDMError(f"{path}: is not UTF-8 text; save it as a tab-separated UTF-8 table") from None
    cells = [[cell.strip() for cell in line.split("\t")] for line in lines]
    filled = [(number, row) for number, row in enumerate(cells, start=1) if any(row)]
    if len(filled) < 2:
        raise BrainLDMError(f"{path}: has no rows; give a header line and one line a scan")
    header = filled[0][1]
    if len(set(header)) < len(header):
        raise BrainLDMError(f"{path}: a column name appears twice; rename or delete one")
    for number, row in filled[1:]:
        if len(row) != len(header):
            raise BrainLDMError(
                f"{path} line {number}: has {len(row)} cells and the header {len(header)}; separate cells by one tab "
                "and write n/a for what is missing"
            )
    return pd.DataFrame([row for _, row in filled[1:]], columns=header, index=[number for number, _ in filled[1:]])


def check_table(table: pd.DataFrame, source: Path, allow_missing: bool = True) -> pd.DataFrame:
    """A table of text with our column names, checked and typed; its index holds line numbers for messages.

    Raises:
        BrainLDMError: a key is missing or duplicate; a covariate is missing, not a number or impossible.
    """
    import pandas as pd

    table = table.copy()
    if "session_id" not in table:
        table.insert(1, "session_id", MISSING)
    wanted = [column for column in (*KEYS, *COLUMNS) if column not in table]
    if wanted:
        raise BrainLDMError(f"{source}: has no column {wanted[0]}; add it (n/a where a value is unknown)")
    first: dict[tuple[str, str], int] = {}
    for line, person, session in table[list(KEYS)].itertuples():
        for prefix, name, value in (("sub-", "participant_id", person), ("ses-", "session_id", session)):
            if not re.fullmatch(prefix + "[A-Za-z0-9]+", value) and (prefix == "sub-" or value != MISSING):
                raise BrainLDMError(
                    f"{source} line {line}: {name} {value!r} is missing or malformed; write {prefix} and letters or "
                    "digits" + (" (n/a if there are no sessions)" if prefix == "ses-" else "")
                )
        if (person, session) in first:
            raise BrainLDMError(
                f"{source} line {line}: ({person}, {session}) is already on line {first[person, session]}; "
                "keep one row a scan"
            )
        first[person, session] = line
    for column in (*COLUMNS, "intracranial_volume_ml"):
        if column not in table:
            table[column] = math.nan
            continue
        required = column in COLUMNS and not allow_missing
        values = [_cell(text, column, f"{source} line {line}", required) for line, text in table[column].items()]
        table[column] = pd.Series(values, index=table.index, dtype=object if column == "sex" else float)
    return table.reset_index(drop=True)


def _cell(text: str, column: str, where: str, required: bool) -> str | float:
    low, high = LIMITS.get(column, (0.0, 0.0))
    mend = "write F or M" if column == "sex" else f"write a number from {low:g} to {high:g}"
    if text == MISSING and not required:
        return MISSING if column == "sex" else math.nan
    if text in ("", MISSING):
        need = "this profile has no mask channels and needs it: fill it in or choose another" if required else mend
        raise BrainLDMError(f"{where}: {column} is missing; {need}" + ("" if required else ", or n/a if unknown"))
    if column == "sex":
        if text in ("F", "M"):
            return text
        raise BrainLDMError(f"{where}: sex {text!r} is unknown; {mend}")
    try:
        value = float(text)
    except ValueError:
        raise BrainLDMError(f"{where}: {column} {text!r} is not a number; {mend}") from None
    if not low <= value <= high or (value == 0 and column != "age_years"):
        raise BrainLDMError(f"{where}: {column} {text} is impossible; {mend}" + (", above 0" if low == 0 else ""))
    return value


def read_participants(path: Path, allow_missing: bool = True) -> pd.DataFrame:
    """A ``participants.tsv`` with our column names, every cell checked; see ``check_table`` for what is refused."""
    return check_table(read_table(path), Path(path), allow_missing)


AGE_RANGE = (44.0, 82.0)
AGE_PARENT = (57.0, 14.0)  # mean and SD before truncation: within AGE_RANGE they give about 60.2 +- 9.5
MALE_SHARE = 0.354
MEANS = ((1.300, 0.0265, 0.298), (0.9463, -0.0013, -0.0074), (1349.0, -0.88, 202.0))
"""Intercept and slopes on age (years) and sex (1: male) of ln(lateral ventricles ml), brain/ICV and ICV (ml)."""
RESIDUAL_SD = (0.430, 0.0177, 114.0)  # of ln(lateral ventricles ml), brain/ICV, ICV (ml)
RESIDUAL_CORRELATION = ((1.0, -0.072, 0.341), (-0.072, 1.0, -0.046), (0.341, -0.046, 1.0))


def expected_of_people(age_years: np.ndarray, male: np.ndarray, residual: np.ndarray | float = 0.0) -> np.ndarray:
    """ln(lateral ventricles ml), brain/ICV and ICV (ml), (3, N): regressions in 291 people of IXI, 40 to 86 years.

    Args:
        residual: what to add, in standard deviations about the regressions (``RESIDUAL_SD``): a number or (3, N).
    """
    spread = np.array(RESIDUAL_SD)[:, None] * residual
    return np.stack([base + years * age_years + of_men * male for base, years, of_men in MEANS]) + spread


def draw_covariates(n: int, rng: np.random.Generator) -> pd.DataFrame:
    """Covariates of ``n`` simulated people, with the joint statistics of 291 IXI people aged 40 to 86.

    ``expected_of_people`` and correlated Gaussian residuals. Ages are a normal distribution cut to 44-82 years, the
    range of the paper's cohort.
    """
    import pandas as pd

    age = _redraw(
        n, lambda k: rng.normal(*AGE_PARENT, size=(k, 1)), lambda a: (a >= AGE_RANGE[0]) & (a <= AGE_RANGE[1])
    )
    age = age[:, 0]
    male = (rng.random(n) < MALE_SHARE).astype(float)
    factor = np.linalg.cholesky(np.array(RESIDUAL_CORRELATION))
    # Beyond 2.75 SD nobody of the 291 lies, and brains would have to be warped out of shape.
    z = _redraw(n, lambda k: rng.standard_normal((k, 3)) @ factor.T, lambda z: np.abs(z) < 2.75)
    log_lateral, fraction, icv = expected_of_people(age, male, z.T)
    return pd.DataFrame(
        {
            "age_years": age.round(2),
            "sex": np.where(male == 1, "M", "F"),
            "ventricular_volume_ml": np.exp(log_lateral).round(3),
            "brain_volume_ml": (fraction * REFERENCE_ICV_ML).round(2),
            "intracranial_volume_ml": icv.round(2),
        }
    )


def _redraw(n: int, draw, accept) -> np.ndarray:
    """``n`` rows from ``draw`` of which every element is accepted."""
    rows = draw(n)
    while (bad := ~accept(rows).all(axis=1)).any():
        rows[bad] = draw(int(bad.sum()))
    return rows
