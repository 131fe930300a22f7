"""What a large release takes: hours, shards and storage from measured rates, each with where it comes from.

Rates are read from results files: the record of a run's own release, ``benchmarks/release.py`` for volumes of 1 mm and
the bookkeeping, ``benchmarks/gpu_hour.py`` for a graphics card. What has no file is not measured, and says so; work
that was only counted gives a floor, which no machine reaches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import BrainLDMError
from .notebooks import project_root
from .records import read_json, read_record

CARD_TFLOPS = 790.0  # taken for one H100 in bfloat16: a large product of matrices, which convolutions do not reach
RUN = "tiny-atlas"  # the published run
MEASURED, COUNTED, MISSING_RATE = "measured", "counted work, not measured", "not measured"


@dataclass(frozen=True)
class Row:
    """One line of a plan: what, how much of what unit, and how it is known."""

    what: str
    value: float | None
    unit: str
    basis: str
    source: str

    @property
    def amount(self) -> str:
        """The value in words, three digits where it is small."""
        if self.value is None:
            return "–"
        size = f"{self.value:,.0f}" if self.value >= 100 else f"{self.value:.3g}"
        return f"{size} {self.unit}".strip()


def plan_rows(
    count: int, hours: float = 4.0, steps: int = 10, record: dict[str, Any] | None = None, folder: Path | None = None
) -> list[Row]:
    """The plan of ``count`` volumes in shards of ``hours``, at 1 mm with ``steps`` of a sampler.

    Args:
        record: of a run's release; None: of the published run.
        folder: of the published results; None: this checkout's.

    Raises:
        BrainLDMError: no volumes, no hours or no steps.
    """
    if count < 1 or hours <= 0 or steps < 1:
        raise BrainLDMError(f"plan of {count} volumes, {hours:g} hours, {steps} steps: each must be more than 0")
    folder = folder or project_root() / "book" / "published"
    if record is None and (path := folder / RUN / "records" / "release.json").exists():
        record = read_json(path)
    bench = read_json(path) if (path := folder / "benchmarks" / "release-cpu.json").exists() else {}
    return [
        *_this_run(count, hours, record),
        *_one_millimetre(count, hours, steps, bench, folder),
        *_book_keeping(count, bench),
    ]


def _this_run(count: int, hours: float, record: dict[str, Any] | None) -> Iterator[Row]:
    """What the miniature says, were all volumes like its own."""
    if record is None:
        yield Row("drawing, volumes as in the miniature", None, "", MISSING_RATE, "no release of a run")
        return
    made, source = record["results"], "release of the run"
    each = made["seconds_a_volume"]
    yield Row("drawing, volumes as in the miniature", count * each / 3600, "hours of one process", MEASURED, source)
    yield Row(f"shards of {hours:g} hours for these", math.ceil(count * each / 3600 / hours), "", MEASURED, source)
    yield Row("storage of these", count * made["bytes"] / made["volumes"] / 1e9, "GB", MEASURED, source)


def _one_millimetre(count: int, hours: float, steps: int, bench: dict[str, Any], folder: Path) -> Iterator[Row]:
    """What volumes of the paper's grid take."""
    files = {path.name: read_json(path) for path in (folder / "gpu").glob("recipe-*.json")}
    rates = [
        (made["seconds_a_volume"], made["steps"], name) for name, made in files.items() if made["profile"] == "paper"
    ]
    gpu_hours = None
    if rates:
        rate, of_steps, name = min(rates)
        gpu_hours = count * rate / 3600
        yield Row(f"drawing at 1 mm, {of_steps} steps", gpu_hours, "GPU hours", MEASURED, f"gpu/{name}")
    else:
        yield Row("drawing at 1 mm", None, "GPU hours", MISSING_RATE, "no results of a graphics card")
    source = "benchmarks/release-cpu.json"
    if not bench:
        yield Row("work, files and measurements at 1 mm", None, "", MISSING_RATE, f"no {source}")
        return
    work = steps * bench["counted"]["unet_step_tflop"] + bench["counted"]["decode_tflop"]
    floor = count * work / CARD_TFLOPS / 3600
    yield Row(f"work at 1 mm, {steps} steps and decoding", count * work / 1e6, "EFLOP", COUNTED, source)
    yield Row(f"that work at {CARD_TFLOPS:g} TFLOP/s, a floor", floor, "GPU hours", COUNTED, source)
    least = floor if gpu_hours is None else gpu_hours
    kind = COUNTED if gpu_hours is None else MEASURED
    yield Row(f"shards of {hours:g} hours at 1 mm, at least", math.ceil(least / hours), "", kind, source)
    volume = bench["volumes"]["1 mm"]
    cpu = {"compressing and writing": "package", "measuring": "measuring", "reading and checking": "reading"}
    for what, name in cpu.items():
        total = count * volume[name]["median_ms"] / 3.6e6
        yield Row(f"{what} at 1 mm", total, "core hours", MEASURED, source)
    busy = (volume["package"]["median_ms"] + volume["measuring"]["median_ms"]) * count / 3.6e6
    yield Row("writers beside each GPU, to keep up", math.ceil(busy / least), "cores", kind, source)
    yield Row("storage at 1 mm", count * volume["bytes_package"] / 1e12, "TB", MEASURED, source)


def _book_keeping(count: int, bench: dict[str, Any]) -> Iterator[Row]:
    """Tables and checksums, tried with volumes of a few voxels."""
    if not bench.get("book_keeping"):
        return
    tried = min(bench["book_keeping"], key=lambda book: abs(math.log(book["volumes"] / count)))
    scale, phases = count / tried["volumes"], tried["phases"]
    source = f"stub of {tried['volumes']:,} volumes"
    for name in ("finishing", "verifying"):
        yield Row(f"{name}, bookkeeping alone", scale * phases[name]["seconds"] / 60, "minutes", MEASURED, source)
    peak = max(phase["peak_mib"] for phase in phases.values())
    yield Row("largest memory of any of its processes", peak / 1024, "GiB", MEASURED, source)


def markdown_table(rows: list[Row]) -> str:
    """The plan as a table of a page."""
    lines = [f"| {row.what} | {row.amount} | {row.basis} | {row.source} |" for row in rows]
    return "\n".join(["| what | how much | how it is known | from |", "|:--|--:|:--|:--|", *lines])


def plan_text(count: int, hours: float = 4.0, steps: int = 10, run: Path | None = None) -> str:
    """The plan as aligned text, with the command that draws a shard."""
    record = None
    if run is not None and (record := read_record(Path(run) / "release")) is None:
        raise BrainLDMError(f"{run}: has no finished release to learn from; make one with: brainldm miniature")
    rows = plan_rows(count, hours, steps, record)
    wide, long = max(len(row.what) for row in rows), max(len(row.amount) for row in rows)
    lines = [f"{row.what:<{wide}}  {row.amount:>{long}}  {row.basis}, {row.source}" for row in rows]
    command = f"brainldm release --n {count} --shard I/N --out DIR"
    return "\n".join([f"{count:,} volumes", *lines, f"Each shard: {command}"])
