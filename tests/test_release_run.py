"""A run's miniature and releases from the command line: shards in any order, resumed, verified, exit codes."""

import json

import pandas as pd
import pytest
from test_training import blob_run

from brainldm_core import cli, release, release_run, sampling, training
from brainldm_core.covariates import COLUMNS
from brainldm_core.dataset import load_cohort
from brainldm_core.errors import BrainLDMError
from brainldm_core.records import read_record

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = blob_run(tmp_path_factory.mktemp("runs"))
    training.train_autoencoder(run, progress=False)
    training.train_diffusion(run, progress=False)
    return run


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
    assert origin == release.TRAINING_ROWS and len(rows) == 4
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
    ],
)
def test_what_cannot_be_drawn_is_one_line(run, tmp_path, capsys, words, message):
    code, out, error = call(capsys, "release", "--weights", run.folder, *words, "--out", tmp_path / "set")
    assert (code, out) == (2, "") and message in error and error.count("\n") == 1
    assert not (tmp_path / "set").exists()
