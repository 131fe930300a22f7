"""A local copy of what a torrent shares, checked against the pieces of its .torrent file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import BrainLDMError


def _decode(data: bytes, at: int = 0) -> tuple[Any, int]:
    """Bencoded value at a place, and the place after it; dictionaries also hold the span of ``info`` as ``(info)``."""
    kind = data[at : at + 1]
    if kind == b"i":
        end = data.index(b"e", at)
        return int(data[at + 1 : end]), end + 1
    if kind in (b"l", b"d"):
        items, spans, at = [], [], at + 1
        while data[at : at + 1] != b"e":
            item, end = _decode(data, at)
            items.append(item)
            spans.append((at, end))
            at = end
        if kind == b"l":
            return items, at + 1
        found = dict(zip(items[::2], items[1::2], strict=True))
        if b"info" in found:
            found[b"(info)"] = spans[items.index(b"info") + 1]
        return found, at + 1
    colon = data.index(b":", at)
    end = colon + 1 + int(data[at:colon])
    if not colon < end <= len(data):
        raise ValueError("a text is cut off")
    return data[colon + 1 : end], end


def read_torrent(path: Path, info_hash: str) -> tuple[str, int, list[bytes], list[tuple[str, int]]]:
    """Name of a torrent, size of its pieces in bytes, their SHA-1, and its files with sizes in bytes.

    Raises:
        BrainLDMError: it is no .torrent file, or one with another info-hash (SHA-1 of its ``info``).
    """
    try:
        data = path.read_bytes()
        found, _ = _decode(data)
        info, (start, end) = found[b"info"], found[b"(info)"]
        hashes, size, name = info[b"pieces"], info[b"piece length"], info[b"name"].decode()
        entries = info.get(b"files") or [{b"path": [], b"length": info[b"length"]}]
        files = [("/".join(part.decode() for part in entry[b"path"]), entry[b"length"]) for entry in entries]
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise BrainLDMError(f"{path}: is no .torrent file ({error!r}); download it again from its page") from None
    digest = hashlib.sha1(data[start:end], usedforsecurity=False).hexdigest()
    if digest != info_hash:
        raise BrainLDMError(f"{path}: is of another torrent ({digest} instead of {info_hash}); get the right one")
    return name, size, [hashes[at : at + 20] for at in range(0, len(hashes), 20)], files


def _pieces(files: list[tuple[Path, int]], size: int) -> Iterator[list[tuple[Path, int, int]]]:
    """For each piece the parts of files that it is made of: path, first byte, number of bytes."""
    piece, room = [], size
    for path, length in files:
        at = 0
        while at < length:
            taken = min(room, length - at)
            piece.append((path, at, taken))
            at, room = at + taken, room - taken
            if not room:
                yield piece
                piece, room = [], size
    if piece:
        yield piece


def verify_torrent(folder: Path, info_hash: str) -> list[str]:
    """List what is missing, truncated or changed in a copy, given the .torrent file in the same folder.

    A piece that spans several files and is wrong is laid to each of them; one that a missing file shares is not read.

    Raises:
        BrainLDMError: there is no .torrent file in ``folder``, or it is of another torrent.
    """
    from tqdm import tqdm

    torrents = sorted(folder.glob("*.torrent"))
    if not torrents:
        raise BrainLDMError(f"{folder}: has no .torrent file to compare with; put the one from the data's page there")
    name, size, hashes, listed = read_torrent(torrents[0], info_hash)
    root = folder / name if (folder / name).exists() or not listed[0][0] else folder
    files = [(root / relative if relative else root, length) for relative, length in listed]
    problems: dict[Path, str] = {}
    for path, length in files:
        found = path.stat().st_size if path.is_file() else None
        if found is None:
            problems[path] = "missing"
        elif found != length:
            kind = "truncated" if found < length else "too long"
            problems[path] = f"{kind}: has {found} bytes instead of {length}"
    incomplete = set(problems)
    bar = tqdm(hashes, unit="piece", disable=None, leave=False)
    for wanted, parts in zip(bar, _pieces(files, size), strict=True):
        if any(path in incomplete for path, _, _ in parts):
            continue
        found = hashlib.sha1(usedforsecurity=False)
        for path, at, length in parts:
            with open(path, "rb") as file:
                file.seek(at)
                found.update(file.read(length))
        if found.digest() != wanted:
            problems |= {path: "changed, or a file beside it in the torrent" for path, _, _ in parts}
    return [f"{path}: {problems[path]}" for path, _ in files if path in problems]
