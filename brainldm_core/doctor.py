"""What this machine can do, and what is missing and would give more."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

CORE = ("torch", "monai", "monai-generative", "nibabel", "nilearn", "papermill", "jupytext", "snakemake", "safetensors")
DEVICE = ("torch", "safetensors")  # without these nothing can be said of the devices
OPTIONAL_PACKAGES = {
    "deepbet": "cuts brains out of whole heads, for prepare bids --brain-extraction",
    "snakemake-executor-plugin-slurm": "sends jobs to Slurm, for run all --workflow-profile slurm",
    "lpips": "the paper's perceptual loss; smaller profiles use a spectral one",
    "torchvision": "needed by lpips; must match torch",
}
OPTIONAL_PROGRAMS = {
    "mri_synthseg": "measures volumes as the paper did; the built-in morphometry stands in",
    "node": "checks the scripts of the book's pages",
    "sbatch": "trains the larger profiles on a Slurm cluster",
    "git": "puts the commit in every record",
}


def version(package: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> Iterator[str]:
    from .networks import mixed_precision
    from .records import hardware

    facts = hardware()
    yield f"processor  {facts['processor'] or facts['machine']}, {facts['cores']} cores"
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.exists() else set()
    has = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    yield f"           {', '.join(has) or 'no known vector extension'}; trains in {_precision(mixed_precision())}"
    if "memory_gib" in facts:
        yield f"memory     {facts['memory_gib']} GiB (tiny needs about 4)"
    yield f"disk       {shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB free here (tiny needs about 1)"


def _precision(name: str) -> str:
    return "bfloat16" if name == "bf16" else "float32"


def _accelerator() -> Iterator[str]:
    import torch

    yield f"torch      {torch.__version__}, {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        yield "GPU        none that torch can use: tiny runs well without one, demo and paper need one"
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        yield f"GPU        {facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    cudnn = torch.backends.cudnn.version() or 0
    yield f"cuDNN      {cudnn} ({cudnn_advice(cudnn)})"


def cudnn_advice(number: int) -> str:
    """What is known of a version of cuDNN (9.15.0 is 91500) for the 3-D convolutions of this book."""
    if number >= 91500:
        return "good"
    if number >= 90800:
        return "slow or wrong for bfloat16 3-D convolutions: install 9.15 or later"
    return "not tried here: 9.15 or later is known to be good" if number else "none: convolutions will be slow"


def _book() -> str:
    found = version("jupyter-book")
    if found is None:
        return "book       jupyter-book is missing: make setup, or pip install -e .[book] -c constraints.txt"
    return f"book       jupyter-book {found}" + ("" if found.startswith("1.") else ": 2.x cannot build it; needs 1.x")


def report() -> int:
    """Print the report; 1 if a package of the core is missing, else 0."""
    print(f"python     {platform.python_version()} ({sys.platform}), {sys.prefix}")
    missing = [name for name in CORE if version(name) is None]
    print("core       " + ", ".join(f"{name} {version(name)}" for name in CORE if name not in missing))
    if missing:
        print(f"           missing: {', '.join(missing)}; run 'make setup'")
    if not set(missing) & set(DEVICE):
        for line in (*_accelerator(), *_cpu()):
            print(line)
    print(_book())
    for name, gives in OPTIONAL_PACKAGES.items():
        found = version(name)
        print(f"optional   {name} " + (found or f"is missing: {gives}"))
    for name, gives in OPTIONAL_PROGRAMS.items():
        print(f"optional   {name}" + (" is there" if shutil.which(name) else f" is missing: {gives}"))
    return 1 if missing else 0
