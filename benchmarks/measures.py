"""What the benchmarks share: medians with their spread, peak memory, and counted floating-point operations."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import numpy as np
import torch

from brainldm_core.doctor import cudnn_advice
from brainldm_core.networks import default_device
from brainldm_core.records import hardware, peak_memory_mib

PACKAGES = ("monai", "monai-generative", "accelerate", "numpy", "nibabel", "pydantic", "safetensors", "triton")


def choose_device(name: str | None = None) -> torch.device:
    """The device of that name, or a GPU if there is one; asked for ``cpu``, the package's own training sees no GPU."""
    if name == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return torch.device(name or default_device())


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions and products of float32 without TF32 inside this block."""
    settings = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [part.allow_tf32 for part in settings]
    try:
        for part in settings:
            part.allow_tf32 = False
        yield
    finally:
        for part, value in zip(settings, before, strict=True):
            part.allow_tf32 = value


def spread(milliseconds: list[float]) -> dict[str, Any]:
    """Median, quartiles and number of some times in ms."""
    low, middle, high = statistics.quantiles(milliseconds, n=4) if len(milliseconds) > 1 else 3 * milliseconds
    return {
        "median_ms": round(middle, 3),
        "quartiles_ms": [round(low, 3), round(high, 3)],
        "n": len(milliseconds),
    }


def time_calls(
    function: Callable[[], Any], device: torch.device, seconds: float = 2.0, least: int = 5, most: int = 100
) -> dict[str, Any]:
    """Times of a call that has been warmed up, for about ``seconds``: by events on a GPU, by the clock elsewhere."""
    synchronise(device)
    start = time.perf_counter()
    function()
    synchronise(device)
    count = int(min(most, max(least, seconds / (time.perf_counter() - start))))
    times = []
    if device.type == "cuda":
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for before, after in marks:
            before.record()
            function()
            after.record()
        synchronise(device)
        times = [before.elapsed_time(after) for before, after in marks]
    else:
        for _ in range(count):
            start = time.perf_counter()
            function()
            times.append(1000 * (time.perf_counter() - start))
    return spread(times)


def reset_peak(device: torch.device) -> None:
    """Let go of cached memory and begin to count the peak anew; the peak of a process cannot be reset."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float:
    """Most memory in tensors on a GPU since ``reset_peak``; elsewhere the largest size of this process, in GiB."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    return round(peak_memory_mib() / 1024, 3)


def counted_tflop(function: Callable[[], Any]) -> float:
    """Work of a call on meta tensors in 1e12 floating-point operations (a multiply-add is two)."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e12


def psnr_in_mask(volumes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """PSNR (N,) in dB inside the head of volumes (N, D, H, W)."""
    errors = [((x - y)[x > 0] ** 2).mean() for x, y in zip(volumes, others, strict=True)]
    return -10 * np.log10(errors)


def environment(device: torch.device) -> dict[str, Any]:
    """What was measured on: machine, versions, what is known of this cuDNN, and two ceilings of the device."""
    versions = {name: metadata.version(name) for name in PACKAGES if _installed(name)}
    facts = hardware() | {"torch": torch.__version__, "packages": versions, "device": device.type}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        cudnn = torch.backends.cudnn.version() or 0
        facts |= {
            "gpu": properties.name,
            "gpu_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": cudnn,
            "cudnn_advice": cudnn_advice(cudnn),
        }
    side = 8192 if device.type == "cuda" else 512
    one, two = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    one @ two
    times = time_calls(lambda: one @ two, device, seconds=0.5)
    source = torch.randn(side * side * (8 if device.type == "cuda" else 1), device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    copies = time_calls(lambda: target.copy_(source), device, seconds=0.5)
    return facts | {
        "bf16_matmul_tflops": round(2 * side**3 / times["median_ms"] / 1e9, 1),
        "copy_gb_per_s": round(2 * source.numel() * 4 / copies["median_ms"] / 1e6, 1),
        "tf32": {"cudnn": torch.backends.cudnn.allow_tf32, "matmul": torch.backends.cuda.matmul.allow_tf32},
    }


def _installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False
