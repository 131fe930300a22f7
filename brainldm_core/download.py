"""One file from an address or a folder into a partial file, going on after the bytes that are there."""

from __future__ import annotations

import http.client
import io
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from . import __version__
from .errors import BrainLDMError

BLOCK = 2**20  # bytes
TIMEOUT_S = 60.0  # without a byte


def size_text(size: int) -> str:
    """A size in bytes as words, in decimal units."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"


def download(address: str, partial: Path, expected: int | None = None) -> None:
    """Bring ``partial`` to the whole of what is at ``address``, an http(s) address or a path.

    Only the rest is asked for, with a Range request; a server that sends everything makes it start afresh.

    Args:
        expected: size of the whole in bytes, where it is known.

    Raises:
        BrainLDMError: nothing can be had there, it has another size, it does not fit on the disk, or it ended early
            (``partial`` is kept then).
    """
    have = partial.stat().st_size if partial.exists() else 0
    if expected is not None and have == expected:
        return
    with _open(address, have if expected is None or have < expected else 0) as (source, start, size):
        if expected is not None and size not in (None, expected):
            raise BrainLDMError(
                f"{address}: has {size} bytes and the manifest says {expected}: it is another file; get it elsewhere "
                "with --from DIR_OR_URL"
            )
        size = expected if size is None else size
        free = shutil.disk_usage(partial.parent).free
        if size is not None and size - start > free:
            raise BrainLDMError(
                f"{partial.parent}: {size_text(size - start)} are needed and {size_text(free)} free; free some, or "
                "choose another folder with --out"
            )
        have = _copy(source, start, size, partial, address)
    if size is not None and have < size:
        raise _broken(address, f"ended after {have} of {size} bytes")


def _copy(source: BinaryIO, start: int, size: int | None, partial: Path, address: str) -> int:
    """Write what comes after the first ``start`` bytes of ``partial``, with a bar on a terminal; return its size."""
    from tqdm import tqdm

    name = address.rpartition("/")[2]
    with (
        open(partial, "r+b" if start else "wb") as file,
        tqdm(desc=name, total=size, initial=start, unit="B", unit_scale=True, disable=None, leave=False) as bar,
    ):
        file.seek(start)
        file.truncate()
        while True:
            try:
                block = source.read1(BLOCK)
            except (OSError, http.client.HTTPException) as error:
                raise _broken(address, f"broke off after {file.tell()} bytes ({error})") from None
            if not block:
                return file.tell()
            file.write(block)
            bar.update(len(block))


def _broken(address: str, how: str) -> BrainLDMError:
    return BrainLDMError(f"{address}: {how}; what came is kept, start again to go on")


@contextmanager
def _open(address: str, start: int) -> Iterator[tuple[BinaryIO, int, int | None]]:
    """What to read, the byte of the whole at which it starts (0 if it must start afresh), and the size of the whole."""
    if re.match("https?://", address):
        source, start, size = _request(address, start)
    else:
        try:
            source = open(address, "rb")
        except OSError as error:
            raise BrainLDMError(f"{address}: cannot be read ({error.strerror}); look at the folder of --from") from None
        size = source.seek(0, io.SEEK_END)
        start = source.seek(start if start <= size else 0)
    with source:
        yield source, start, size


def _request(address: str, start: int) -> tuple[BinaryIO, int, int | None]:
    """Ask a server for what follows the first ``start`` bytes."""
    headers = {"User-Agent": f"brainldm/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        answer = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        error.close()
        if error.code == 416 and start:  # nothing follows: all of it is there, or it is another file
            if total and int(total[1]) == start:
                return io.BytesIO(), start, start
            return _request(address, 0)
        raise BrainLDMError(
            f"{address}: the server answers {error.code} ({error.reason}); try later, or elsewhere with "
            "--from DIR_OR_URL"
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise BrainLDMError(
            f"{address}: cannot be reached ({reason}); try later, or elsewhere with --from DIR_OR_URL"
        ) from None
    if answer.status == 206:
        sent = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if sent and int(sent[1]) == start:
            return answer, start, None if sent[2] == "*" else int(sent[2])
        answer.close()
        return _request(address, 0)
    return answer, 0, answer.length
