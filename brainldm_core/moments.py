"""Mean and covariance of features that come in parts: FID of sets of any size, without a table of their features."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from .errors import BrainLDMError
from .features import Extractor
from .records import atomic_path

MERGED_ROWS = 256  # rows that are gathered before they are merged: a merge costs a pass over the covariance


@dataclass(frozen=True)
class FeatureMoments:
    """Number of rows, mean (F,) and covariance (F, F; over n - 1) of features, float64, and whose features they are."""

    n: int
    mean: torch.Tensor
    covariance: torch.Tensor
    extractor: str = ""
    sha256: str = ""

    def update(self, features: np.ndarray | torch.Tensor) -> FeatureMoments:
        """Those of these rows and of more rows (B, F)."""
        return self.merge(replace(_of_table(features), extractor=self.extractor, sha256=self.sha256))

    def merge(self, other: FeatureMoments) -> FeatureMoments:
        """Those of both sets of rows (Chan 1983): sums about each mean, and one between the means.

        Raises:
            BrainLDMError: the two are of different extractors or numbers of features.
        """
        check_same(self, other)
        n, shift = self.n + other.n, other.mean - self.mean
        scatter = (self.n - 1) * self.covariance + (other.n - 1) * other.covariance
        scatter = scatter + torch.outer(shift, shift) * (self.n * other.n / n)
        return replace(self, n=n, mean=self.mean + shift * (other.n / n), covariance=scatter / (n - 1))

    def root(self) -> torch.Tensor:
        """R (r, F) with R^T R the covariance: eigenvectors scaled; of n rows at most n - 1 directions are not noise."""
        values, vectors = torch.linalg.eigh(self.covariance)
        rank = min(self.n - 1, len(values))
        return (vectors[:, -rank:] * values[-rank:].clamp_min(0).sqrt()).T

    def save(self, path: Path) -> None:
        """Write them as ``.npz``: n, mu, sigma (the names of pytorch-fid's files), extractor and sha256; no pickle."""
        words = {"extractor": np.array(self.extractor), "sha256": np.array(self.sha256)}
        with atomic_path(path) as partial, open(partial, "wb") as file:
            np.savez(file, n=np.array(self.n), mu=self.mean.numpy(), sigma=self.covariance.numpy(), **words)


def _of_table(features: np.ndarray | torch.Tensor) -> FeatureMoments:
    """Moments of rows (B, F); the covariance of one row is 0."""
    rows = torch.as_tensor(features).detach().cpu().to(torch.float64)
    if rows.ndim != 2 or not len(rows) or not rows.isfinite().all():
        raise BrainLDMError(f"features of shape {tuple(rows.shape)}: a table (B, F) of finite numbers is needed")
    centred = rows - rows.mean(0)
    return FeatureMoments(len(rows), rows.mean(0), centred.T @ centred / max(1, len(rows) - 1))


def feature_moments(batches: Iterable[np.ndarray | torch.Tensor], extractor: Extractor | None = None) -> FeatureMoments:
    """Moments of features that come in parts (B, F), as from ``features.extract_batches``; no table is kept.

    Raises:
        BrainLDMError: there is no part, or one is no table of finite numbers.
    """
    found, waiting = None, []

    def merged() -> FeatureMoments:
        part = _of_table(torch.cat(waiting))
        return found.merge(part) if found else part

    for batch in batches:
        waiting.append(torch.as_tensor(batch))
        if sum(map(len, waiting)) >= MERGED_ROWS:
            found, waiting = merged(), []
    if waiting:
        found = merged()
    if found is None:
        raise BrainLDMError("features: there are none; give at least one part")
    return replace(found, extractor=extractor.name, sha256=extractor.sha256) if extractor else found


def check_same(one: FeatureMoments, two: FeatureMoments) -> None:
    """Refuse moments of features that do not compare."""
    if len(one.mean) != len(two.mean):
        raise BrainLDMError(f"features: {len(one.mean)} and {len(two.mean)} a volume; give both of one extractor")
    if one.sha256 and two.sha256 and one.sha256 != two.sha256:
        named = " and ".join(f"{part.extractor} ({part.sha256[:12]})" for part in (one, two))
        raise BrainLDMError(f"features of {named}: they do not compare; give both of one extractor")


def load_moments(path: Path) -> FeatureMoments:
    """Moments that ``FeatureMoments.save`` wrote.

    Raises:
        BrainLDMError: the file is missing, or holds something else.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            words = {name: str(file[name]) for name in ("extractor", "sha256")}
            n, mean, covariance = int(file["n"]), file["mu"], file["sigma"]
    except FileNotFoundError:
        raise BrainLDMError(f"{path}: no such file; write it with FeatureMoments.save") from None
    except (ValueError, KeyError, TypeError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise BrainLDMError(f"{path}: holds no moments of features ({type(error).__name__}); write it anew") from None
    width, kinds = mean.shape[:1], {mean.dtype, covariance.dtype}
    fits = mean.ndim == 1 and covariance.shape == width * 2 and kinds == {np.dtype(np.float64)} and n >= 1
    if not (fits and np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise BrainLDMError(f"{path}: holds no moments of features (shapes or values do not fit); write it anew")
    return FeatureMoments(n, torch.from_numpy(mean), torch.from_numpy(covariance), **words)
