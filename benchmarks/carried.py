"""What travels to a GPU machine without network, and back: the people of a cohort, and files cut into pieces.

    python benchmarks/carried.py LABELS --profile demo --out .carried/anatomies.zip

makes the anatomies of a folder of label maps (``data_manifests/synthseg-labels.yaml``; without LABELS, the template)
and packs them: tissue maps rounded to 1/63, compressed, cut to the head. 20 people at 1 mm are about 31 MB, where 300
finished volumes of 2 mm are 45 MB and SimpleITK, which places label maps, is 50 MB. The flow of the ventricles is made
anew from the maps. One subject simulated from rounded and from full maps had the same label in 99.9 % of its voxels and
ventricles of 40.4 and 40.3 ml; its noise is another draw.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import zipfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from brainldm_core.anatomy import Anatomy, make_anatomy
from brainldm_core.errors import BrainLDMError
from brainldm_core.profiles import load_profile
from brainldm_core.records import atomic_path
from brainldm_core.simulate import working_factor

LEVELS = 63
FACTS = "facts.json"


def rounded(anatomy: Anatomy) -> tuple[np.ndarray, dict[str, Any]]:
    """Maps as whole numbers (5, D, H, W), int8, cut to the head, and their place: all tissue, three parts, texture."""
    total = anatomy.maps[:4].sum(0)
    maps = np.round(LEVELS * np.concatenate([total[None], anatomy.maps[1:]])).astype(np.int8)
    support = np.argwhere(maps.any(0))
    first, last = support.min(0), support.max(0) + 1
    origin = np.array(anatomy.origin_mm) + anatomy.spacing_mm * first
    place = {"origin_mm": origin.tolist(), "spacing_mm": anatomy.spacing_mm}
    return maps[(slice(None), *map(slice, first, last))], place


def restored(name: str, maps: np.ndarray, place: dict[str, Any]) -> Anatomy:
    """The anatomy of ``rounded`` maps, with the ventricles' flow made from them."""
    total, grey, white, lateral, texture = maps.astype(np.float32) / LEVELS
    csf = np.clip(total - grey - white - lateral, 0, 1)
    affine = np.diag([place["spacing_mm"]] * 3 + [1.0])
    affine[:3, 3] = place["origin_mm"]
    return make_anatomy(name, np.stack([csf, grey, white, lateral, texture]), affine, place["spacing_mm"])


def pack(sources: Iterable[tuple[str, Anatomy]], out: Path, cohort: str) -> Path:
    """Write anatomies into one file."""
    with atomic_path(out) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_LZMA) as archive:
        places = {}
        for name, anatomy in sources:
            maps, places[name] = rounded(anatomy)
            buffer = io.BytesIO()
            np.save(buffer, maps)
            archive.writestr(f"{name}.npy", buffer.getvalue())
        archive.writestr(FACTS, json.dumps({"cohort": cohort, "levels": LEVELS, "anatomies": places}))
    return Path(out)


def facts(path: Path) -> dict[str, Any]:
    """Cohort and anatomies of a packed file.

    Raises:
        BrainLDMError: there is none, or it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(FACTS))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise BrainLDMError(f"{path}: no packed anatomies ({error}); make them with benchmarks/carried.py") from None


def unpack(path: Path, folder: Path, workers: int) -> list[str]:
    """Write the packed anatomies where a cohort in the making looks for them; return their names."""
    found = facts(path)["anatomies"]
    jobs = [(path, name, place, folder / f"{name}-{place['spacing_mm']:g}mm.npz") for name, place in found.items()]
    missing = [job for job in jobs if not job[-1].exists()]
    if missing:
        with ProcessPoolExecutor(min(workers, len(missing)), get_context("spawn")) as pool:
            list(pool.map(_unpack_one, missing))
    return list(found)


def _unpack_one(job: tuple[Path, str, dict[str, Any], Path]) -> None:
    path, name, place, out = job
    with zipfile.ZipFile(path) as archive:
        maps = np.load(io.BytesIO(archive.read(f"{name}.npy")))
    restored(name, maps, place).save(out)


def write_tar(out: Path, files: dict[str, Path]) -> int:
    """Write files under given names into one archive; return its bytes."""
    with atomic_path(out) as partial, tarfile.open(partial, "w") as archive:
        for name, path in sorted(files.items()):
            archive.add(path, name)
    return out.stat().st_size


def write_pieces(path: Path, folder: Path, limit: int) -> list[Path]:
    """A file cut into ``NAME.000``, ``NAME.001`` and so on, of at most ``limit`` bytes; ``cat NAME.*`` joins them."""
    pieces = []
    with open(path, "rb") as file:
        while content := file.read(limit):
            pieces.append(folder / f"{path.name}.{len(pieces):03d}")
            with atomic_path(pieces[-1]) as partial:
                partial.write_bytes(content)
    return pieces


def main() -> None:
    from brainldm_core.anatomies import ensure_anatomies

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path, nargs="?", help="folder of label maps; default: the template alone")
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/anatomies"), help="where unpacked anatomies are kept")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    grid = load_profile(options.profile).grid
    spacing = grid.spacing_mm / working_factor(grid)
    paths = ensure_anatomies(options.labels, options.work, spacing, options.workers)
    cohort = "atlas" if options.labels is None else "anatomies"
    pack(((name, Anatomy.load(path)) for name, path in paths.items()), options.out, cohort)
    print(f"{options.out}: {len(paths)} anatomies, {options.out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
