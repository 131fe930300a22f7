"""Cohort folders: layout, affine, reading back, and damaged scans."""

from __future__ import annotations

import gzip
import json
import math

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from brainldm_core import dataset, records
from brainldm_core.errors import BrainLDMError
from brainldm_core.profiles import load_profile

GRID = load_profile("smoke").grid


def make_cohort(folder, people=8):
    """A cohort of random volumes; the last participant has two sessions."""
    rng = np.random.default_rng(0)
    scans = [(f"sub-{i}", "n/a") for i in range(people - 1)] + [("sub-x", "ses-1"), ("sub-x", "ses-2")]
    splits = dataset.assign_splits(person for person, _ in scans)
    rows, volumes = [], {}
    for person, session in scans:
        volumes[person, session] = rng.random(GRID.shape).astype(np.float32)
        dataset.save_volume(dataset.volume_path(folder, person, session), volumes[person, session], GRID.affine)
        rows.append({"participant_id": person, "session_id": session, "split": splits[person]})
        rows[-1] |= {"age_years": 50.5, "sex": "F", "ventricular_volume_ml": 20.0, "brain_volume_ml": math.nan}
    dataset.write_tables(folder, pd.DataFrame(rows), "test", {"brain_only": True})
    return volumes


def test_what_is_written_is_read_back(tmp_path):
    volumes = make_cohort(tmp_path / "cohort")
    cohort = dataset.load_cohort(tmp_path / "cohort")
    assert list(cohort.table.columns)[:3] == ["participant_id", "session_id", "split"]
    assert "n/a" in (tmp_path / "cohort/participants.tsv").read_text()
    np.testing.assert_allclose(cohort.affine, GRID.affine)
    assert cohort.facts == {"brain_only": True}
    seen = 0
    for split in dataset.SPLITS:
        rows, tensor = cohort.rows(split), cohort.volumes(split)
        assert tensor.dtype == torch.float32
        assert tensor.shape == (len(rows), 1, *GRID.shape)
        for keys, volume in zip(rows[["participant_id", "session_id"]].itertuples(index=False), tensor, strict=True):
            np.testing.assert_allclose(volume[0], volumes[tuple(keys)], atol=0.5001 / 255)
            seen += 1
    assert seen == len(volumes)


def test_layout_and_header_follow_bids_and_mni(tmp_path):
    make_cohort(tmp_path)
    path = tmp_path / "sub-x/ses-2/anat/sub-x_ses-2_desc-preproc_T1w.nii.gz"
    image = nib.load(path)
    assert image.get_data_dtype() == np.uint8
    assert image.dataobj.slope == pytest.approx(1 / 255)
    assert image.header["sform_code"] == image.header["qform_code"] == 4
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert dataset.labels_path(tmp_path, "sub-0").name == "sub-0_dseg.nii.gz"
    assert json.loads((tmp_path / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    before = path.read_bytes()
    make_cohort(tmp_path)
    assert path.read_bytes() == before


def test_splits_are_by_participant_deterministic_and_never_empty():
    ids = [f"sub-{i}" for i in range(200)]
    splits = dataset.assign_splits(ids)
    assert splits == dataset.assign_splits(reversed(ids))
    counts = pd.Series(splits).value_counts()
    assert counts.to_dict() == {"train": 140, "validation": 30, "test": 30}
    assert set(dataset.assign_splits(["a", "b", "c", "c"]).values()) == set(dataset.SPLITS)
    with pytest.raises(BrainLDMError, match="at least 3"):
        dataset.assign_splits(["a", "b", "b"])


def hostile_files(folder):
    """Damaged scans by kind."""
    good = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32)
    write = {
        "4-D": np.stack([good, good], -1),
        "nan": np.where(np.arange(512).reshape(8, 8, 8) == 3, np.nan, good),
        "empty": np.zeros_like(good),
        "2-D": good[0],
        "rgb": None,
    }
    paths = {}
    for kind, array in write.items():
        paths[kind] = folder / f"{kind}.nii.gz"
        if kind == "rgb":
            array = np.zeros((8, 8, 8), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
        nib.save(nib.Nifti1Image(array, np.eye(4)), paths[kind])
    nib.save(nib.Nifti1Image(good, np.eye(4)), folder / "good.nii.gz")
    content = (folder / "good.nii.gz").read_bytes()
    paths["truncated"] = folder / "truncated.nii.gz"
    paths["truncated"].write_bytes(content[: len(content) // 2])
    paths["truncated plain"] = folder / "plain.nii"
    paths["truncated plain"].write_bytes(gzip.decompress(content)[:1000])
    paths["zero bytes"] = folder / "zero.nii.gz"
    paths["zero bytes"].write_bytes(b"")
    paths["text"] = folder / "text.nii.gz"
    paths["text"].write_text("not an image")
    paths["flipped bits"] = folder / "flipped.nii.gz"
    broken = bytearray(content)
    broken[len(broken) // 2 : len(broken) // 2 + 40] = b"\0" * 40
    paths["flipped bits"].write_bytes(bytes(broken))
    paths["absent"] = folder / "absent.nii.gz"
    paths["other format"] = folder / "other.mgz"
    nib.save(nib.MGHImage(good, np.eye(4)), paths["other format"])
    return paths


def test_damaged_scans_are_refused_in_one_line(tmp_path):
    for kind, path in hostile_files(tmp_path).items():
        with pytest.raises(BrainLDMError) as caught:
            dataset.read_nifti(path)
            pytest.fail(f"{kind} was accepted")
        assert str(path) in str(caught.value), kind
        assert "\n" not in str(caught.value), kind
        assert ";" in str(caught.value), kind  # a mend is named
    volume, affine = dataset.read_nifti(tmp_path / "good.nii.gz")
    assert volume.shape == (8, 8, 8)
    assert affine.shape == (4, 4)


def test_a_damaged_cohort_is_refused(tmp_path):
    with pytest.raises(BrainLDMError, match="no cohort here"):
        dataset.load_cohort(tmp_path / "absent")
    make_cohort(tmp_path)
    cohort = dataset.load_cohort(tmp_path)
    with pytest.raises(BrainLDMError, match="split 'training' is unknown"):
        cohort.rows("training")
    table = (tmp_path / "participants.tsv").read_text()
    (tmp_path / "participants.tsv").write_text(table.replace("\ttrain\t", "\ttraining\t"))
    with pytest.raises(BrainLDMError, match="split 'training' is unknown"):
        dataset.load_cohort(tmp_path)
    (tmp_path / "participants.tsv").write_text(table)
    first = dataset.volume_path(tmp_path, *cohort.rows("train").loc[0, ["participant_id", "session_id"]])
    moved = np.array(GRID.affine)
    moved[0, 3] += 5
    dataset.save_volume(first, np.random.default_rng(0).random(GRID.shape), moved)
    # Which scan places the grid does not matter: any disagreement is caught.
    with pytest.raises(BrainLDMError, match="on another grid"):
        [dataset.load_cohort(tmp_path).volumes(split) for split in dataset.SPLITS]


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(image, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(BrainLDMError, match="No space left on device"):
        dataset.save_volume(tmp_path / "a/x.nii.gz", np.zeros(GRID.shape), GRID.affine)
    assert list((tmp_path / "a").iterdir()) == []
    assert records.read_record(tmp_path) is None
