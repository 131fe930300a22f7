"""The benchmarks' own arithmetic, and the GPU hour rehearsed at smoke size: killed, resumed, packed and restored."""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import pstats
import signal
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from brainldm_core import doctor
from brainldm_core.anatomy import Anatomy, make_anatomy
from brainldm_core.diffusion import predict
from brainldm_core.errors import BrainLDMError
from brainldm_core.networks import build_autoencoder, build_unet, conditioning_width
from brainldm_core.notebooks import with_package
from brainldm_core.profiles import load_profile
from brainldm_core.records import Run, read_json, write_json
from brainldm_core.sampling import Pipeline, sample

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import carried  # noqa: E402
import equivalence  # noqa: E402
import forward  # noqa: E402
import gpu_hour  # noqa: E402
import gpu_training  # noqa: E402
import measures  # noqa: E402
import metrics as metrics_benchmark  # noqa: E402
import release as release_benchmark  # noqa: E402
import sampler_curve  # noqa: E402
import sampling as sampling_benchmark  # noqa: E402
import training_step  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def head() -> Anatomy:
    """Egg-shaped head on voxels of 5 mm: fluid around grey around white matter, and two ventricles."""
    sides = [np.arange(low, 96, 5.0) for low in (-95, -130, -75)]
    x, y, z = np.meshgrid(*sides, indexing="ij")
    radius = np.sqrt((x / 66) ** 2 + ((y + 18) / 84) ** 2 + ((z - 8) / 62) ** 2)
    skull, brain, white = (np.clip(0.5 - 8 * (radius - edge), 0, 1) for edge in (1, 0.92, 0.72))
    tubes = [((x - side * 14) / 10) ** 2 + ((y + 18) / 34) ** 2 + ((z - 16) / 11) ** 2 for side in (-1, 1)]
    lateral = sum(np.clip(1.2 - np.sqrt(tube), 0, 1) for tube in tubes).clip(0, 1) * white
    maps = [skull - brain, brain - white, white - lateral, lateral, np.zeros_like(skull)]
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    affine[:3, 3] = [side[0] for side in sides]
    return make_anatomy("atlas", np.stack(maps).astype(np.float32), affine, 5.0)


@pytest.fixture(scope="module")
def packed(head, tmp_path_factory) -> Path:
    return carried.pack([("atlas", head)], tmp_path_factory.mktemp("carried") / "atlas.zip", "atlas")


def test_packed_people_keep_their_volumes_and_place(head, packed):
    place = carried.facts(packed)["anatomies"]["atlas"]
    with zipfile.ZipFile(packed) as archive:
        maps = np.load(io.BytesIO(archive.read("atlas.npy")))
    back = carried.restored("atlas", maps, place)
    for name, volume in head.volumes().items():
        assert back.volumes()[name] == pytest.approx(volume, rel=0.005)
    shift = (np.array(back.origin_mm) - head.origin_mm) / 5
    assert np.allclose(shift, shift.round()) and back.spacing_mm == 5
    first = shift.round().astype(int)
    inner = tuple(slice(max(0, start), start + side) for start, side in zip(first, back.maps.shape[1:], strict=True))
    ours = head.maps[(slice(None), *inner)]
    theirs = back.maps[(slice(None), *(slice(max(0, -start), None) for start in first))]
    theirs = theirs[(slice(None), *map(slice, ours.shape[1:]))]
    assert np.abs(ours - theirs).max() < 2.1 / carried.LEVELS  # fluid is what three rounded maps leave
    with pytest.raises(BrainLDMError, match="no packed anatomies"):
        carried.facts(packed.with_name("none.zip"))


def test_pieces_join_to_the_file(tmp_path):
    source = tmp_path / "weights.tar"
    source.write_bytes(bytes(range(256)) * 5)
    pieces = carried.write_pieces(source, tmp_path / "out", 500)
    assert [piece.stat().st_size for piece in pieces] == [500, 500, 280]
    assert b"".join(piece.read_bytes() for piece in sorted(pieces)) == source.read_bytes()


def test_work_is_counted_and_times_are_medians():
    meta = torch.device("meta")
    layer, volume = torch.nn.Conv3d(3, 5, 3, padding=1, device=meta), torch.empty(2, 3, 4, 6, 8, device=meta)
    assert measures.counted_tflop(lambda: layer(volume)) * 1e12 == 2 * 2 * 5 * 4 * 6 * 8 * 3 * 27
    found = measures.spread([5.0, 1.0, 3.0, 2.0, 4.0])
    assert found == {"median_ms": 3.0, "quartiles_ms": [1.5, 4.5], "n": 5}
    slow = measures.time_calls(lambda: time.sleep(0.01), CPU, seconds=0.05)
    assert slow["n"] >= 3 and slow["median_ms"] >= 10


