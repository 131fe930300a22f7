"""Files of manifests, from a server in a thread: resume, checks, mirrors, archives."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from tarfile import SYMTYPE

import numpy as np
import pytest
import yaml
from test_unpack import tar_of, zip_of

from brainldm_core import cli, download, features, fetch, manifests
from brainldm_core.errors import BrainLDMError

CONTENT = np.random.default_rng(0).bytes(300_000)


class Handler(BaseHTTPRequestHandler):
    """Sends ``server.files``; notes the Range and the bytes of each answer; ``ranges`` and ``cut`` are its faults."""

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        content = server.files.get(self.path.lstrip("/"))
        if content is None:
            return self.send_error(404)
        start, total = 0, len(content)
        if asked and server.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= total:
                self.send_response(416)
                if server.ranges != "silent":
                    self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                server.log.append((asked, 416, 0))  # before the client has its answer and looks
                self.end_headers()
                return None
            if server.ranges == "wrong":
                start = 0
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(total - start))
        sent = content[start : server.cut]
        server.log.append((asked, 206 if asked and server.ranges else 200, len(sent)))
        self.end_headers()
        self.wfile.write(sent)
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.log, server.ranges, server.cut = {"brain.bin": CONTENT}, [], True, None
        server.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def file_of(content: bytes, name: str, address: str, **changes) -> dict:
    checksum = "sha256:" + hashlib.sha256(content).hexdigest()
    return {"name": name, "url": f"{address}/{name}", "bytes": len(content), "checksum": checksum} | changes


@pytest.fixture
def brains(server, tmp_path, monkeypatch):
    """Writes a manifest ``brains`` of the given files, and gives the folder that they are fetched into."""
    monkeypatch.setattr(manifests, "FOLDER", tmp_path / "manifests")
    monkeypatch.setenv("BRAINLDM_DATA", str(tmp_path / "data"))
    manifests.FOLDER.mkdir()

    def write(*files, **changes):
        content = {
            "name": "brains",
            "title": "Brains",
            "kind": "volumes",
            "source": [],
            "licence": "CC0",
            "citation": [],
        }
        content |= {"access": "open", "non_commercial": False, "faces": "absent", "reference_icv_ml": None}
        content |= {"files": list(files) or [file_of(CONTENT, "brain.bin", server.address)]} | changes
        (manifests.FOLDER / "brains.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / "data" / "brains"

    return write


def partial(folder, size=0, name="brain.bin"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".partial-{name}"
    if size:
        path.write_bytes(CONTENT[:size])
    return path


def test_a_file_is_fetched_once(server, brains):
    folder = brains()
    assert fetch.fetched("brains") is None
    assert fetch.fetch("brains") == folder == fetch.fetched("brains")
    assert (folder / "brain.bin").read_bytes() == CONTENT
    assert fetch.fetch("brains") == folder
    assert server.log == [(None, 200, len(CONTENT))]
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "brain.bin"]


def test_an_interrupted_download_asks_only_for_the_rest(server, brains):
    folder = brains()
    server.cut = 100_000  # Content-Length says more
    with pytest.raises(BrainLDMError, match="brain.bin: ended after 100000 of 300000 bytes; what came is kept, start"):
        fetch.fetch("brains")
    assert not (folder / "brain.bin").exists() and partial(folder).stat().st_size == 100_000
    assert fetch.verify("brains") == [f"{folder / 'brain.bin'}: missing (100000 bytes of it came)"]
    server.cut = None
    fetch.fetch("brains")
    assert server.log[1:] == [("bytes=100000-", 206, 200_000)]
    assert (folder / "brain.bin").read_bytes() == CONTENT and not partial(folder).exists()


@pytest.mark.parametrize("ranges", [False, "wrong"])
def test_a_server_without_ranges_starts_afresh(server, brains, ranges):
    folder = brains()
    partial(folder).write_bytes(b"x" * 1000)  # appended to, it would spoil the file
    server.ranges = ranges
    fetch.fetch("brains")
    assert (folder / "brain.bin").read_bytes() == CONTENT
    assert server.log[0][0] == "bytes=1000-"


@pytest.mark.parametrize(
    ("ranges", "more", "requests"), [(True, b"", [416]), ("silent", b"", [416, 200]), (True, b"more", [416, 200])]
)
def test_nothing_left_to_send(server, brains, ranges, more, requests):
    folder = brains(file_of(CONTENT, "brain.bin", server.address, bytes=None))
    partial(folder).write_bytes(CONTENT + more)
    server.ranges = ranges
    fetch.fetch("brains")
    assert [status for _, status, _ in server.log] == requests
    assert (folder / "brain.bin").read_bytes() == CONTENT


def test_a_whole_or_too_long_partial_file(server, brains):
    folder = brains()
    partial(folder, len(CONTENT))
    fetch.fetch("brains")
    assert server.log == []  # it was all there
    (folder / "brain.bin").unlink()
    partial(folder).write_bytes(CONTENT + b"more")
    fetch.fetch("brains")
    assert server.log == [(None, 200, len(CONTENT))] and fetch.verify("brains") == []


def test_without_a_checksum_two_parts_are_never_joined(server, brains):
    folder = brains(file_of(CONTENT, "brain.bin", server.address, checksum=None))
    partial(folder, 1000)
    fetch.fetch("brains")
    assert server.log == [(None, 200, len(CONTENT))] and (folder / "brain.bin").exists()


@pytest.mark.parametrize("kind", ["md5", "sha1", "sha256", "git"])
def test_a_wrong_checksum_gives_no_file(server, brains, kind):
    blob = b"blob 300000\0" if kind == "git" else b""
    right = hashlib.new("sha1" if kind == "git" else kind, blob + CONTENT).hexdigest()
    for wrong, checksum in ((False, right), (True, right[:-1] + ("1" if right[-1] == "0" else "0"))):
        folder = brains(file_of(CONTENT, "brain.bin", server.address, checksum=f"{kind}:{checksum}"))
        if wrong:
            with pytest.raises(BrainLDMError, match=f"{kind} is {right} instead of {checksum}"):
                fetch.fetch("brains")
            assert [path.name for path in folder.iterdir()] == [".lock"]
        else:
            fetch.fetch("brains")
            (folder / "brain.bin").unlink()


def test_another_size_is_refused_before_it_is_downloaded(server, brains):
    brains(file_of(CONTENT, "brain.bin", server.address, bytes=299_999))
    with pytest.raises(BrainLDMError, match="has 300000 bytes and the manifest says 299999"):
        fetch.fetch("brains")


def test_errors_of_servers_and_disks_say_what_to_do(server, brains, monkeypatch, tmp_path):
    folder = brains(file_of(CONTENT, "gone.bin", server.address))
    with pytest.raises(BrainLDMError, match=r"gone.bin: the server answers 404 \(Not Found\); try later, or elsewhere"):
        fetch.fetch("brains")
    brains(file_of(CONTENT, "brain.bin", "http://127.0.0.1:9"))
    with pytest.raises(BrainLDMError, match="brain.bin: cannot be reached .*refused"):
        fetch.fetch("brains")
    brains()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=200_000))
    with pytest.raises(BrainLDMError, match="300 kB are needed and 200 kB free"):
        fetch.fetch("brains")
    partial(folder, 200_000)  # now only 100 kB are needed
    fetch.fetch("brains")
    (tmp_path / "file").touch()
    with pytest.raises(BrainLDMError, match="file.*: cannot be written"):
        fetch.fetch("brains", tmp_path / "file")


def test_a_changed_file_of_the_user_is_not_overwritten(brains):
    folder = brains()
    folder.mkdir(parents=True)
    (folder / "brain.bin").write_bytes(b"mine")
    with pytest.raises(BrainLDMError, match="brain.bin: truncated: has 4 bytes instead of 300000; delete it"):
        fetch.fetch("brains")
    assert (folder / "brain.bin").read_bytes() == b"mine"


def test_verify_finds_what_is_missing_truncated_and_changed(server, brains):
    names = ("a.bin", "b.bin", "c.bin", "sub/d.bin", "e.bin")
    server.files = dict.fromkeys(names, CONTENT)
    folder = brains(*(file_of(CONTENT, name, server.address) for name in names))
    with pytest.raises(BrainLDMError, match="brains: no such folder; name that of the data"):
        fetch.verify("brains")
    fetch.fetch("brains")
    assert fetch.verify("brains") == []
    (folder / "a.bin").unlink()
    os.truncate(folder / "b.bin", 7)
    (folder / "c.bin").write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    (folder / "e.bin").write_bytes(CONTENT + b"!")
    a, b, c, e = fetch.verify("brains")
    assert a.endswith("a.bin: missing") and b.endswith("b.bin: truncated: has 7 bytes instead of 300000")
    assert "c.bin: changed: sha256 is" in c and e.endswith("e.bin: too long: has 300001 bytes instead of 300000")


def test_a_mirror_is_a_folder_or_an_address(server, brains, tmp_path):
    folder = brains(file_of(CONTENT, "sub/brain.bin", "http://127.0.0.1:9"))
    (tmp_path / "mirror" / "sub").mkdir(parents=True)
    with pytest.raises(BrainLDMError, match="brain.bin: cannot be read .*; look at the folder of --from"):
        fetch.fetch("brains", mirror=str(tmp_path / "mirror"))
    (tmp_path / "mirror" / "sub" / "brain.bin").write_bytes(CONTENT)
    partial(folder / "sub", 1000)  # resumes from a folder too
    fetch.fetch("brains", mirror=str(tmp_path / "mirror"))
    assert (folder / "sub" / "brain.bin").read_bytes() == CONTENT
    (tmp_path / "mirror" / "sub" / "brain.bin").write_bytes(CONTENT[::-1])
    with pytest.raises(BrainLDMError, match="is not the file of the manifest"):
        fetch.fetch("brains", tmp_path / "other", mirror=str(tmp_path / "mirror"))
    server.files["copy/sub/brain.bin"] = CONTENT
    fetch.fetch("brains", tmp_path / "other", mirror=f"{server.address}/copy/")
    assert fetch.verify("brains", tmp_path / "other") == []
    for wrong in ("nowhere", "ftp://host/x"):
        with pytest.raises(BrainLDMError, match=f"--from {wrong}: no such folder"):
            fetch.fetch("brains", tmp_path / "third", mirror=wrong)


def test_terms_come_first(brains):
    brains(agreement="https://terms.example", licence="An agreement")
    with pytest.raises(BrainLDMError, match="under the terms of https://terms.example .* then add --agree"):
        fetch.fetch("brains")
    assert fetch.fetch("brains", agree=True)


@pytest.mark.parametrize(
    ("name", "archive"),
    [
        ("set.v1.tar", tar_of(("one/brain.bin", CONTENT), ("one/link", (SYMTYPE, "brain.bin")))),
        ("set.v1.tar.gz", tar_of(("one/brain.bin", CONTENT), mode="w:gz")),
        ("set.v1.zip", zip_of(("one/brain.bin", CONTENT))),
    ],
)
def test_archives_are_unpacked_once_and_verified(server, brains, name, archive):
    server.files = {name: archive}
    folder = brains(file_of(archive, name, server.address, unpack=True))
    fetch.fetch("brains")
    brain = folder / "set.v1" / "one" / "brain.bin"
    assert brain.read_bytes() == CONTENT and not (folder / name).exists()
    assert fetch.verify("brains") == [] and fetch.fetched("brains") == folder
    fetch.fetch("brains")
    assert len(server.log) == 1
    brain.write_bytes(CONTENT[::-1])
    assert fetch.verify("brains") == [f"{brain}: changed since it was unpacked"]
    os.truncate(brain, 5)
    assert fetch.verify("brains") == [f"{brain}: truncated: has 5 bytes instead of 300000"]
    brain.unlink()
    assert fetch.verify("brains") == [f"{brain}: missing"]
    shutil.rmtree(folder / "set.v1")
    assert fetch.verify("brains") == [f"{folder / name}: missing"]


def test_data_sets_that_cannot_be_fetched_say_how_they_are_had(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINLDM_DATA", str(tmp_path))
    for name, words in {
        "ukbiobank": "ukbiobank: cannot be fetched. Only by application: .*20252.*https://www.ukbiobank.ac.uk",
        "ldm-100k": "ldm-100k: cannot be fetched. It is shared as a torrent.*63aeb864bbe2115ded0aa0d7d36334c026f0660b",
        "oasis": "oasis: cannot be fetched. Register .*neurite-oasis",
        "neurite-oasis": "neurite-oasis: is given under the terms of https://www.oasis-brains.org",
        "atlas": "atlas: is made, not fetched; brainldm prepare atlas",
    }.items():
        with pytest.raises(BrainLDMError, match=words):
            fetch.fetch(name)
    with pytest.raises(BrainLDMError, match="its manifest lists no files"):
        fetch.verify("ukbiobank", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_manifests_list():
    """Checksums that other parts of the project know too are the same ones."""
    files = {name: manifests.load_manifest(name).files for name in manifests.manifest_names()}
    assert [name for name, listed in files.items() if listed] == [
        *("brain-ldm-bundle", "ixi", "lpips", "medicalnet", "neurite-oasis", "sfcn", "synthseg-labels")
    ]
    assert [(file.name, file.checksum) for file in files["medicalnet"]] == [
        (features.MEDICALNET_FILE, f"sha256:{features.MEDICALNET_SHA256}")
    ]
    for listed in files.values():
        assert len({file.name for file in listed}) == len(listed)
        assert all(file.checksum for file in listed)
    for wrong in ("../x", "/x", "a/../x", ".x", "a//x", ""):
        with pytest.raises(ValueError):
            manifests.File(name=wrong, url="https://x", bytes=1, checksum=None)
    with pytest.raises(ValueError):
        manifests.File(name="x", url="file:///x", bytes=1, checksum=None)


def test_the_label_maps_are_those_of_the_manifest(shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINLDM_DATA", str(tmp_path))
    folder = fetch.fetch("synthseg-labels", mirror=str(shared_data / "synthseg_labels"))
    assert fetch.fetched("synthseg-labels") == folder == tmp_path / "synthseg-labels"
    assert len(list(folder.glob("*.nii.gz"))) == 20 and fetch.verify("synthseg-labels") == []


def call(capsys, *words):
    code = cli.main([str(word) for word in words])
    return code, *capsys.readouterr()


def test_the_commands(server, brains, capsys, tmp_path):
    folder = brains()
    code, out, _ = call(capsys, "data", "list")
    assert code == 0 and re.search(r"\nbrains +volumes +300 kB +no +127.0.0.1 +CC0\n", out)
    code, out, err = call(capsys, "data", "fetch", "brains")
    assert (code, err) == (0, "") and f"{folder}: brains is there" in out  # no bar: this is no terminal
    assert re.search(r"\nbrains +volumes +300 kB +yes", call(capsys, "data", "list")[1])
    assert call(capsys, "data", "verify", "brains")[:2] == (0, f"{folder}: nothing is wrong\n")
    (folder / "brain.bin").unlink()
    assert call(capsys, "data", "verify", "brains", folder)[:2] == (1, f"{folder / 'brain.bin'}: missing\n")
    code, _, err = call(capsys, "data", "fetch", "nobody")
    assert code == 2 and err.startswith("brainldm: data set 'nobody' has no manifest")
    assert call(capsys, "data", "fetch", "brains", "--out", tmp_path / "x", "--from", server.address)[0] == 0
    assert (tmp_path / "x" / "brain.bin").exists()


def test_fetched_label_maps_make_the_anatomies(monkeypatch, tmp_path, capsys):
    from brainldm_core import simulate_run

    monkeypatch.setenv("BRAINLDM_DATA", str(tmp_path / "data"))
    seen = []
    monkeypatch.setattr(
        simulate_run, "simulate_cohort", lambda run, workers, labels: seen.append(labels) or {"seconds": 1}
    )
    words = ("prepare", "anatomies", "--profile", "smoke", "--runs", tmp_path / "runs")
    code, _, err = call(capsys, *words)
    assert code == 2 and "brainldm data fetch synthseg-labels" in err and not seen
    monkeypatch.setattr(fetch, "fault", lambda *_, **__: None)  # all are there
    assert call(capsys, *words)[0] == 0 and seen == [tmp_path / "data" / "synthseg-labels"]


def test_sizes_in_words():
    assert [download.size_text(size) for size in (7, 10_811, 184_885_051, 4_600_000_000)] == [
        *("7 bytes", "10.8 kB", "185 MB", "4.6 GB")
    ]
