"""What a large release takes: compressing, measuring and reading a volume, and the bookkeeping of 100,000 of them.

    python benchmarks/release.py --out runs/release.json --n 100000

**Volumes** of 2 mm and 1 mm (the grids of demo and paper): the MNI152 template of nilearn with fine grain inside the
head, as ``uint8``. Each is written by nibabel's default and by the package, in one run; both files are read again and
hold the same voxels. Then it is measured, on one thread, and read and checked as verification does.

**Bookkeeping**: a release of ``--n`` volumes of 2 x 2 x 2 voxels by a stub in the place of both networks. All files
are real: planning, drawing (compression, measurement, hashes, markers), finishing, verifying, and the repair of one
volume. Every phase is a process of its own, so that its peak memory is its own. The folder is removed at the end.

**Work** of a UNet step and of decoding a volume of profile paper is counted on meta tensors, not timed.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forward import example, random_network
from measures import counted_tflop, environment, time_calls

from brainldm_core import release, release_check, release_write
from brainldm_core.dataset import nifti_image
from brainldm_core.profiles import Grid, Profile, load_profile
from brainldm_core.records import commit, peak_memory_mib, write_json
from brainldm_core.release_repair import repair_release
from brainldm_core.release_run import draw_population
from brainldm_core.sampling import Pipeline

CPU = torch.device("cpu")
GRIDS = {"2 mm": "demo", "1 mm": "paper"}
RANGES = {
    "sex": (0.0, 1.0),
    "age_years": (44.0, 82.0),
    "ventricular_volume_ml": (0.0, 171.0),
    "brain_volume_ml": (900.0, 1800.0),
}


def template_head(grid: Grid, grain: float = 0.02, seed: int = 0) -> np.ndarray:
    """The MNI152 template on a grid, (D, H, W) uint8, with normal grain of that standard deviation inside the head."""
    from nilearn.datasets import load_mni152_template
    from nilearn.image import resample_img

    image = load_mni152_template(resolution=1)
    image = resample_img(image, np.array(grid.affine), grid.shape, force_resample=True, copy_header=True)
    volume = np.clip(image.get_fdata() / np.percentile(image.get_fdata(), 99.5), 0, 1)
    volume += np.where(volume > 0.05, np.random.default_rng(seed).normal(0, grain, volume.shape), 0)
    return np.ascontiguousarray(np.round(np.clip(volume, 0, 1) * 255), dtype=np.uint8)  # in the order of decoded ones


def time_volumes(profile: Profile, folder: Path, seconds: float = 3.0) -> dict[str, Any]:
    """Milliseconds and bytes of one volume on a profile's grid, by nibabel's default writer and by the package's."""
    import nibabel as nib

    volume, affine = template_head(profile.grid), profile.grid.affine
    usual, ours = folder / "usual.nii.gz", folder / "ours.nii.gz"
    image = nifti_image(volume, affine, 1 / 255)
    times = {"nibabel": time_calls(lambda: nib.save(image, usual), CPU, seconds)}
    times["package"] = time_calls(lambda: ours.write_bytes(release_write.encode(volume, affine)[0]), CPU, seconds)
    if gzip.decompress(usual.read_bytes()) != gzip.decompress(ours.read_bytes()):
        raise SystemExit("the two files differ in their voxels")
    plain = release_write.encode(volume, affine)[1]
    times["measuring"] = time_calls(lambda: release_write.measured(plain), CPU, seconds, least=2)
    plan = {"shape": list(profile.grid.shape), "affine": affine}
    job = (str(ours), plan, None)
    times["reading"] = time_calls(lambda: release_check.inspect(job), CPU, seconds)
    if release_check.inspect(job)[1]:
        raise SystemExit(f"the volume is not sound: {release_check.inspect(job)[1]}")
    sizes = {"bytes_nibabel": usual.stat().st_size, "bytes_package": ours.stat().st_size, "bytes_plain": len(plain)}
    ratio = times["nibabel"]["median_ms"] / times["package"]["median_ms"]
    return {"grid": list(profile.grid.shape), **times, **sizes, "times_faster": round(ratio, 2)}


def counted_work(profile: Profile) -> dict[str, float]:
    """Work of one UNet step and of decoding one volume, in TFLOP, counted on meta tensors."""
    meta = torch.device("meta")
    unet, autoencoder = random_network("unet", profile, meta), random_network("decoder", profile, meta)
    step = counted_tflop(lambda: unet(**example("unet", profile, 1, meta)))
    return {
        "unet_step_tflop": round(step, 4),
        "decode_tflop": round(counted_tflop(lambda: autoencoder.decode(**example("decoder", profile, 1, meta))), 4),
    }