@pytest.mark.parametrize(
    ("number", "words"), [(91500, "good"), (91400, "slow or wrong"), (90800, "slow or wrong"), (8902, "not tried")]
)
def test_doctor_knows_which_cudnn_is_bad(number, words):
    assert doctor.cudnn_advice(number).startswith(words)


def test_every_form_computes_the_same_function(monkeypatch):
    monkeypatch.setattr(forward, "time_calls", partial(measures.time_calls, seconds=0.001, least=2, most=2))
    plain = torch.nn.functional.avg_pool3d  # which a processor has not in bfloat16
    monkeypatch.setattr(
        torch.nn.functional, "avg_pool3d", lambda x, *more, **named: plain(x.float(), *more, **named).to(x.dtype)
    )
    profile = load_profile("smoke")
    weights = forward.random_network("unet", profile, CPU).parameters()
    assert all(bool(weight.any()) for weight in weights if weight.dim() > 1)
    square = [*forward.forms("bf16", 2), *forward.forms("fp32", 2)]
    assert len({form.name for form in square}) == len(square) == 24
    for form in square:
        if form.batch == 2 and not form.compiled or form.network == "decoder" and form.layout == "contiguous":
            found = forward.time_form(form, profile, CPU, "eager")
            assert found["relative_error"] < (0.05 if form.precision == "bf16" else 1e-4), form
            assert found["tflops"] == pytest.approx(1000 * found["counted_tflop"] / found["median_ms"], abs=1e-3)
    row = forward.time_recipe("bundle", profile, CPU, repeats=1)
    assert row["batch"] == 1 and row["seconds_a_volume"] > 0


def test_tutorial_step_sees_the_network_that_ours_trains(tmp_path):
    profile = training_step.for_timing(load_profile("smoke"), "diffusion", 2)
    torch.manual_seed(0)
    unet = build_unet(profile).eval()
    latent = torch.randn(2, *profile.latent_shape)
    condition, times = torch.rand(2, conditioning_width(profile)), torch.tensor([3, 7])
    maps = condition[:, :, None, None, None].expand(-1, -1, *profile.latent_shape[1:])
    hybrid = training_step.Hybrid(unet, len(latent[0]))
    with torch.no_grad():
        ours = predict(profile.diffusion, unet, latent, times, condition)
        assert torch.equal(hybrid(torch.cat([latent, maps], 1), times), ours)
    for stage in training_step.STAGES:
        pair = [
            training_step.time_case(load_profile("smoke"), stage, recipe, CPU, steps=2)
            for recipe in ("ours", "tutorial")
        ]
        assert [case["n"] for case in pair] == [2, 2]
        ratio = training_step.compare(*pair)["tutorial_over_ours"]["median_ms"]
        assert ratio == pytest.approx(pair[1]["median_ms"] / pair[0]["median_ms"], abs=1e-3)


def test_metrics_of_the_benchmark_are_the_same_by_every_route():
    found = metrics_benchmark.compare_ms_ssim((32, 40, 28), n=4, pairs=5, repeats=1)
    assert found["scales"] == 3 and found["pairs"] == 5 and 0.1 < found["ours"]["mean"] < 0.95
    other = found["other"]
    assert other["largest_difference"] < 1e-5 and other["package"] in ("monai", "generative")
    assert other["over_ours"] == pytest.approx(other["mean_ms"] / found["ours"]["median_ms"], rel=0.01, abs=0.01)
    assert len(other["tried_ms"]) == 6 and other["pairs"] == 5
    a, b, known = metrics_benchmark.known_features(12, 20)
    assert max(np.linalg.matrix_rank(np.cov(table, rowvar=False)) for table in (a, b)) == 11
    for n, route_error in ((12, 1e-3), (40, 1e-9)):  # the matrix square root of a singular product is not exact
        for case in metrics_benchmark.compare_fid(n, 20, repeats=1):
            errors = {name: route["relative_error"] for name, route in case["routes"].items()}
            assert max(errors["ours"], errors["ours_from_moments"]) < 1e-9 and max(errors.values()) < route_error
    assert case["judged_by"] == "symmetric eigendecompositions"
    assert metrics_benchmark.symmetric_route(a, b) == pytest.approx(known, rel=1e-9)


