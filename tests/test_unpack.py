"""Archives: hostile and broken ones leave nothing behind."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile

import numpy as np
import pytest

from brainldm_core import unpack
from brainldm_core.errors import BrainLDMError

CONTENT = np.random.default_rng(0).bytes(300_000)


def tar_of(*members, mode="w") -> bytes:
    """A tar of (name, content), where content may also be a type and a link's target."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content
                tar.addfile(info)
    return buffer.getvalue()


def zip_of(*members) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content, *kind in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = (kind[0] if kind else 0o100644) << 16
            archive.writestr(info, content)
    return buffer.getvalue()


LINK, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.mark.parametrize(
    "archive",
    [
        tar_of(("good", b"g"), ("../evil", b"x")),
        tar_of(("good", b"g"), ("a/../../evil", b"x")),
        tar_of(("good", b"g"), ("/{root}/evil", b"x")),
        tar_of(("good", b"g"), ("link", (LINK, "../.."))),
        tar_of(("good", b"g"), ("link", (LINK, "/{root}"))),
        tar_of(("good", b"g"), ("a/link", (LINK, "../../x")), ("a/link/evil", b"x")),
        tar_of(("good", b"g"), ("a", (LINK, ".")), ("a/b", (LINK, "..")), ("a/b/evil", b"x")),
        tar_of(("good", b"g"), ("hard", (HARD, "../secret"))),
        tar_of(("good", b"g"), ("pipe", (tarfile.FIFOTYPE, ""))),
        tar_of(("good", b"g"), ("null", (tarfile.CHRTYPE, ""))),
        zip_of(("good", b"g"), ("../evil", b"x")),
        zip_of(("good", b"g"), ("a/../..", b"x")),
        zip_of(("good", b"g"), ("/{root}/evil", b"x")),
        zip_of(("good", b"g"), ("..\\evil", b"x")),
        zip_of(("good", b"g"), ("C:evil", b"x")),
        zip_of(("good", b"g"), ("link", b"../..", 0o120777)),
        tar_of(("good", CONTENT), mode="w:gz")[:-5000],
        zip_of(("good", b"gggggggg")).replace(b"gggggggg", b"hhhhhhhh"),
        b"no archive at all" * 100,
    ],
)
def test_hostile_and_broken_archives_leave_nothing(tmp_path, archive):
    place = tmp_path / "deep" / "place"
    place.mkdir(parents=True)
    (tmp_path / "deep" / "secret").write_text("secret")
    (place / "set.tar").write_bytes(archive)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BrainLDMError, match="set.tar: .*(delete it|fetch it again)") as caught:
        unpack.unpack(place / "set.tar", place / "set")
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_archive_that_would_fill_the_disk_is_refused(tmp_path, monkeypatch):
    (tmp_path / "set.tar").write_bytes(tar_of(("zeros", bytes(10**7)), mode="w:gz"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    with pytest.raises(BrainLDMError, match="10 MB are needed to unpack set.tar and 1 MB free"):
        unpack.unpack(tmp_path / "set.tar", tmp_path / "set")


def test_a_python_that_unpacks_no_tar_safely_is_refused(tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    (tmp_path / "set.tar").write_bytes(tar_of(("good", b"g")))
    with pytest.raises(BrainLDMError, match="3.11.4 or later"):
        unpack.unpack(tmp_path / "set.tar", tmp_path / "set")
