"""Files that manifests list: fetched with resume, checked before they get their name, checked again on demand.

A download is called ``.partial-<name>`` until its size and checksum are those of the manifest.
"""

from __future__ import annotations

import hashlib
import os
import re
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BrainLDMError

if TYPE_CHECKING:
    from .manifests import File, Manifest

_HASHES = {
    "md5": lambda size: hashlib.md5(usedforsecurity=False),
    "sha1": lambda size: hashlib.sha1(usedforsecurity=False),
    "sha256": lambda size: hashlib.sha256(),
    "git": lambda size: hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False),
}


def data_folder() -> Path:
    """Where foreign files lie: the folder in BRAINLDM_DATA, else ``~/.cache/brainldm``."""
    return Path(os.environ.get("BRAINLDM_DATA") or Path.home() / ".cache" / "brainldm")


def digest(path: Path, kind: str) -> str:
    """Checksum of a file as hexadecimal text: ``md5``, ``sha1``, ``sha256``, or ``git`` (SHA-1 of a git blob)."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: _HASHES[kind](os.fstat(file.fileno()).st_size)).hexdigest()


def fault(file: File, path: Path, hashed: bool = True) -> str | None:
    """What is wrong with the file at ``path``: missing, truncated, too long or changed; None if nothing is."""
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if file.bytes is not None and size != file.bytes:
        return f"{'truncated' if size < file.bytes else 'too long'}: has {size} bytes instead of {file.bytes}"
    if hashed and file.checksum is not None:
        kind, _, wanted = file.checksum.partition(":")
        if (found := digest(path, kind)) != wanted:
            return f"changed: {kind} is {found} instead of {wanted}"
    return None


def unpacked(file: File, folder: Path) -> Path:
    """Folder that an archive of a manifest is unpacked into: its name without endings such as ``.tar.gz``."""
    return folder / re.sub(r"(\.tar)?\.[a-z0-9]+$", "", file.name)


def fetched(name: str) -> Path | None:
    """Folder of a data set in ``data_folder()`` if all its files are there, by name and size; else None."""
    from .manifests import load_manifest

    manifest, folder = load_manifest(name), data_folder() / name
    there = (
        unpacked(file, folder).is_dir() if file.unpack else fault(file, folder / file.name, hashed=False) is None
        for file in manifest.files
    )
    return folder if manifest.files and all(there) else None


def fetch(name: str, out: Path | None = None, mirror: str | None = None, agree: bool = False) -> Path:
    """Get the files of a manifest that are not there yet, and return their folder; archives are unpacked and removed.

    Args:
        out: the folder; default ``data_folder() / name``.
        mirror: a folder or an http(s) address that holds the files under their names; default: each file's own address.
        agree: the terms that the manifest names are accepted.

    Raises:
        BrainLDMError: the data must be had otherwise; terms are not accepted; a file cannot be had, is another one
            than the manifest says, or does not fit on the disk; an archive is unsafe.
    """
    from .manifests import load_manifest
    from .runner import locked

    manifest, folder = load_manifest(name), Path(out or data_folder() / name)
    _check_terms(manifest, agree)
    addresses = [_address(file, mirror) for file in manifest.files]
    try:
        with locked(folder / ".lock"):
            for file, address in zip(manifest.files, addresses, strict=True):
                _ensure(file, folder, address)
    except OSError as error:
        raise BrainLDMError(
            f"{error.filename or folder}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from None
    return folder


def _check_terms(manifest: Manifest, agree: bool) -> None:
    if manifest.kind == "simulated":
        raise BrainLDMError(f"{manifest.name}: is made, not fetched; brainldm prepare {manifest.name}")
    if not manifest.files:
        pages = ", ".join(source.url for source in manifest.source)
        raise BrainLDMError(f"{manifest.name}: cannot be fetched. {manifest.obtain} ({pages})")
    if manifest.agreement and not agree:
        raise BrainLDMError(
            f"{manifest.name}: is given under the terms of {manifest.agreement} ({manifest.licence}); read and accept "
            "them, then add --agree"
        )


def _address(file: File, mirror: str | None) -> str:
    """Address or path to read a file from."""
    if mirror is None:
        return file.url
    if re.match("https?://", mirror):
        return f"{mirror.rstrip('/')}/{urllib.parse.quote(file.name)}"
    if not Path(mirror).is_dir():
        raise BrainLDMError(f"--from {mirror}: no such folder; give one, or an address that begins with http")
    return str(Path(mirror) / file.name)


def _ensure(file: File, folder: Path, address: str) -> None:
    """Have one file under its name, or its archive unpacked."""
    from .records import check_free
    from .unpack import unpack, was_unpacked

    target = folder / file.name
    if file.unpack:
        if was_unpacked(unpacked(file, folder), file.checksum):
            return
        check_free(unpacked(file, folder))  # before hours of downloading
    if not target.exists():
        _get(file, target, address)
    elif (wrong := fault(file, target)) is not None:
        raise BrainLDMError(f"{target}: {wrong}; delete it, then fetch again")
    if file.unpack:
        unpack(target, unpacked(file, folder), file.checksum)
        target.unlink()


def _get(file: File, target: Path, address: str) -> None:
    """Download a file, check it, and give it its name."""
    from .download import download

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".partial-{target.name}")
    if file.checksum is None:
        partial.unlink(missing_ok=True)  # nothing would show that two parts belong together
    download(address, partial, file.bytes)
    if (wrong := fault(file, partial)) is not None:
        partial.unlink()
        raise BrainLDMError(
            f"{address}: {file.name} is not the file of the manifest ({wrong}) and was thrown away; fetch again, or "
            "elsewhere with --from DIR_OR_URL"
        )
    os.replace(partial, target)


def verify(name: str, folder: Path | None = None) -> list[str]:
    """Read every file of a data set again; list what is missing, truncated or changed.

    Args:
        folder: where they lie; default ``data_folder() / name``.

    Raises:
        BrainLDMError: the manifest lists no files, or there is no such folder.
    """
    from .manifests import load_manifest
    from .unpack import CONTENTS, verify_unpacked

    manifest, folder = load_manifest(name), Path(folder or data_folder() / name)
    if not manifest.files and not manifest.torrent:
        raise BrainLDMError(f"{name}: its manifest lists no files; there is nothing to compare a copy with")
    if not folder.is_dir():
        raise BrainLDMError(f"{folder}: no such folder; name that of the data: brainldm data verify {name} FOLDER")
    if manifest.torrent:
        from .torrent import verify_torrent

        return verify_torrent(folder, manifest.torrent)
    problems = []
    for file in manifest.files:
        path, contents = folder / file.name, unpacked(file, folder)
        if file.unpack and not path.exists() and (contents / CONTENTS).is_file():
            problems += verify_unpacked(contents)
        elif (wrong := fault(file, path)) is not None:
            begun = path.with_name(f".partial-{path.name}")
            wrong += f" ({begun.stat().st_size} bytes of it came)" if wrong == "missing" and begun.exists() else ""
            problems.append(f"{path}: {wrong}")
    return problems