def test_planned_steps_fit_the_minutes_and_never_exceed_the_profile(tmp_path):
    profile = load_profile("demo")
    for stage, milliseconds in (("autoencoder", 60.0), ("diffusion", 1.0)):
        (tmp_path / f"step-demo-{stage}-ours.json").write_text(json.dumps({"median_ms": milliseconds}))
    plan = gpu_training.planned_steps(profile, CPU, 10, tmp_path)
    assert plan["steps"] == {"autoencoder": 4000, "diffusion": 20000}  # 240 s of 60 ms; all of the profile
    shorter = gpu_training.with_steps(profile, plan["steps"]).autoencoder
    assert shorter.adversarial_start_step == 1600 and shorter.training.warmup_steps == 80
    assert gpu_training.with_subjects(profile, 600).cohort.train == 600


def hour(folder: Path, packed: Path, *more: str) -> list[str]:
    words = [sys.executable, "-W", "ignore", str(FOLDER / "gpu_hour.py"), "--profile", "smoke", "--backend", "eager"]
    words += ["--train-profile", "smoke", "--device", "cpu", "--workers", "1", "--timed-steps", "2", "--minutes", "30"]
    words += ["--out", str(folder / "out"), "--state", str(folder / "state"), "--pack", str(folder / "pack")]
    return [*words, "--carried", str(packed), "--only", "environment,train", *more]


def test_a_killed_hour_goes_on_and_another_machine_takes_over(tmp_path, packed):
    first = tmp_path / "first"
    with subprocess.Popen(hour(first, packed), stdout=subprocess.DEVNULL, env=with_package()) as process:
        done, cohort = first / "out" / "environment.json", first / "state" / "runs" / "smoke-atlas" / "cohort"
        while not (done.exists() and any(cohort.glob("sub-*/anat/*.json"))):  # in the midst of the simulation
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    subjects = {path: path.stat().st_mtime_ns for path in cohort.glob("sub-*/anat/*.json")}
    before = done.stat().st_mtime_ns
    again = subprocess.run(hour(first, packed), stdout=subprocess.PIPE, text=True, env=with_package())
    assert again.returncode == 0 and again.stdout.endswith("all done\n"), again.stdout
    assert done.stat().st_mtime_ns == before  # a finished step is not done again, nor is a finished subject
    assert all(path.stat().st_mtime_ns == changed for path, changed in subjects.items())
    result = json.loads((first / "out" / "train-autoencoder.json").read_text())
    assert result["steps"] == 4 and result["psnr_db"]["n"] == 4 and result["measured_on"] == "cpu"
    assert {path.name for path in (first / "pack").iterdir()} == {"results.tar", "autoencoder.tar", "weights.tar.000"}

    second = tmp_path / "second"
    carry = tmp_path / "carry"
    carry.mkdir()
    for name in ("results.tar", "autoencoder.tar"):
        (first / "pack" / name).rename(carry / name)
    run = Run(gpu_training.with_subjects(load_profile("smoke"), 600), "atlas", 0, second / "state" / "runs")
    gpu_hour.restore(argparse.Namespace(restore=carry, out=second / "out"), run)
    assert {path.name for path in (second / "out").glob("*.json")} == {
        path.name for path in (first / "out").glob("*.json")
    }
    weights = "runs/smoke-atlas/autoencoder/weights.safetensors"
    assert (second / "state" / weights).read_bytes() == (first / "state" / weights).read_bytes()