def stub_pipeline() -> Pipeline:
    """Both networks are a stub: see ``stub_sample``. Volumes have 2 x 2 x 2 voxels."""
    profile = load_profile("tiny")
    grid = profile.grid.model_copy(update={"shape": (2, 2, 2)})
    profile = profile.model_copy(update={"grid": grid})
    stub = torch.nn.Linear(1, 1)
    return Pipeline(profile, stub, stub, RANGES, 1.0, {"unet": "stub"}, {"cohort": "atlas", "brain_only": True})


def stub_sample(pipeline: Pipeline, rows: Any, ids: list[int], *_: Any, **__: Any) -> np.ndarray:
    """Volumes (B, 2, 2, 2) whose voxels spell their number, so that no two are the same."""
    numbers = np.array(ids)[:, None] // 200 ** np.arange(8) % 200
    numbers[:, -1] = 255
    return (numbers / 255).reshape(-1, 2, 2, 2).astype(np.float32)


def in_process(work: Callable[..., Any], *given: Any) -> dict[str, Any]:
    """Seconds and peak memory of some work in a process of its own, and what it gave."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        before, start = peak_memory_mib(), time.perf_counter()
        given_back = work(*given)
        seconds = round(time.perf_counter() - start, 2)
        sender.send({"seconds": seconds, "peak_mib": peak_memory_mib(), "before_mib": before, "gave": given_back})

    process = context.Process(target=run)
    process.start()
    said = receiver.recv()
    process.join()
    return said


def book_keeping(count: int, folder: Path, shards: int = 4) -> dict[str, Any]:
    """Seconds and peak memory of every phase of a release of ``count`` stub volumes in ``folder``."""
    torch.set_num_threads(1)
    release.sample = stub_sample
    pipeline, out = stub_pipeline(), folder / "set"
    how = {"sampler": "ddim", "steps": 1, "seed": 0, "progress": False}
    damaged = out / release_check.due_volumes({"count": count})[count // 2]

    def plan() -> int:
        requests = draw_population(pipeline, count)
        return len(release.release_plan(pipeline, requests, **{key: how[key] for key in ("sampler", "steps", "seed")}))

    def draw(shard: int) -> int:
        return release.release_shard(pipeline, draw_population(pipeline, count), out, shard, shards, **how)

    def finish() -> int:
        return release.finish_release(out)["results"]["volumes"]

    def verify() -> int:
        return len(release.verify_release(out, 1000))

    def damage_and_repair() -> list[str]:
        before = hashlib.sha256((out / release_check.SUMS).read_bytes()).hexdigest()
        damaged.write_bytes(b"damaged")
        mended = repair_release(out, pipeline)
        assert hashlib.sha256((out / release_check.SUMS).read_bytes()).hexdigest() == before
        return [str(Path(name).name) for name in mended]

    phases = {"planning": in_process(plan)}
    for shard in range(1, shards + 1):
        phases[f"drawing {shard}/{shards}"] = in_process(draw, shard)
    phases["a shard that is done"] = in_process(draw, 1)
    phases |= {"finishing": in_process(finish), "verifying": in_process(verify)}
    phases["repairing one volume"] = in_process(damage_and_repair)
    if (
        phases["finishing"]["gave"] != count
        or phases["verifying"]["gave"]
        or not phases["repairing one volume"]["gave"]
    ):
        raise SystemExit(f"the release is not sound: {json.dumps(phases, indent=1)}")
    return {"volumes": count, "shards": shards, "phases": phases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/release.json"))
    parser.add_argument("--n", type=int, nargs="+", default=[10_000, 100_000], help="volumes of the stub's releases")
    parser.add_argument("--folder", type=Path, help="where they are written; default: the system's temporary folder")
    parser.add_argument("--no-volumes", action="store_true", help="bookkeeping only")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="brainldm-release-", dir=options.folder))
    result: dict[str, Any] = {"commit": commit(), "compression": release_write.compression()}
    try:
        if not options.no_volumes:
            result["environment"] = environment(CPU)
            result["counted"] = counted_work(load_profile("paper"))
            torch.set_num_threads(1)
            result["volumes"] = {name: time_volumes(load_profile(profile), place) for name, profile in GRIDS.items()}
            write_json(options.out, result)
        result["book_keeping"] = []
        for count in options.n:
            result["book_keeping"].append(book_keeping(count, place))
            write_json(options.out, result)
            shutil.rmtree(place / "set")
            print(json.dumps(result["book_keeping"][-1], indent=1), flush=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
