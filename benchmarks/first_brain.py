"""Seconds from pressing return to the first brain on disk, in fresh processes of ``brainldm sample``.

    python benchmarks/first_brain.py --out runs/first_brain.json

For each of several ways to call the command, ``--repeats`` processes one after another, as a user starts them, with the
weights that ship. What the command says of its own seconds (imports, weights, sampling, writing; its clock begins with
the process) stands beside the time that the whole process took by the clock of this one. ``interpreter`` is an empty
Python; ``imports, whole`` is what importing the networks takes without ``startup.import_networks``. ``--cold`` lets the
system drop installed packages from its memory before each process, as far as nobody else uses them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from measures import environment

from brainldm_core.records import commit, write_json

REQUEST = ("--age", "70", "--sex", "F", "--ventricles", "45ml", "--brain", "1150ml")
WAYS = {
    "default, 4 volumes": (*REQUEST, "--n", "4"),
    "default, 1 volume": (*REQUEST, "--n", "1"),
    "DPM-Solver++ 10, 4 volumes": (*REQUEST, "--n", "4", "--sampler", "dpmpp", "--steps", "10"),
}
ALONE = {
    "interpreter": "pass",
    "imports, whole": "import pandas, generative.networks.nets, brainldm_core.samples",
    "imports, as the command": "import pandas, brainldm_core.samples as s\n"
    "from brainldm_core.startup import import_networks\nimport_networks(True)",
}
PART = re.compile(r"(start and imports|weights|sampling|writing) ([\d.]+) s")
FIRST = re.compile(r"drawn and written ([\d.]+) s after the start")


def told(output: str) -> dict[str, float]:
    """Seconds that the command printed: its parts, and until the first volume was written."""
    parts = {name: float(seconds) for name, seconds in PART.findall(output)}
    return parts | {"first volume": float(FIRST.search(output).group(1))}


def forget_files() -> None:
    """Ask the system to drop the files of installed packages from its memory; those in use elsewhere stay."""
    for path in Path(sysconfig.get_paths()["purelib"]).rglob("*"):
        if path.is_file() and path.suffix in (".py", ".pyc", ".so") or ".so." in path.name:
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def timed(words: list[str]) -> tuple[float, str]:
    """Seconds of a fresh Python with these words, and what it printed."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stdout


def spread(values: list[float]) -> dict[str, Any]:
    """Median, smallest and largest of some seconds."""
    return {
        "median_s": round(statistics.median(values), 2),
        "range_s": [round(min(values), 2), round(max(values), 2)],
        "n": len(values),
    }


def one_way(options: tuple[str, ...], repeats: int, cold: bool) -> dict[str, Any]:
    """Seconds of a way to call ``brainldm sample``, part by part."""
    rows = []
    for _ in range(repeats):
        if cold:
            forget_files()
        folder = Path(tempfile.mkdtemp())
        words = ["-m", "brainldm_core.cli", "sample", *options, "--out", str(folder / "brains")]
        whole, output = timed(words)
        rows.append(told(output) | {"whole command": whole})
        shutil.rmtree(folder)
        print(f"{' '.join(options)}: {rows[-1]}", flush=True)
    return {name: spread([row[name] for row in rows]) for name in rows[0]}


def measure(repeats: int, cold: bool, ways: list[str]) -> dict[str, Any]:
    """All ways, and what surrounds them."""
    import torch

    load = os.getloadavg()
    alone = {name: spread([timed(["-c", code])[0] for _ in range(repeats)]) for name, code in ALONE.items()}
    return {
        "commit": commit(),
        "environment": environment(torch.device("cpu")),
        "load_average": {"before": load[0], "cores": os.cpu_count()},
        "cold": cold,
        "alone": alone,
        "ways": {
            name: {"command": " ".join(["brainldm sample", *WAYS[name]]), "seconds": one_way(WAYS[name], repeats, cold)}
            for name in ways
        },
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    found = measure(args.repeats, args.cold, args.ways)
    for name, row in found["alone"].items():
        print(f"{name}: {row['median_s']} s {row['range_s']}")
    if args.out:
        write_json(args.out, found)


if __name__ == "__main__":
    main()
