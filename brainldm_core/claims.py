"""Work that processes share: a piece is claimed by a lock on one byte of a file, and the lock dies with its holder.

So several processes take what is left of the same list, a killed one blocks nobody, and nothing is done twice. Nodes of
a cluster see each other's claims where their shared file system has locks.
"""

from __future__ import annotations

import errno
import fcntl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .runner import NO_LOCKS


@contextmanager
def open_claims(path: Path) -> Iterator[IO[bytes]]:
    """The file of claims, open; once in a process at a time, for closing it anywhere gives all claims back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        yield file


def take(file: IO[bytes], piece: int, wait: bool = False) -> bool:
    """Claim a piece; whether it is ours now. With ``wait``, wait until it is.

    Where files cannot be locked, warn: then start one process at a time.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, piece)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in NO_LOCKS:
            raise
        warnings.warn(f"{file.name}: files cannot be locked here; start one brainldm at a time", stacklevel=2)
    return True


def give_back(file: IO[bytes], piece: int) -> None:
    """Let others have a piece."""
    try:
        fcntl.lockf(file, fcntl.LOCK_UN, 1, piece)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
