"""Generated brains on disk: whole folders with honest sidecars, and the stage that the chapters measure."""

import errno
import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from test_sampling import rows
from test_training import trained_run

from brainldm_core import cli, records, samples, sampling
from brainldm_core.errors import BrainLDMError

pytestmark = pytest.mark.filterwarnings("ignore")
HOW = {"sampler": "ddim", "steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def drawn(run):
    pipeline, table, ids = sampling.load_pipeline(run.folder), rows(3), [1, 2, 3]
    table.loc[1, "brain_volume_ml"] = None
    return pipeline, table, sampling.sample(pipeline, table, ids, **HOW), ids


def test_a_folder_of_samples_says_what_it_is(drawn, tmp_path):
    pipeline, table, volumes, ids = drawn
    out = samples.write_samples(*drawn, tmp_path / "deep" / "brains", **HOW)
    image = nib.load(out / "sub-000002" / "anat" / "sub-000002_T1w.nii.gz")
    assert np.allclose(image.affine, pipeline.profile.grid.affine)
    assert image.header["sform_code"] == image.header["qform_code"] == 4
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert np.abs(image.get_fdata() - volumes[1]).max() <= 0.5 / 255 + 1e-6
    sidecar = json.loads((out / "sub-000002" / "anat" / "sub-000002_T1w.json").read_text())
    assert sidecar["Synthetic"] is True and "synthetic" in sidecar["Description"].lower()
    assert sidecar["CheckpointSHA256"] == pipeline.sha256
    assert (sidecar["Seed"], sidecar["SampleID"], sidecar["Sampler"], sidecar["Steps"]) == (3, 2, "ddim", 2)
    assert sidecar["RequestedCovariates"]["age_years"] == 55.0
    assert sidecar["RequestedCovariates"]["brain_volume_ml"] is None
    assert set(sidecar["MeasuredVolumes"]) == {f"measured_{name}" for name in samples.MEASURED}
    written = pd.read_csv(out / "participants.tsv", sep="\t")
    assert written["participant_id"].tolist() == ["sub-000001", "sub-000002", "sub-000003"]
    assert set(json.loads((out / "participants.json").read_text())) == set(written)
    assert (out / "montage.png").read_bytes()[:4] == b"\x89PNG"
    assert (out / "dataset_description.json").exists()
    assert [path.name for path in out.parent.iterdir()] == ["brains"]


def test_a_folder_that_holds_something_is_left_alone(drawn, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BrainLDMError, match="exists already"):
        samples.write_samples(*drawn, tmp_path, **HOW)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_place_that_is_taken_is_told_before_anything_is_drawn(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.setattr(sampling, "load_pipeline", lambda *_: pytest.fail("weights were loaded first"))
    assert cli.main(["sample", "--age", "70", "--out", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
    records.check_free(tmp_path / "new")
    with pytest.raises(BrainLDMError, match="exists already"):
        records.check_free(tmp_path / "mine.txt")


def test_the_bar_counts_and_an_empty_volume_measures_nothing(capsys):
    with samples.progress_bar("drawing", show=False) as seen:
        seen(3, 9)
    assert capsys.readouterr().err == ""
    none = samples.measure_all(np.zeros((1, 16, 20, 16), np.float32), np.diag([10.0, 10, 10, 1]))
    assert (none == 0).all(axis=None) and len(none) == 1
    assert list(samples.measure_all(np.zeros((0, 16, 20, 16)), np.eye(4))) == list(none)


def test_a_full_disk_leaves_nothing_half_written(drawn, tmp_path, monkeypatch):
    real, calls = samples.save_volume, []

    def fill_up(path, *rest):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, *rest)

    monkeypatch.setattr(samples, "save_volume", fill_up)
    with pytest.raises(BrainLDMError, match="No space left"):
        samples.write_samples(*drawn, tmp_path / "brains", **HOW)
    assert not list(tmp_path.iterdir())


def test_the_stage_asks_for_held_out_rows_and_measures_what_it_keeps(run):
    record = samples.sample_stage(run, progress=False)
    folder, settings = run.stage("samples"), run.profile.sampling
    held_out = samples.load_cohort(run.stage("cohort")).rows("test").head(settings.evaluation_samples)
    counts = dict.fromkeys(("real", "reconstruction", "mean", "ddim"), 4) | {"ddpm": settings.ddpm_samples}
    for kind, count in counts.items():
        volumes = np.load(folder / f"{kind}.npz")["volumes"]
        table = pd.read_csv(folder / f"{kind}.tsv", sep="\t", na_values="n/a")
        assert volumes.shape == (count, *run.profile.grid.shape) and volumes.dtype == np.uint8
        assert table["participant_id"].tolist() == held_out["participant_id"].head(count).tolist()
        again = samples.measure_all(volumes.astype(np.float32) / 255, run.profile.grid.affine)
        assert np.allclose(table[again.columns], again, equal_nan=True)
    assert set(record["results"]["seconds_a_volume"]) == {"ddim", "ddpm"}
    assert record["results"]["ventricles_ddim"]["n"] <= 4
    assert samples.sample_stage(run, progress=False) == record
