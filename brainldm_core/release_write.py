"""Writing a release: volumes are compressed, measured and hashed, in other processes if the sampler should not wait.

A volume is gzip by ``isal``, which takes a fraction of zlib's time for a file of the same size. Any reader opens
it. Compressors differ in their bytes by version, so that a release names its own, and keeps checksums of the
uncompressed volumes too.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import nifti_image
from .errors import BrainLDMError
from .launch import cores
from .morphometry import EMPTY, measure
from .records import atomic_path, write_json

LEVEL = 2  # of isal's 0 to 3: as small as 3 in half the time


@dataclass(frozen=True)
class Batch:
    """Volumes (B, D, H, W) uint8 of a batch, with where each goes and what it was asked for."""

    marker: Path
    paths: list[Path]
    rows: list[dict[str, Any]]
    volumes: np.ndarray
    affine: Any
    made_on: str
    seconds: float


def compression() -> dict[str, Any]:
    """What decides the bytes of a compressed volume besides its voxels."""
    return {"Library": "isal", "Version": version("isal"), "Level": LEVEL}


def encode(volume: np.ndarray, affine: Any) -> tuple[bytes, bytes]:
    """A volume (D, H, W) uint8 as ``.nii.gz`` and as ``.nii``; intensities are k / 255. No name and no time inside."""
    from isal import isal_zlib

    header = nifti_image(volume, affine, slope=1 / 255).header.copy()
    header["vox_offset"] = 352  # after the header and four bytes that say that nothing follows it
    plain = header.binaryblock + bytes(4) + _first_axis_fastest(volume)
    return isal_zlib.compress(plain, level=LEVEL, wbits=31), plain


def _first_axis_fastest(volume: np.ndarray) -> bytes:
    """Voxels in the order of NIfTI; slice by slice, since a slice fits in the cache and a volume does not."""
    turned = np.empty(volume.shape[::-1], np.uint8)
    for row in range(volume.shape[1]):
        turned[:, row] = volume[:, row].T
    return turned.tobytes()


def voxel_digest(content: bytes) -> str:
    """SHA-256 of a compressed volume's ``.nii``, whoever compressed it."""
    return hashlib.sha256(gzip.decompress(content)).hexdigest()


def measured(plain: bytes) -> dict[str, float]:
    """Morphometry (ml) of a ``.nii`` as a reader finds it: rounding may carry a voxel over a threshold."""
    import nibabel as nib

    image = nib.Nifti1Image.from_bytes(plain)
    return measured_row(np.asarray(image.dataobj, dtype=np.float32), image.affine)


def measured_row(volume: np.ndarray, affine: Any) -> dict[str, float]:
    """Morphometry (ml) of a volume (D, H, W) by the columns of ``samples.measure_all``.

    On one thread everywhere, so that the number of writers cannot change a digit.
    """
    with one_thread():
        found = measure(volume, affine)
    return {f"measured_{name}": round(float(found[name]), 2) for name in EMPTY}


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch, where it is in use, compute on one thread."""
    if (torch := sys.modules.get("torch")) is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_batch(batch: Batch) -> int:
    """Write, measure and hash the volumes of a batch; its marker is written last and vouches for them.

    Raises:
        BrainLDMError: the disk is full or the folder cannot be written.
    """
    start, entries = time.perf_counter(), []
    for path, row, volume in zip(batch.paths, batch.rows, batch.volumes, strict=True):
        packed, plain = encode(volume, batch.affine)
        with atomic_path(path) as partial:
            partial.write_bytes(packed)
        digests = {"sha256": hashlib.sha256(packed).hexdigest(), "voxels": hashlib.sha256(plain).hexdigest()}
        entries.append({"row": row | measured(plain)} | digests)
    facts = {"made_on": batch.made_on, "seconds": round(batch.seconds, 3)}
    write_json(batch.marker, facts | {"writing": round(time.perf_counter() - start, 3), "volumes": entries})
    return len(entries)


def usual_workers(device: str) -> int:
    """Writers for a device: none on a CPU, which they would only share; on a GPU one a core, at most eight."""
    return 0 if device == "cpu" else max(1, min(8, cores() - 1))


@contextmanager
def pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of one thread each that end with this one, however it ends."""
    executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin)
    try:
        with _quiet_threads():
            yield executor
    except BrokenProcessPool:
        raise BrainLDMError(
            "a writer process died, perhaps for want of memory; start again to go on, with fewer --workers"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


@contextmanager
def writing(workers: int, done: Callable[[Path], None]) -> Iterator[Callable[[Batch], None]]:
    """Give a function that writes batches: here, or in ``workers`` processes while the next ones are drawn.

    ``done(marker)`` is called for each batch that is on the disk. At most two batches more than there are workers wait.
    """
    if not workers:
        yield lambda batch: (write_batch(batch), done(batch.marker))[1]
        return
    waiting: dict[Future, Path] = {}

    def collect(most: int) -> None:
        while len(waiting) > most:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                marker = waiting.pop(future)
                future.result()
                done(marker)

    def put(batch: Batch) -> None:
        collect(workers + 1)
        waiting[executor.submit(write_batch, batch)] = batch.marker

    with pool(workers) as executor:
        yield put
        collect(0)


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Processes started meanwhile have one thread each; read when their numerical libraries are imported."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _begin() -> None:
    """First act of a writer: leave Ctrl-C to the parent, and follow it when it dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow() -> None:
        connection.wait([parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
