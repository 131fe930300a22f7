"""Do generated brains differ from real ones in what can be measured? Effect sizes, tests of many quantities, groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .conditioning import ASKED_AND_MEASURED, agreement
from .dataset import LABELS
from .errors import BrainLDMError
from .morphometry import segment

if TYPE_CHECKING:
    import pandas as pd

SPLIT_MM = (0.0, -18.0, 10.0)  # left from right, back from front, lower from upper, in MNI mm
FEW = 10  # volumes of a group below which it has no correlation


def cohens_d(one: np.ndarray, two: np.ndarray) -> tuple[float, float, float]:
    """Difference of means (one less two) in pooled standard deviations, and its 95 % interval (Hedges and Olkin 1985).

    Raises:
        BrainLDMError: fewer than two values of either.
    """
    one, two = np.asarray(one, float), np.asarray(two, float)
    n, m = len(one), len(two)
    if min(n, m) < 2:
        raise BrainLDMError(f"{n} and {m} values: an effect size needs at least 2 of each")
    pooled = np.sqrt(((n - 1) * one.var(ddof=1) + (m - 1) * two.var(ddof=1)) / (n + m - 2))
    gap = float(one.mean() - two.mean())
    d = gap / float(pooled) if pooled > 0 else 0.0 if gap == 0 else float(np.sign(gap) * np.inf)
    half = 1.96 * np.sqrt((n + m) / (n * m) + d**2 / (2 * (n + m)))
    return d, d - float(half), d + float(half)


def false_discovery(p_values: Sequence[float]) -> np.ndarray:
    """Adjusted p-values (N,) of Benjamini and Hochberg 1995: among those below q, a share q is expected to be false."""
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum.accumulate(scaled[::-1])[::-1].clip(max=1)
    return adjusted


def compare_sets(samples: pd.DataFrame, real: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """A row a quantity (column -> its name): means, Cohen's d of samples less real, Kolmogorov-Smirnov distance, p, q.

    q is p after false-discovery control over all quantities.
    """
    import pandas as pd
    from scipy.stats import ks_2samp

    rows = []
    for column, name in columns.items():
        one, two = (table[column].dropna().to_numpy(float) for table in (samples, real))
        d, low, high = cohens_d(one, two)
        test = ks_2samp(one, two)
        means = {"samples": one.mean(), "real": two.mean()}
        rows.append(
            {"quantity": name, **means, "d": d, "low": low, "high": high, "ks": test.statistic, "p": test.pvalue}
        )
    table = pd.DataFrame(rows).set_index("quantity")
    return table.assign(q=false_discovery(table["p"]), n_samples=len(samples), n_real=len(real))


def that_differ(table: pd.DataFrame, rate: float = 0.05) -> str:
    """How many quantities of ``compare_sets`` differ at a false-discovery rate, and the names of up to three."""
    names = list(table.index[table["q"] < rate])
    more = "; …" if len(names) > 3 else ""
    return f"{len(names)} of {len(table)}" + (f" ({'; '.join(names[:3])}{more})" if names else "")


def regional_volumes(volumes: np.ndarray, affine: Any) -> pd.DataFrame:
    """Volumes (ml) of regions of volumes (N, D, H, W) in MNI space, from ``morphometry.segment``: a row a volume.

    CSF, grey and white matter and lateral ventricles, left and right of x = 0; parenchyma before and behind y = -18 mm,
    above and below z = 10 mm.
    """
    import pandas as pd

    affine = np.asarray(affine, float)
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    grid = np.meshgrid(*(np.arange(side) for side in np.shape(volumes)[1:]), indexing="ij", sparse=True)
    # A voxel on the plane belongs half to either side.
    sides = [0.5 + 0.5 * np.sign(affine[a, a] * grid[a] + affine[a, 3] - SPLIT_MM[a]) for a in range(3)]
    rows = []
    for volume in volumes:
        labels = segment(volume, affine)
        tissue = np.isin(labels, (2, 3))
        row = {}
        for value in (1, 2, 3, 4):
            here = labels == value
            right = float((here * sides[0]).sum())
            row |= {f"{LABELS[value]}, left": float(here.sum()) - right, f"{LABELS[value]}, right": right}
        for front, before in (("front", sides[1]), ("back", 1 - sides[1])):
            for upper, above in (("upper", sides[2]), ("lower", 1 - sides[2])):
                row[f"brain, {front} {upper}"] = float((tissue * before * above).sum())
        rows.append({name: round(voxels * voxel_ml, 4) for name, voxels in row.items()})
    return pd.DataFrame(rows)


def by_age_and_sex(table: pd.DataFrame, edges: Sequence[float] = (44, 55, 65, 75, 120)) -> pd.DataFrame:
    """Requested against measured ventricles and brain (ml) by age band (years) and sex: n, mean error, bias, and r.

    Groups of fewer than 10 volumes have no r. Ages below the first edge are in the first band.
    """
    import pandas as pd

    labels = [
        f"below {edges[1]:g}",
        *(f"{low:g} to {high:g}" for low, high in zip(edges[1:], edges[2:-1], strict=False)),
    ]
    labels.append(f"{edges[-2]:g} and more")
    band = pd.cut(table["age_years"].astype(float), [-np.inf, *edges[1:-1], np.inf], right=False, labels=labels)
    rows = []
    for (age, sex), group in table.groupby([band, "sex"], observed=True):
        row = {"age (years)": age, "sex": sex, "n": len(group)}
        for name, (asked, found) in ASKED_AND_MEASURED.items():
            fit = agreement(group[asked], group[found], draws=1)
            row |= {f"{name}, mean error (ml)": fit.mae, f"{name}, bias (ml)": fit.bias}
            row[f"{name}, r"] = fit.r if len(group) >= FEW else np.nan
        rows.append(row)
    return pd.DataFrame(rows).set_index(["age (years)", "sex"])
