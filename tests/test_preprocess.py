"""Real scans through the whole of ``prepare_bids``, and hostile folders, tables and files."""

from __future__ import annotations

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from test_dataset import hostile_files

from brainldm_core import dataset, preprocess, quality, records, registration
from brainldm_core.errors import BrainLDMError
from brainldm_core.profiles import load_profile

SCANS = [("sub-a", "ses-1"), ("sub-a", "ses-2"), ("sub-b", "ses-1"), ("sub-c", "ses-1"), ("sub-d", "ses-1")]
TABLE = "participant_id\tsession_id\tage\tsex\tventricular_volume_ml\tbrain_volume_ml\n" + "".join(
    f"{person}\t{session}\t{50 + i}\t{'FM'[i % 2]}\t{20 + i}\t1150\n" for i, (person, session) in enumerate(SCANS)
)


@pytest.fixture(scope="module")
def brain():
    """The template shrunk to a person's size, on a coarse grid that does not lie in template space."""
    from nilearn import datasets

    t1 = datasets.load_mni152_template(resolution=4)
    small = ndimage.zoom(t1.get_fdata(dtype=np.float32), 0.9, order=1)
    return nib.Nifti1Image((small * 900).astype(np.int16), np.diag([4.0, 4.0, 4.0, 1.0]))


@pytest.fixture
def bids(tmp_path, brain):
    """A BIDS folder of five scans of four people."""
    folder = tmp_path / "people"
    for person, session in SCANS:
        path = folder / person / session / "anat" / f"{person}_{session}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(brain, path)
    (folder / "participants.tsv").write_text(TABLE)
    decoy = folder / "derivatives" / "sub-a" / "anat" / "sub-a_T1w.nii.gz"
    decoy.parent.mkdir(parents=True)
    decoy.write_text("not to be read")
    return folder


@pytest.fixture
def run(tmp_path):
    return records.open_run("smoke", "people", root=tmp_path / "runs")


@pytest.fixture
def quick(monkeypatch):
    """Stand-in for the registration; returns the list of its calls."""
    calls = []

    def register(volume, affine):
        calls.append(volume.shape)
        return registration.Registration(np.eye(4), 0.9, 0.5, 0.5, 800.0, True)

    monkeypatch.setattr(registration, "register", register)
    return calls


def scan(bids, person="sub-b", session="ses-1"):
    return bids / person / session / "anat" / f"{person}_{session}_T1w.nii.gz"


def test_scans_become_a_cohort_and_one_bad_scan_stops_nothing(bids, run, capsys):
    scan(bids, "sub-d").write_bytes(scan(bids, "sub-d").read_bytes()[:3000])
    record = preprocess.prepare_bids(bids, run, workers=2)
    folder = run.stage("cohort")
    cohort = dataset.load_cohort(folder)
    np.testing.assert_allclose(cohort.affine, run.profile.grid.affine)
    assert len(cohort.table) == 4
    assert cohort.table["age_years"].tolist() == [50, 51, 52, 53]
    assert cohort.table.groupby("participant_id")["split"].nunique().max() == 1
    assert set(cohort.table["split"]) == set(dataset.SPLITS)
    volumes = cohort.volumes("train")
    assert volumes.shape[1:] == (1, *run.profile.grid.shape)
    bright = np.percentile(volumes.numpy(), 97)  # at 10 mm every voxel mixes white matter with its surroundings
    assert 0.55 < bright < 0.85
    failed = pd.read_csv(folder / "failed.tsv", sep="\t")
    assert failed["participant_id"].tolist() == ["sub-d"]
    assert "truncated" in failed.loc[0, "reason"]
    assert "not used: sub-d_ses-1" in capsys.readouterr().err
    table = pd.read_csv(folder / "quality.tsv", sep="\t")
    assert (table["correlation"] > 0.8).all()
    assert table["flagged"].isna().all()
    assert table["brain_only"].all()
    assert (folder / "quality.png").read_bytes()[:4] == b"\x89PNG"
    page = (folder / "quality.html").read_text()
    assert page.count('src="data:image/png;base64,') == 4
    assert "truncated" in page
    assert record["results"] | {"scans": 4, "failed": 1, "flagged": 0, "brain_only": True} == record["results"]
    assert cohort.facts == {"simulated": False, "brain_only": True, "publishable": False}
    assert records.read_record(folder) == record
    sidecar = json.loads(next(folder.rglob("sub-a_ses-1*_T1w.json")).read_text())
    assert sidecar["SkullStripped"] is True
    assert sidecar["brain_extraction"] == "off"
    assert sidecar["intensity_window"] == [0, pytest.approx(sidecar["white_level"] / 0.8, rel=1e-3)]


