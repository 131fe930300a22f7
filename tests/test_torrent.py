"""A copy of what a torrent shares, compared with its .torrent file."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from brainldm_core.errors import BrainLDMError
from brainldm_core.fetch import verify
from brainldm_core.torrent import verify_torrent

CONTENT = np.random.default_rng(0).bytes(300_000)


def bencode(value) -> bytes:
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, bytes):
        return b"%d:%s" % (len(value), value)
    if isinstance(value, list):
        return b"l" + b"".join(map(bencode, value)) + b"e"
    return b"d" + b"".join(bencode(key) + bencode(value[key]) for key in sorted(value)) + b"e"


PARTS = {"a.nii": CONTENT[:70_000], "sub/b.nii": CONTENT[70_000:75_000], "sub/c.nii": CONTENT[75_000:]}
PIECE = 2**15


def info(name: bytes = b"LDM") -> dict:
    files = [
        {b"path": [part.encode() for part in path.split("/")], b"length": len(text)} for path, text in PARTS.items()
    ]
    hashes = b"".join(hashlib.sha1(CONTENT[at : at + PIECE]).digest() for at in range(0, len(CONTENT), PIECE))
    return {b"name": name, b"piece length": PIECE, b"pieces": hashes, b"files": files}


HASH = hashlib.sha1(bencode(info())).hexdigest()


@pytest.fixture(params=["LDM", ""])
def copy(request, tmp_path):
    """Folder of a whole copy; with and without the folder that has the torrent's name."""
    folder = tmp_path / request.param
    for name, text in PARTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text)
    (tmp_path / "set.torrent").write_bytes(bencode({b"announce": b"x", b"info": info()}))
    return folder


def test_a_copy_is_compared_piece_by_piece(copy, tmp_path):
    assert verify_torrent(tmp_path, HASH) == []
    last, middle = copy / "sub" / "c.nii", copy / "sub" / "b.nii"
    last.write_bytes(PARTS["sub/c.nii"][:-1] + bytes([CONTENT[-1] ^ 1]))
    assert verify_torrent(tmp_path, HASH) == [f"{last}: changed, or a file beside it in the torrent"]
    last.write_bytes(PARTS["sub/c.nii"][:-1])
    middle.unlink()
    assert verify_torrent(tmp_path, HASH) == [
        f"{middle}: missing",
        f"{last}: truncated: has 224999 bytes instead of 225000",
    ]


def test_a_change_is_laid_to_all_files_of_its_piece(copy, tmp_path):
    middle = copy / "sub" / "b.nii"  # its piece holds the end of a.nii and the beginning of c.nii
    middle.write_bytes(PARTS["sub/b.nii"][::-1])
    assert [line.split(":")[0].rpartition("/")[2] for line in verify_torrent(tmp_path, HASH)] == [
        "a.nii",
        "b.nii",
        "c.nii",
    ]


def test_only_the_torrent_of_the_manifest_counts(copy, tmp_path):
    path = tmp_path / "set.torrent"
    path.write_bytes(bencode({b"announce": b"x", b"info": info(b"other")}))
    with pytest.raises(BrainLDMError, match="set.torrent: is of another torrent"):
        verify_torrent(tmp_path, HASH)
    for wrong in (b"", b"d4:info", bencode({b"info": 3}), bencode([b"info"]), b"l" * 10_000):
        path.write_bytes(wrong)
        with pytest.raises(BrainLDMError, match="set.torrent: is no .torrent file"):
            verify_torrent(tmp_path, HASH)
    path.unlink()
    with pytest.raises(BrainLDMError, match="has no .torrent file to compare with"):
        verify_torrent(tmp_path, HASH)


def test_verify_knows_torrents(copy, tmp_path):
    with pytest.raises(BrainLDMError, match="set.torrent: is of another torrent"):
        verify("ldm-100k", tmp_path)