def test_time_that_is_over_ends_a_step_and_failures_leave_a_note(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, gpu_hour.ended_after(0.05):
        time.sleep(5)
    assert caught.value.code == 143 and signal.getsignal(signal.SIGTERM) is before

    def work(error: Exception):
        raise error

    fails = gpu_hour.Step("fails", 0, partial(work, ValueError("why")))
    full = gpu_hour.Step("full", 0, partial(work, torch.OutOfMemoryError()))
    assert not gpu_hour.do(fails, tmp_path, {}) and "ValueError: why" in (tmp_path / "fails.error.txt").read_text()
    assert gpu_hour.do(full, tmp_path, {"measured_on": "cpu"})
    assert json.loads((tmp_path / "full.json").read_text())["out_of_memory"] is True


@pytest.fixture
def trial(head, tmp_path, monkeypatch):
    """A call of the trial of samplers on untrained networks and four people; gives its folder."""
    profile = load_profile("smoke")
    torch.manual_seed(0)
    ranges = {"sex": (0, 1), "age_years": (44, 82), "ventricular_volume_ml": (5, 80), "brain_volume_ml": (1000, 1300)}
    networks = [network.eval().requires_grad_(False) for network in (build_autoencoder(profile), build_unet(profile))]
    pipeline = Pipeline(profile, *networks, ranges, 1.0, {"unet": "f" * 64}, {})
    real = torch.rand(4, 1, *profile.grid.shape)
    cohort = SimpleNamespace(volumes=lambda split: real, affine=profile.grid.affine)
    monkeypatch.setattr(equivalence, "load_pipeline", lambda run: pipeline)
    monkeypatch.setattr(equivalence, "load_cohort", lambda folder: cohort)
    monkeypatch.setattr(equivalence, "atlas_anatomy", lambda spacing: head)
    write_json(tmp_path / "run.json", {"cohort": "atlas", "profile": {"name": "smoke"}, "seed": 0})

    def call(name: str, *more: str) -> Path:
        out = tmp_path / name
        equivalence.main([str(tmp_path), "--n", "4", "--steps", "4", "2", "--out", str(out), *more])
        return out

    return call


def a_difference_of_samplers_is_that_of_their_errors(folder: Path, found: dict) -> None:
    """The brain's row of DDIM 2 less DDIM 4, recomputed from the files of a trial."""
    grid = load_profile("smoke").grid
    people, table = equivalence.new_people(folder, grid, 4)
    sets = [equivalence.drawn(folder, name) for name in ("DDIM 2", "DDIM 4")]
    first, second = (equivalence.measure_all(volumes, grid.affine)["measured_brain_volume_ml"] for volumes in sets)
    assert found["brain, signed error"]["difference"] == pytest.approx((first - second).mean())
    errors = [(measured - table["brain_volume_ml"]).abs().mean() for measured in (first, second)]
    assert found["brain, absolute error"]["difference"] == pytest.approx(errors[0] - errors[1])
    assert found["brain, absolute error"]["one"] == pytest.approx(errors[0])
    assert len(people) == 4 and table["sex"].isin(["F", "M"]).all()


def test_a_stopped_trial_of_samplers_goes_on_and_its_margins_stay(trial, monkeypatch):
    first = trial("whole")
    whole = read_json(first / "equivalence.json")
    assert whole["missing"] == [] and whole["timesteps"] == 20
    assert [(pair["one"], pair["other"]) for pair in whole["comparisons"]] == [("DDIM 4", "DDPM"), ("DDIM 2", "DDIM 4")]
    for row in (row for pair in whole["comparisons"] for row in pair["rows"].values()):
        assert row["n"] == 4 and row["low"] <= row["difference"] <= row["high"]
        assert not row["shown"]  # four pairs show nothing
    a_difference_of_samplers_is_that_of_their_errors(first, whole["comparisons"][1]["rows"])

    folder = trial("stopped", "--minutes", "0")
    assert read_json(folder / "equivalence.json")["comparisons"] == []
    assert read_json(folder / "equivalence.json")["missing"][-1] == "DDPM: 0 of 2 pieces"
    margins = (folder / "margins.json").read_bytes()  # there before anything is drawn
    calls = iter(range(4))

    def dies(*arguments, **more):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return sample(*arguments, **more)

    monkeypatch.setattr(equivalence, "sample", dies)
    with pytest.raises(KeyboardInterrupt):
        trial("stopped")
    assert len(list(folder.glob("*/piece-*.npz"))) == 3
    monkeypatch.setattr(equivalence, "sample", sample)
    assert read_json(trial("stopped") / "equivalence.json")["comparisons"] == whole["comparisons"]
    assert (folder / "margins.json").read_bytes() == margins


def test_a_trial_of_samplers_refuses_other_settings_and_margins_after_the_fact(trial):
    folder = trial("one", "--minutes", "0")
    with pytest.raises(BrainLDMError, match="other settings"):
        trial("one", "--n", "3")
    equivalence.keep(folder / "ddpm" / "piece-00000.npz", np.zeros((2, 4, 4, 4)))
    (folder / "margins.json").unlink()
    with pytest.raises(BrainLDMError, match="margins come first"):
        trial("one")


def test_a_curve_of_samplers_goes_on_with_the_trials_volumes(trial, tmp_path, monkeypatch):
    with pytest.raises(BrainLDMError, match="no trial has begun"):
        sampler_curve.main([str(tmp_path), "--out", str(tmp_path / "none")])
    folder = trial("whole")
    for name in ("load_pipeline", "load_cohort"):
        monkeypatch.setattr(sampler_curve, name, getattr(equivalence, name))
    monkeypatch.setattr(sampler_curve, "STEPS", {"ddim": [2, 4, 20], "dpmpp": [4]})
    drawn = {path: path.stat().st_mtime_ns for path in folder.glob("*/piece-*.npz")}
    sampler_curve.main([str(tmp_path), "--out", str(folder), "--near", "2"])
    assert all(path.stat().st_mtime_ns == before for path, before in drawn.items())
    curve = read_json(folder / "curve.json")
    points = {(point["sampler"], point["steps"]): point for point in curve["points"]}
    assert list(points) == [("ddpm", 20), ("ddim", 2), ("ddim", 4), ("ddim", 20), ("dpmpp", 4)]
    assert points["ddim", 20]["near"] == {"grey": 0.0, "unlike": pytest.approx(0, abs=1e-5), "n": 2}
    four, whole = (equivalence.drawn(folder, f"DDIM {steps}")[:2] for steps in (4, 20))
    assert points["ddim", 4]["near"]["grey"] == pytest.approx(np.abs(four - whole).mean())
    trialled = read_json(folder / "equivalence.json")
    assert points["ddim", 2]["fid"] == pytest.approx(trialled["comparisons"][1]["rows"]["FID"]["one"])
    assert curve["floor"]["fid"] == trialled["margins"]["margins"]["fid"]["floor"] and curve["missing"] == []


def test_evaluations_are_counted_with_guidance_and_ratios_are_of_medians():
    profile = load_profile("tiny")
    guided = profile.sampling.model_copy(update={"guidance_scale": 2.0, "guidance_interval": (0.1, 0.9)})
    plain = guided.model_copy(update={"guidance_scale": 1.0})
    count = sampling_benchmark.evaluations
    # DDIM 50 visits 0, 20 ... 980: those from 100 to 900 twice.
    assert count(profile.model_copy(update={"sampling": guided}), "ddim:50") == 50 + 41
    assert count(profile.model_copy(update={"sampling": plain}), "ddim:50") == 50
    assert count(profile.model_copy(update={"sampling": plain}), "dpmpp:10") == 10
    parts = ("denoising", "decoding", "writing")
    work, profile = {"unet": 2.0, "decoder": 10.0}, profile.model_copy(update={"sampling": plain})
    rows = {}
    for case, loops in (("ddim:50", (5.0, 9.0, 6.0)), ("dpmpp:10", (1.0, 1.5, 2.0))):
        rounds = [{"batch": 4, "peak_gib": loop, **dict(zip(parts, (loop, 0.4, 0.1), strict=True))} for loop in loops]
        rows[case] = sampling_benchmark.summary(case, rounds, profile, work)
    assert rows["dpmpp:10"]["seconds_a_volume"] == 2.0 and rows["dpmpp:10"]["peak_gib"] == 2.0
    assert rows["dpmpp:10"]["range_s"] == [1.5, 2.5] and rows["dpmpp:10"]["counted_tflop"] == 30.0
    first, second = sampling_benchmark.ratios(rows)
    assert first == {"case": "ddim:50"}
    assert second["ddim:50"] == {"denoising": 4.0, "end_to_end": 3.25, "counted": round(110 / 30, 3)}


def test_parts_of_a_drawn_volume_are_timed_apart():
    found = sampling_benchmark.time_case("dpmpp:2", None, CPU)
    assert all(found[part] > 0 for part in sampling_benchmark.PARTS) and found["peak_gib"] > 0


def calls_of_a_release(count: int, out: Path, monkeypatch) -> list[int]:
    """How many functions are called while a stub's release is drawn, begun again, finished, verified and repaired."""
    monkeypatch.setattr(release_benchmark.release, "sample", release_benchmark.stub_sample)
    pipeline = release_benchmark.stub_pipeline()
    requests = release_benchmark.draw_population(pipeline, count)
    how = {"sampler": "ddim", "steps": 1, "progress": False}

    def repair() -> None:
        (out / release_benchmark.release_check.due_volumes({"count": count})[count // 2]).unlink()
        assert len(release_benchmark.repair_release(out, pipeline)) == 1

    phases = [
        lambda: release_benchmark.release.release_shard(pipeline, requests, out, **how),
        lambda: release_benchmark.release.release_shard(pipeline, requests, out, **how),
        lambda: release_benchmark.release.finish_release(out),
        lambda: release_benchmark.release.verify_release(out, 10),
        repair,
    ]
    calls = []
    for phase in phases:
        with cProfile.Profile() as profile:
            phase()
        calls.append(pstats.Stats(profile).total_calls)
    assert release_benchmark.release.verify_release(out) == []
    return calls


def test_the_work_of_a_release_grows_with_its_volumes_and_no_faster(tmp_path, monkeypatch):
    calls_of_a_release(8, tmp_path / "warm", monkeypatch)
    few = calls_of_a_release(200, tmp_path / "few", monkeypatch)
    many = calls_of_a_release(600, tmp_path / "many", monkeypatch)
    ratios = [after / before for before, after in zip(few, many, strict=True)]
    assert max(ratios) < 3.2 and ratios[0] > 2.5, ratios