def test_a_second_start_does_only_what_is_stale(bids, run, quick, brain):
    first = preprocess.prepare_bids(bids, run, workers=1)
    assert len(quick) == 5
    assert preprocess.prepare_bids(bids, run, workers=1) == first
    assert len(quick) == 5
    changed = nib.Nifti1Image(np.asarray(brain.dataobj) // 2, brain.affine)
    nib.save(changed, scan(bids))
    preprocess.prepare_bids(bids, run, workers=1)
    assert len(quick) == 6  # the changed scan alone
    (bids / "participants.tsv").write_text(TABLE.replace("\t50\t", "\t60\t"))
    preprocess.prepare_bids(bids, run, workers=1)
    assert len(quick) == 6
    assert dataset.load_cohort(run.stage("cohort")).table.loc[0, "age_years"] == 60
    shutil.rmtree(bids)
    preprocess.prepare_bids(bids, run, workers=1)  # finished stages need their scans no longer


def test_an_interrupted_start_goes_on_where_it_was(bids, run, quick, monkeypatch):
    fake = registration.register

    def interrupted(volume, affine):
        if len(quick) == 3:
            raise KeyboardInterrupt
        return fake(volume, affine)

    monkeypatch.setattr(registration, "register", interrupted)
    with pytest.raises(KeyboardInterrupt):
        preprocess.prepare_bids(bids, run, workers=1)
    assert records.read_record(run.stage("cohort")) is None
    assert not list(run.stage("cohort").rglob(".partial-*"))
    monkeypatch.setattr(registration, "register", fake)
    preprocess.prepare_bids(bids, run, workers=1)
    assert len(quick) == 5
    assert len(dataset.load_cohort(run.stage("cohort")).table) == 5


def test_every_kind_of_damaged_scan_is_listed(bids, run, quick, tmp_path):
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    for kind, damaged in hostile_files(hostile).items():
        if kind in ("absent", "other format", "truncated plain"):
            continue
        shutil.copy(damaged, scan(bids))
        preprocess.prepare_bids(bids, run, workers=1)
        failed = pd.read_csv(run.stage("cohort") / "failed.tsv", sep="\t")
        assert failed["participant_id"].tolist() == ["sub-b"], kind
        assert str(scan(bids)) in failed.loc[0, "reason"], kind
        assert "sub-b" not in set(dataset.load_cohort(run.stage("cohort")).table["participant_id"])


@pytest.mark.parametrize("error", [RuntimeError("itk::ERROR:\nsomething long"), IndexError("index 5"), OSError("odd")])
def test_a_registration_that_breaks_is_one_failed_scan(bids, run, quick, monkeypatch, error):
    fake = registration.register

    def broken(volume, affine):
        if len(quick) == 1:
            quick.append(None)
            raise error
        return fake(volume, affine)

    monkeypatch.setattr(registration, "register", broken)
    record = preprocess.prepare_bids(bids, run, workers=1)
    assert record["results"]["failed"] == 1
    assert "could not be prepared" in (run.stage("cohort") / "failed.tsv").read_text()


def test_no_usable_scan_is_an_error_that_leaves_nothing(bids, run, quick):
    for path in bids.glob("sub-*/ses-*/anat/*.nii.gz"):
        path.write_text("no")
    with pytest.raises(BrainLDMError, match="none of 5 scans could be used; the first: .*not a NIfTI"):
        preprocess.prepare_bids(bids, run, workers=1)
    assert not run.stage("cohort").exists()


def test_a_full_disk_stops_at_once(bids, run, quick, monkeypatch):
    def full(image, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(BrainLDMError, match="No space left on device"):
        preprocess.prepare_bids(bids, run, workers=1)
    assert len(quick) == 1
    assert records.read_record(run.stage("cohort")) is None
    assert not list(run.stage("cohort").rglob("*T1w*"))


def rewrite(bids, old, new):
    path = bids / "participants.tsv"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: shutil.rmtree(b), "no such folder; give a BIDS folder"),
        (lambda b: (b / "participants.tsv").unlink(), "participants.tsv is missing"),
        (lambda b: [shutil.rmtree(p) for p in b.glob("sub-*")], "has no T1w scans"),
        (lambda b: rewrite(b, "sub-a\tses-2", "sub-a\tses-1"), "(sub-a, ses-1) is already on line 2"),
        (lambda b: rewrite(b, "sub-a\tses-2", "sub-a\t"), "session_id '' is missing"),
        (lambda b: rewrite(b, "sub-a\tses-2", "\tses-2"), "participant_id '' is missing"),
        (lambda b: rewrite(b, "sub-b\tses-1", "sub-e\tses-1"), "has no row (sub-b, ses-1)"),
        (lambda b: rewrite(b, "\t52\t", "\told\t"), "age_years 'old' is not a number"),
        (lambda b: rewrite(b, "\t52\t", "\t152\t"), "age_years 152 is impossible"),
        (lambda b: rewrite(b, "\t52\tF", "\t52\tX"), "sex 'X' is unknown"),
        (lambda b: rewrite(b, "\t22\t", "\t-22\t"), "ventricular_volume_ml -22 is impossible"),
        (lambda b: rewrite(b, "\t22\t1150", "\t22\t11500"), "brain_volume_ml 11500 is impossible"),
        (lambda b: [shutil.rmtree(b / f"sub-{p}") for p in "bc"], "fewer than 3 participants"),
    ],
)
def test_wrong_folders_and_tables_stop_before_anything_is_written(bids, run, quick, spoil, message):
    spoil(bids)
    with pytest.raises(BrainLDMError, match=re.escape(message)) as caught:
        preprocess.prepare_bids(bids, run, workers=1)
    assert str(bids) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not run.stage("cohort").exists()
    assert quick == []


