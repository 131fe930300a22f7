"""What ``brainldm evaluate`` keeps between starts, in pieces, and how it writes what it found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .evaluation import Row
from .features import Extractor, extract
from .nifti_sets import NiftiSet
from .records import atomic_path, read_json, settings_hash, write_json

CHUNK = 32  # volumes after which features are kept on disk


@dataclass(frozen=True)
class Work:
    """What is kept between starts, in ``folder``; a change of file, scaling or extractor gives other names."""

    folder: Path
    extractor: Extractor

    def rows(self, what: str, volumes: NiftiSet, make: Callable[[np.ndarray], dict[str, np.ndarray]]) -> dict:
        """Arrays of N rows, made in chunks of volumes (n, D, H, W) and kept."""
        parts = []
        for begin in range(0, len(volumes), CHUNK):
            chunk = volumes.take(slice(begin, begin + CHUNK))
            path = self.folder / what / f"{settings_hash([chunk.key, self.extractor.sha256])[:20]}.npz"
            if not path.exists():
                made = make(chunk[:])
                with atomic_path(path) as partial_file, open(partial_file, "wb") as file:
                    np.savez(file, **made)
            with np.load(path, allow_pickle=False) as content:
                parts.append(dict(content))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def features(self, volumes: NiftiSet) -> np.ndarray:
        """Features (N, F) of a set."""
        return self._seen(volumes)["features"]

    def hashes(self, volumes: NiftiSet) -> np.ndarray:
        """A hash (N,) of the voxels of each volume: equal for volumes that are equal voxel by voxel."""
        return self._seen(volumes)["hashes"]

    def _seen(self, volumes: NiftiSet) -> dict[str, np.ndarray]:
        def make(chunk: np.ndarray) -> dict[str, np.ndarray]:
            from hashlib import blake2b

            digests = [blake2b(volume.tobytes(), digest_size=16).hexdigest() for volume in chunk]
            return {"features": extract(self.extractor, chunk), "hashes": np.array(digests)}

        return self.rows("features", volumes, make)

    def kept(self, what: str, key: Any, make: Callable[[], Row]) -> Row:
        """A row, from before or made; ``key`` is all that it depends on."""
        path = self.folder / f"{what}-{settings_hash(key)[:16]}.json"
        if not path.exists():
            write_json(path, make())
        return read_json(path)


def write_table(path: Path, rows: Any) -> None:
    """Rows, or a table, as CSV; what is unknown is empty."""
    import pandas as pd

    with atomic_path(path) as partial_file:
        pd.DataFrame(rows).to_csv(partial_file, index=False)


def finite(content: Any) -> Any:
    """The same with null for numbers that are not finite, as JSON needs it."""
    if isinstance(content, dict):
        return {str(key): finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    if isinstance(content, np.ndarray | np.generic):
        return finite(content.tolist())
    if isinstance(content, float):
        return content if np.isfinite(content) else None
    return content
