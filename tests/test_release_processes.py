"""Releases in real processes, killed, on a full disk, one shard twice: nothing is lost and nothing doubled."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from started_release import COUNT

from brainldm_core.notebooks import with_package

BATCHES = [f"{batch:06d}" for batch in range(-(-COUNT // 2))]
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def own_mounts(folder: Path) -> bool:
    """Whether this user may mount a small disk that nobody else sees."""
    if shutil.which("unshare") is None:
        return False
    mount = [*NAMESPACE, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    return subprocess.run(mount, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    root = tmp_path_factory.mktemp("processes")
    mounts = own_mounts(root)
    script = [sys.executable, str(Path(__file__).with_name("started_release.py")), str(root)]
    done = subprocess.run(
        [*(NAMESPACE if mounts else ()), *script],
        env=with_package() | ({"OWN_MOUNTS": "360"} if mounts else {}),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["whole"] == [0] and len(said["sums"].splitlines()) == COUNT + 6
    return said | {"stderr": done.stderr}


def test_killed_three_times_while_it_writes(started):
    kills = started["killed"]
    assert [code for code, *_ in kills] == [-9, -9, -9]
    done = [batches for _, batches, _ in kills]
    assert done[0] == [] and done[1] == BATCHES[:1] and done[2] == BATCHES[:4]  # a half-written batch is not done
    assert [partial for *_, partial in kills] == [1, 2, 3]  # what a killed process leaves is never a volume
    assert started["killed_end"] == [0, started["sums"], 0]


def test_one_shard_started_twice_is_shared(started):
    codes, first, second = started["twice"]
    assert codes == [0, 0] and first and second
    assert sorted(first + second) == list(range(len(BATCHES)))  # none missing, none twice
    assert "another brainldm is at work on this shard; sharing it" in started["stderr"]
    assert started["twice_end"] == [0, started["sums"]]


def test_a_killed_parent_leaves_no_writer_and_no_claim(started):
    code, writers, left, again, sums = started["orphan"]
    assert (code, writers, left, again) == (-9, 1, 0, 0) and sums == started["sums"]


def test_a_full_disk_is_one_line_and_costs_only_the_batch(started):
    if "full" not in started:
        pytest.skip("needs a system where users may mount a disk of their own (unshare)")
    code, done = started["full"]
    assert code == 2 and 0 < len(done) < len(BATCHES) and done == BATCHES[: len(done)]
    assert "cannot be written (No space left on device); free space or choose another folder" in started["stderr"]
    assert started["full_partial"] == 0
    assert started["full_end"] == [0, started["sums"]]
