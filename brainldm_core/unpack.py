"""Archives unpacked safely: all of it under one new folder, or nothing.

A list of what came out, with sizes and checksums, lies in the folder, so that it can be verified without the archive.
"""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from .download import size_text
from .errors import BrainLDMError
from .records import atomic_folder, read_json, sha256, write_json

CONTENTS = ".contents.json"
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError, RuntimeError)


def unpack(archive: Path, folder: Path, checksum: str | None = None) -> None:
    """Unpack a tar (compressed or not) or zip into a new ``folder``; ``checksum`` of the archive goes into its list.

    Raises:
        BrainLDMError: it is neither or damaged; a member would land outside, is a link that points outside, or a
            device; it does not fit on the disk; ``folder`` holds something.
    """
    with atomic_folder(folder) as draft:
        try:
            if tarfile.is_tarfile(archive):
                _untar(archive, draft)
            elif zipfile.is_zipfile(archive):
                _unzip(archive, draft)
            else:
                raise BrainLDMError(f"{archive}: is no tar or zip; delete it and fetch it again")
        except _DAMAGED as error:
            raise BrainLDMError(f"{archive}: cannot be unpacked safely ({error}); nothing was; delete it") from None
        files = sorted(path for path in draft.rglob("*") if path.is_file() and not path.is_symlink())
        listed = {path.relative_to(draft).as_posix(): [path.stat().st_size, sha256(path)] for path in files}
        write_json(draft / CONTENTS, {"archive": checksum, "files": listed})


def was_unpacked(folder: Path, checksum: str | None) -> bool:
    """Whether the archive with that checksum was unpacked into ``folder``."""
    return (folder / CONTENTS).is_file() and read_json(folder / CONTENTS)["archive"] == checksum


def verify_unpacked(folder: Path) -> list[str]:
    """What is missing, truncated or changed among the files that were unpacked into ``folder``."""
    problems = []
    for name, (size, digest) in read_json(folder / CONTENTS)["files"].items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path}: missing")
        elif (found := path.stat().st_size) < size:
            problems.append(f"{path}: truncated: has {found} bytes instead of {size}")
        elif found > size or sha256(path) != digest:
            problems.append(f"{path}: changed since it was unpacked")
    return problems


def _check(archive: Path, folder: Path, members: list[tuple[str, int]], links: list[tuple[str, str]] = ()) -> None:
    """Refuse names (with sizes in bytes) and targets of links that lead out of ``folder``, and what does not fit."""
    for name, target in [(name, "") for name, _ in members] + list(links):
        inside = os.path.normpath(PurePosixPath(name).parent / target if target else name)
        rooted = any(part.startswith("/") or "\\" in part or part[1:2] == ":" for part in (name, target))
        if rooted or inside == ".." or inside.startswith("../"):
            raise BrainLDMError(f"{archive}: {name!r} would land outside its folder; nothing was unpacked, delete it")
    needed, free = sum(size for _, size in members), shutil.disk_usage(folder).free
    if needed > free:
        raise BrainLDMError(
            f"{folder.parent}: {size_text(needed)} are needed to unpack {archive.name} and {size_text(free)} free; "
            "free some, or choose another folder with --out"
        )


def _untar(archive: Path, folder: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise BrainLDMError("this Python unpacks no tar safely; install 3.11.4 or later")
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        links = [(member.name, member.linkname) for member in members if member.issym()]
        hard = [(member.linkname, 0) for member in members if member.islnk()]  # named from the root of the archive
        _check(archive, folder, [(member.name, member.size) for member in members] + hard, links)
        tar.extractall(folder, filter="data")


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        infos = file.infolist()
        _check(archive, folder, [(info.filename, info.file_size) for info in infos])
        for info in infos:
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise BrainLDMError(f"{archive}: {info.filename!r} is a link; nothing was unpacked, delete it")
        file.extractall(folder)
