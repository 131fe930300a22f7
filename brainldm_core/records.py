"""Run folders and records: what every artefact was made from, on what, and in how many seconds.

A run lives in ``runs/<profile>-<cohort>[-seed<N>]`` with one folder a stage. A stage is finished when its
``record.json`` exists, which is written last; everything is written under a temporary name and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from . import __version__
from .errors import BrainLDMError
from .profiles import Profile, load_profile

STAGES = (
    *("cohort", "autoencoder", "diffusion", "baselines", "brain_age", "samples", "release"),
    *("results", "notebooks", "book"),
)


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def settings_hash(settings: Any) -> str:
    """SHA-256 of JSON-able settings, independent of key order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``; rename it to ``path`` when the block ends well, else remove it.

    Raises:
        BrainLDMError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Same suffixes: nibabel and safetensors choose the format by them.
        handle, name = tempfile.mkstemp(prefix=".partial-", suffix="-" + path.name, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise _cannot_write(path, error) from None
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o666 & ~_umask())
        os.replace(partial, path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        partial.unlink(missing_ok=True)


def check_free(out: Path) -> None:
    """Refuse a place that holds something; asked before hours of drawing too.

    Raises:
        BrainLDMError: ``out`` is a file, or a folder that is not empty.
    """
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise BrainLDMError(f"{out}: exists already; give another --out, or delete it")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path``; rename it to ``path`` when the block ends well, else remove it.

    Raises:
        BrainLDMError: ``path`` exists and is not an empty folder, the disk is full or the place cannot be written.
    """
    path = Path(path)
    check_free(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".partial-", dir=path.parent))
    except OSError as error:
        raise _cannot_write(path, error) from None
    try:
        yield draft
        draft.chmod(0o777 & ~_umask())
        os.replace(draft, path)  # an empty folder gives way
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _cannot_write(path: Path, error: OSError) -> BrainLDMError:
    return BrainLDMError(f"{path}: cannot be written ({error.strerror}); free space or choose another folder")


@lru_cache
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically; NaN is refused, so that any reader can parse it."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        BrainLDMError: the file is missing or damaged.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BrainLDMError(f"{path}: no such file; run the stage that makes it first") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BrainLDMError(f"{path}: damaged JSON ({error}); delete it and run its stage again") from None


@lru_cache
def commit() -> str:
    """Commit of the code, with ``+`` when the tree differs from it; the package version outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return f"v{__version__}"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def hardware() -> dict[str, Any]:
    """Processor, cores, memory (GiB) and accelerator of this machine."""
    facts: dict[str, Any] = {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count()}
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        facts["processor"] = names[0] if names else platform.processor()
        facts["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (OSError, ValueError):
        facts["processor"] = platform.processor()
    torch = sys.modules.get("torch")  # a stage that has not imported torch did not use the accelerator
    if torch is not None and torch.cuda.is_available():
        facts["accelerator"] = torch.cuda.get_device_name()
    return facts


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 if sys.platform.startswith("linux") else 1024**2), 1)


@dataclass
class Record:
    """What an artefact was made from; ``finish`` writes it, which marks the stage as done."""

    folder: Path
    made_by: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    seed: int | None = None
    earlier_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds of work so far, those before a resume included."""
        return self.earlier_seconds + time.perf_counter() - self._start

    def finish(self, outputs: list[Path] = (), **results: Any) -> dict[str, Any]:
        """Write ``record.json`` with hashes of ``outputs`` and any JSON-able ``results``; return its content."""
        content = {
            "made_by": self.made_by,
            "settings": self.settings,
            "inputs": self.inputs,
            "seed": self.seed,
            "commit": commit(),
            "hardware": hardware(),
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(self.seconds, 1),
            "peak_memory_mib": peak_memory_mib(),
            "outputs": {str(Path(path).relative_to(self.folder)): sha256(path) for path in outputs},
            "results": results,
        }
        write_json(self.folder / "record.json", content)
        return content


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a finished stage, or None while it is unfinished."""
    path = Path(folder) / "record.json"
    return read_json(path) if path.exists() else None


def stage_key(folder: Path) -> str:
    """Hash that names the content of a finished stage: of its settings, inputs, seed and outputs."""
    record = read_record(folder)
    if record is None:
        raise BrainLDMError(f"{folder}: this stage is not finished; run it first")
    return settings_hash({key: record[key] for key in ("settings", "inputs", "seed", "outputs")})


@dataclass(frozen=True)
class Run:
    """One run: a profile, a cohort, a training seed, and the folder where its stages live."""

    profile: Profile
    cohort: str
    seed: int
    root: Path

    @property
    def name(self) -> str:
        """Folder name: ``<profile>-<cohort>``, with ``-seed<N>`` for seeds other than 0."""
        return f"{self.profile.name}-{self.cohort}" + (f"-seed{self.seed}" if self.seed else "")

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.root / self.name

    def stage(self, name: str) -> Path:
        """Folder of a stage. The cohort is shared by all training seeds."""
        if name not in STAGES:
            raise BrainLDMError(f"stage {name!r} is unknown; choose one of {', '.join(STAGES)}")
        if name == "cohort":
            return self.root / f"{self.profile.name}-{self.cohort}" / "cohort"
        return self.folder / name


def open_run(profile: str | Path | Profile, cohort: str, seed: int = 0, root: str | Path = "runs") -> Run:
    """Open a run folder, or begin one.

    Raises:
        BrainLDMError: the folder was made with other settings of that profile.
    """
    if not isinstance(profile, Profile):
        profile = load_profile(profile)
    if not cohort or not all(letter.isalnum() or letter in "._" for letter in cohort):
        raise BrainLDMError(f"cohort name {cohort!r}: use letters, digits, '.' and '_' only")
    run = Run(profile, cohort, seed, Path(root))
    marker = run.folder / "run.json"
    if marker.exists():
        # What a run is expected to give is no setting: it may be learned from that very run.
        made, wanted = (content | {"expected": {}} for content in (read_json(marker)["profile"], profile.settings()))
        if made != wanted:
            raise BrainLDMError(
                f"{run.folder}: was made with other settings of profile {profile.name!r}; "
                "delete that folder or give another --runs folder"
            )
    else:
        write_json(marker, {"profile": profile.settings(), "cohort": cohort, "seed": seed})
    return run


def run_in(folder: Path | str | None) -> Run | None:
    """The run that a folder holds, as it was begun; None where it holds none, as that of exported weights."""
    if folder is None or not (Path(folder) / "run.json").is_file():
        return None
    facts = read_json(Path(folder) / "run.json")
    return Run(Profile.model_validate(facts["profile"]), facts["cohort"], facts["seed"], Path(folder).resolve().parent)


def clear_stage(folder: Path) -> None:
    """Remove everything a stage has written, so that it starts afresh."""
    shutil.rmtree(folder, ignore_errors=True)
