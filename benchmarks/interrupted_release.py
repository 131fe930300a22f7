"""A release that is killed several times beside one that is not: are they the same, and is nothing wrong with it?

    python benchmarks/interrupted_release.py --n 1000 --out runs/interrupted_release.json

Both are drawn by the real command, ``brainldm release``, with the weights that ship. One is left alone. The other is
killed (signal 9, its writers with it) ``--kills`` times, when equal parts of its batches are done and the next one is
being written, and started again with the same words. Then checksums are compared line by line, and ``brainldm
release verify`` reads both sets. The folder is removed at the end unless ``--folder`` names one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from brainldm_core.notebooks import with_package
from brainldm_core.records import commit, hardware, read_json, write_json
from brainldm_core.release_check import REQUESTS, SUMS, VOXELS

LISTS = (SUMS, VOXELS, REQUESTS)


def start(*words: str) -> subprocess.Popen:
    """The command in a session of its own."""
    command = [sys.executable, "-m", "brainldm_core.cli", "release", *words]
    return subprocess.Popen(
        command, env=with_package(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def complete(*words: str) -> tuple[float, str]:
    """Seconds that the command took, and what it said; it must end well."""
    begin = time.perf_counter()
    process = start(*words)
    out, error = process.communicate()
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {out}{error}")
    return round(time.perf_counter() - begin, 1), out.strip()


def done(out: Path) -> int:
    """Batches that are whole."""
    return len(list((out / "batches").glob("*.json")))


def kill_at(out: Path, batches: int, size: int, *words: str) -> dict[str, Any]:
    """Start, and kill everything as soon as the first volume after so many batches is written; what was there then."""
    begin, process = time.perf_counter(), start(*words)
    next_one = out / "bids" / f"sub-{batches * size + 1:06d}"
    while not next_one.exists():
        if process.poll() is not None:
            raise SystemExit(f"ended before it could be killed: {process.communicate()}")
        time.sleep(0.0005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return {
        "signal": -process.returncode,
        "seconds": round(time.perf_counter() - begin, 1),
        "batches_done": done(out),
        "volumes_on_disk": len(list(out.glob("bids/sub-*/anat/sub-*_T1w.nii.gz"))),
        "half_written": len(list(out.rglob(".partial-*"))),
    }


def lines_that_differ(one: Path, two: Path) -> dict[str, int]:
    """Lines of each list of checksums, and how many of them differ between two releases."""
    found = {}
    for name in LISTS:
        first, second = ((folder / name).read_text().splitlines() for folder in (one, two))
        found[f"{name}: lines"] = len(first)
        found[f"{name}: different"] = sum(a != b for a, b in zip(first, second, strict=False))
        found[f"{name}: different"] += abs(len(first) - len(second))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--sampler", default="dpmpp")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--weights", type=Path, help="default: the weights that ship")
    parser.add_argument("--folder", type=Path, help="keep both sets here; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=Path("runs/interrupted_release.json"))
    options = parser.parse_args()
    place = options.folder or Path(tempfile.mkdtemp(prefix="brainldm-interrupted-"))
    whole, killed = place / "whole", place / "killed"
    words = ["--n", str(options.n), "--sampler", options.sampler, "--steps", str(options.steps), "--seed", "7"]
    words += ["--workers", str(options.workers)]
    words += ["--weights", str(options.weights)] if options.weights else []
    result: dict[str, Any] = {
        "commit": commit(),
        "hardware": hardware(),
        "command": f"brainldm release {' '.join(words)}",
    }
    try:
        result["uninterrupted_s"], said = complete(*words, "--out", str(whole))
        print(said, flush=True)
        size = read_json(whole / "record.json")["settings"]["sidecar"]["BatchSize"]
        result |= {"batch_size": size, "batches": -(-options.n // size)}
        result["kills"] = []
        for part in range(1, options.kills + 1):
            target = result["batches"] * part // (options.kills + 1)
            result["kills"].append(kill_at(killed, target, size, *words, "--out", str(killed)))
            print(json.dumps(result["kills"][-1]), flush=True)
        result["last_start_s"], said = complete(*words, "--out", str(killed))
        result["drawn_by_last_start"] = int(re.search(r"([\d,]+) volumes drawn now", said)[1].replace(",", ""))
        result["compared"] = lines_that_differ(whole, killed)
        result["identical"] = not any(value for name, value in result["compared"].items() if "different" in name)
        result["verified"] = {}
        for folder in (whole, killed):
            seconds, said = complete("verify", str(folder), "--remeasure", str(options.n))
            result["verified"][folder.name] = {"seconds": seconds, "said": said.removeprefix(f"{folder}: ")}
        write_json(options.out, result)
        print(json.dumps(result, indent=1))
    finally:
        if not options.folder:
            shutil.rmtree(place, ignore_errors=True)
    if not result["identical"]:
        raise SystemExit("the two releases differ")


if __name__ == "__main__":
    main()
