"""A run's miniature and releases from the command line: shards in any order, resumed, verified, exit codes."""

import json

import pandas as pd
import pytest
from test_training import trained_run

from brainldm_core import cli, release, release_run, sampling
from brainldm_core.covariates import COLUMNS
from brainldm_core.dataset import load_cohort
from brainldm_core.errors import BrainLDMError
from brainldm_core.records import clear_stage, read_json, read_record

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained_run(tmp_path_factory.mktemp("runs"))


def call(capsys, *words):
    code = cli.main([str(word) for word in words])
    return code, *capsys.readouterr()


def test_the_stage_draws_what_the_shards_draw_and_goes_on_after_a_kill(run, tmp_path, capsys, monkeypatch):
    size = run.profile.release.volumes
    words = ("release", "--weights", run.folder, "--n", size, "--out", tmp_path / "set")
    code, out, _ = call(capsys, *words, "--shard", "2/2")
    assert code == 0 and "batches are missing" in out
    code, out, _ = call(capsys, *words, "--shard", "1/2")
    assert code == 0 and f"{size} volumes, finished" in out
    finish = release_run.finish_release
    monkeypatch.setattr(release_run, "finish_release", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        release_run.release_stage(run, progress=False)
    monkeypatch.setattr(release_run, "finish_release", finish)
    drawn = []
    monkeypatch.setattr(release_run, "release_shard", lambda *a, **k: drawn.append(release.release_shard(*a, **k)))
    record = release_run.release_stage(run, progress=False)
    assert sum(drawn) == 0, "what was drawn before the kill was drawn again"
    assert record == release_run.release_stage(run, progress=False) == read_record(run.stage("release"))
    results = record["results"]
    assert (results["volumes"], results["problems"]) == (size, 0) and results["bytes"] > 0 < results["seconds_a_volume"]
    sums = [
        (place / "SHA256SUMS").read_text().splitlines() for place in (tmp_path / "set", run.stage("release") / "set")
    ]
    volumes = [[line for line in lines if "_T1w.nii.gz" in line] for lines in sums]
    assert volumes[0] == volumes[1] and len(volumes[0]) == size
    volumes, table = release_run.read_release(run.stage("release") / "set", 3)
    assert volumes.shape == (3, *run.profile.grid.shape) and 0 <= volumes.min() and volumes.max() <= 1
    known = load_cohort(run.stage("cohort")).rows("train")[list(COLUMNS)]
    assert len(table.merge(known, on=list(COLUMNS))) >= 3  # whole training rows


def test_a_set_of_earlier_weights_is_drawn_again(run, tmp_path):
    folder = run.stage("release")
    made = read_record(folder) or release_run.release_stage(run, progress=False)
    (folder / "record.json").unlink()
    other = json.loads((folder / "set" / "record.json").read_text())
    other["settings"]["sidecar"]["CheckpointSHA256"] = {"unet": "0"}
    (folder / "set" / "record.json").write_text(json.dumps(other))
    assert release_run.release_stage(run, progress=False)["results"]["volumes"] == made["results"]["volumes"]


def test_verify_tells_by_its_exit_code(run, tmp_path, capsys):
    out = tmp_path / "set"
    assert call(capsys, "release", "--weights", run.folder, "--n", 3, "--steps", 1, "--out", out)[0] == 0
    code, said, _ = call(capsys, "release", "verify", out)
    assert (code, said) == (0, f"{out}: nothing is wrong\n")
    (out / "bids" / "README").write_text("other words")
    code, said, _ = call(capsys, "release", "verify", out)
    assert (code, said) == (1, f"{out / 'bids' / 'README'}: was changed\n")
    for nothing in (tmp_path / "nothing", run.stage("cohort")):
        code, said, error = call(capsys, "release", "verify", nothing)
        assert (code, said) == (2, "") and "is not a finished release" in error and error.count("\n") == 1


def test_repair_from_the_command_line(run, tmp_path, capsys):
    out = tmp_path / "set"
    how = ("--n", 5, "--steps", 4, "--sampler", "dpmpp", "--workers", 0, "--title", "Some brains", "--author", "Ada")
    assert call(capsys, "release", "--weights", run.folder, *how, "--out", out)[0] == 0
    description = json.loads((out / "bids" / "dataset_description.json").read_text())
    assert (description["Name"], description["Authors"][0]) == ("Some brains", "Ada")
    assert json.loads((out / "bids" / "T1w.json").read_text())["Sampler"] == "dpmpp"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    lost, hurt = (path for path in sorted(before) if path.name.endswith(("2_T1w.nii.gz", "4_T1w.nii.gz")))
    lost.unlink()
    hurt.write_bytes(before[hurt][:-9])
    code, said, _ = call(capsys, "release", "verify", out, "--repair")
    assert code == 2 and said.count("T1w") >= 2, "the weights that ship drew no such set"
    code, said, _ = call(capsys, "release", "verify", out, "--repair", "--weights", run.folder)
    assert code == 0 and said.count("made again") == 2 and said.endswith(f"{out}: nothing is wrong\n")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (out / "bids" / "mine.txt").write_text("not ours to remove")
    code, said, _ = call(capsys, "release", "verify", out, "--repair", "--weights", run.folder)
    assert code == 1 and said.count("mine.txt: does not belong") == 2 and (out / "bids" / "mine.txt").exists()


def test_shards_of_a_miniature_are_jobs_of_their_own(run, tmp_path, capsys):
    clear_stage(run.stage("release"))
    common = ("--profile", "smoke", "--runs", run.root)
    for part in ("2/2", "1/2"):
        code, said, _ = call(capsys, "miniature", *common, "--shard", part)
        assert code == 0 and f"shard {part} finished" in said and not read_record(run.stage("release"))
    volumes = [read_json(run.stage("release") / "shards" / f"{part}-of-2.json")["volumes"] for part in (1, 2)]
    assert sum(volumes) == run.profile.release.volumes
    drawn = release_run.release_stage(run, progress=False)
    assert drawn["results"]["problems"] == 0


def test_a_set_of_an_earlier_layout_is_drawn_again(run):
    made = release_run.release_stage(run, progress=False)
    path = run.stage("release") / "set" / "record.json"
    old = read_json(path)
    del old["settings"]["compression"]
    path.write_text(json.dumps(old))
    again = release_run.release_stage(run, progress=False)
    assert again["outputs"]["set/SHA256SUMS"] == made["outputs"]["set/SHA256SUMS"]
    assert "compression" in read_json(path)["settings"]


def test_weights_without_a_cohort_ask_for_the_population(run, tmp_path, capsys):
    pipeline = sampling.load_pipeline(run.folder, "cpu")
    wide = {name: (0.0, 9999.0) for name in COLUMNS}
    pipeline = sampling.Pipeline(**vars(pipeline) | {"ranges": wide | {"age_years": (60.0, 70.0)}})
    few, origin = release_run.release_requests(pipeline, None, 5)
    many, _ = release_run.release_requests(pipeline, None, 1500)
    assert origin == release_run.POPULATION and many["age_years"].between(60, 70).all() and len(many) == 1500
    pd.testing.assert_frame_equal(few, many.head(5))
    nobody = sampling.Pipeline(**vars(pipeline) | {"ranges": wide | {"age_years": (20.0, 21.0)}})
    with pytest.raises(BrainLDMError, match="give a run's folder"):
        release_run.release_requests(nobody, None, 5)
    rows, origin = release_run.release_requests(pipeline, run.folder, 4)
    assert origin == release_run.TRAINING_ROWS and len(rows) == 4
    release.release_shard(pipeline, few, tmp_path / "set", steps=1, progress=False, origin=release_run.POPULATION)
    release.finish_release(tmp_path / "set")
    text = (tmp_path / "set" / "bids" / "README").read_text()
    assert "291 people" in text and "training cohort, drawn" not in text
    description = json.loads((tmp_path / "set" / "bids" / "dataset_description.json").read_text())
    assert description["BrainLDM"]["Requests"] == release_run.POPULATION


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "how many volumes in all?"),
        (["--n", "0"], "ask for at least one"),
        (["--n", "4", "--shard", "3/2"], "choose 1/2 to 2/2"),
        (["--n", "4", "--shard", "0/2"], "choose 1/2 to 2/2"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(run, tmp_path, capsys, words, message):
    code, out, error = call(capsys, "release", "--weights", run.folder, *words, "--out", tmp_path / "set")
    assert (code, out) == (2, "") and message in error and error.count("\n") == 1
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("shard", ["3", "a/b", "1/2/3", ""])
def test_a_shard_that_cannot_be_read_says_how_to_write_it(tmp_path, capsys, shard):
    with pytest.raises(SystemExit):
        cli.main(["release", "--n", "4", "--shard", shard, "--out", str(tmp_path)])
    assert "write I/N, for instance 3/64" in capsys.readouterr().err


def test_a_set_that_was_not_begun_cannot_be_finished(tmp_path, capsys):
    code, out, error = call(capsys, "release", "finish", tmp_path / "set")
    assert (code, out) == (2, "") and "no such file" in error and not (tmp_path / "set").exists()


def test_other_requests_come_with_their_words(run, tmp_path):
    """The seam for a cohort's file: any function of pipeline, count and seed."""

    def like_these(pipeline, count, seed):
        rows = {"sex": "F", "age_years": 50.0 + seed, "ventricular_volume_ml": 30.0, "brain_volume_ml": 1100.0}
        return pd.DataFrame([rows] * count), "the same woman"

    release_run.draw_release(
        tmp_path, run.folder, 3, sampler="ddim", steps=1, seed=4, requests=like_these, progress=False
    )  # fmt: skip
    assert set(release_run.read_release(tmp_path)[1]["age_years"]) == {54.0}
    assert "requested jointly: the same woman." in (tmp_path / "bids" / "README").read_text()