def test_profiles_without_mask_channels_refuse_missing_covariates(bids, run, quick, tmp_path):
    rewrite(bids, "\t22\t", "\tn/a\t")
    preprocess.prepare_bids(bids, run, workers=1)
    smoke = load_profile("smoke")
    plain = smoke.diffusion.model_copy(update={"mask_channels": False, "covariate_dropout": 0.0})
    strict = smoke.model_copy(update={"name": "plain", "diffusion": plain})
    with pytest.raises(BrainLDMError, match="ventricular_volume_ml is missing; this profile has no mask channels"):
        preprocess.prepare_bids(bids, records.open_run(strict, "people", root=tmp_path / "runs"), workers=1)


def test_a_table_without_sessions_serves_people_scanned_once(bids, run, quick):
    table = pd.read_csv(bids / "participants.tsv", sep="\t", dtype=str)
    rows = table[table["session_id"] == "ses-1"].drop(columns="session_id")
    rows.to_csv(bids / "participants.tsv", sep="\t", index=False)
    with pytest.raises(BrainLDMError, match=re.escape("has no row (sub-a, ses-2)")):
        preprocess.prepare_bids(bids, run, workers=1)
    shutil.rmtree(bids / "sub-a" / "ses-2")
    preprocess.prepare_bids(bids, run, workers=1)
    assert dataset.load_cohort(run.stage("cohort")).table["session_id"].tolist() == ["ses-1"] * 4


def test_a_row_without_a_scan_is_listed(bids, run, quick):
    (bids / "participants.tsv").write_text(TABLE + "sub-z\tses-1\t70\tF\t30\t1100\n")
    record = preprocess.prepare_bids(bids, run, workers=1)
    assert record["results"]["failed"] == 1
    assert "sub-z\tses-1\trow without a T1w scan" in (run.stage("cohort") / "failed.tsv").read_text()


def test_out_must_be_new_or_ours_and_elsewhere(bids, run, quick, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    for out, message in [(other, "holds other files"), (bids, "holds other files"), (bids / "x", "scans' own folder")]:
        with pytest.raises(BrainLDMError, match=message):
            preprocess.prepare_bids(bids, run, out, workers=1)
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]
    assert not (bids / "x").exists()
    preprocess.prepare_bids(bids, run, tmp_path / "new", workers=1)
    preprocess.prepare_bids(bids, run, tmp_path / "new", workers=1)
    assert len(dataset.load_cohort(tmp_path / "new").table) == 5
    assert not run.stage("cohort").exists()


def test_the_simulated_cohort_keeps_its_name(bids, tmp_path):
    with pytest.raises(BrainLDMError, match="is a simulated one"):
        preprocess.prepare_bids(bids, records.open_run("smoke", "atlas", root=tmp_path / "runs"))


def test_outliers_are_flagged():
    table = pd.DataFrame(
        {
            "correlation": [0.55, 0.56, 0.54, 0.57, 0.30, 0.55, 0.56],
            "rotation_degrees": [5.0, 5, 5, 5, 5, 80, 5],
            "scale": [0.9, 0.9, 0.9, 1.3, 0.9, 0.9, 0.9],
            "brain_only": [True] * 6 + [False],
        }
    )
    reasons = quality.flag_outliers(table)
    assert reasons[:3] == ["", "", ""]
    for reason, word in zip(reasons[3:], ["scale 1.30", "correlation 0.30", "turned by 80", "whole head"], strict=True):
        assert word in reason
