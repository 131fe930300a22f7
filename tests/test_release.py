"""A released set: the same bytes however it is cut or killed, and every damage is found."""

import gzip
import json
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from test_sampling import RANGES, SMOKE, rows

from brainldm_core import networks, release, sampling
from brainldm_core.dataset import save_volume
from brainldm_core.errors import BrainLDMError
from brainldm_core.records import read_record, sha256
from brainldm_core.samples import volume_name

pytestmark = pytest.mark.filterwarnings("ignore")
HOW = {"sampler": "ddim", "steps": 2, "seed": 3, "progress": False}
COUNT = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A pipeline, requests, and a finished release drawn in one shard."""
    torch.manual_seed(0)
    autoencoder, unet = networks.build_autoencoder(SMOKE).eval(), networks.build_unet(SMOKE).eval()
    for parameter in unet.parameters():  # the output convolution starts at zero: give the sample a shape
        torch.nn.init.normal_(parameter, std=0.05)
    pipeline = sampling.Pipeline(SMOKE, autoencoder, unet, RANGES, 1.0, {"unet": "0"}, {"cohort": "atlas"})
    requests = release.draw_requests(rows(6), COUNT, seed=1)
    out = tmp_path_factory.mktemp("release") / "set"
    assert release.release_shard(pipeline, requests, out, **HOW) == COUNT
    release.finish_release(out)
    return pipeline, requests, out


@pytest.fixture
def copy(made, tmp_path):
    """A copy of the release to damage."""
    return shutil.copytree(made[2], tmp_path / "set")


def volume(out, identity):
    return out / "rawdata" / volume_name(identity)


def renew_sums(out):
    """A forger's second step: make checksums and record agree with the files."""
    lines = (out / "SHA256SUMS").read_text().splitlines()
    text = "".join(f"{sha256(out / line[66:])}  {line[66:]}\n" for line in lines if (out / line[66:]).exists())
    (out / "SHA256SUMS").write_text(text)
    record = json.loads((out / "record.json").read_text())
    record["outputs"]["SHA256SUMS"] = sha256(out / "SHA256SUMS")
    (out / "record.json").write_text(json.dumps(record))


def test_requests_are_whole_training_rows_and_a_prefix_of_a_larger_set():
    table = rows(7).assign(brain_volume_ml=np.arange(7) + 1000.0, participant_id="sub-x")
    few, many = release.draw_requests(table, 20, 4), release.draw_requests(table, 2000, 4)
    assert few.equals(many.head(20)) and list(many) == ["sex", "age_years", "ventricular_volume_ml", "brain_volume_ml"]
    assert (many["age_years"] == 50 + 5 * (many["brain_volume_ml"] - 1000)).all()
    counts = many["age_years"].value_counts()
    assert len(counts) == 7 and counts.between(200, 375).all()
    assert not few.equals(release.draw_requests(table, 20, 5))
    with pytest.raises(BrainLDMError, match="at least one"):
        release.draw_requests(table, 0, 4)


def test_the_set_is_bids_and_says_what_it_is(made):
    pipeline, requests, out = made
    raw = out / "rawdata"
    assert sorted(path.name for path in out.iterdir()) == ["SHA256SUMS", "rawdata", "record.json"]
    table = pd.read_csv(raw / "participants.tsv", sep="\t", float_precision="round_trip")
    assert table["participant_id"].tolist() == [f"sub-{identity:06d}" for identity in range(1, COUNT + 1)]
    pd.testing.assert_frame_equal(table[list(requests)], requests, check_dtype=False)
    assert set(json.loads((raw / "participants.json").read_text())) == set(table)
    sidecar = json.loads((raw / "T1w.json").read_text())
    assert (sidecar["Synthetic"], sidecar["Steps"], sidecar["BatchSize"], sidecar["Seed"]) == (True, 2, 2, 3)
    description = json.loads((raw / "dataset_description.json").read_text())
    assert description["License"] == "CC-BY-4.0" and description["GeneratedBy"][0]["Name"] == "brainldm"
    assert "no person" in (raw / "README").read_text() and "5 T1-weighted" in (raw / "README").read_text()
    drawn = sampling.sample(pipeline, requests, list(range(1, COUNT + 1)), "ddim", 2, 0.0, 3)
    for identity in range(1, COUNT + 1):
        image = nib.load(volume(out, identity))
        assert image.get_data_dtype() == np.uint8 and np.allclose(image.affine, pipeline.profile.grid.affine)
        assert np.abs(image.get_fdata() - drawn[identity - 1]).max() <= 0.5 / 255 + 1e-6
    assert volume(out, 1).read_bytes()[4:8] == bytes(4)  # gzip without a time stamp
    assert read_record(out)["results"]["volumes"] == COUNT
    assert release.verify_release(out) == []
    assert release.finish_release(out) == read_record(out)
    assert release.release_shard(pipeline, requests, out, **HOW) == 0


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0)])
def test_shards_in_any_order_give_the_same_bytes(made, tmp_path, order):
    pipeline, requests, out = made
    drawn = [release.release_shard(pipeline, requests, tmp_path, shard, 3, **HOW) for shard in order[:2]]
    with pytest.raises(BrainLDMError, match="1 of 3 batches are missing; run all shards again"):
        release.finish_release(tmp_path)
    drawn.append(release.release_shard(pipeline, requests, tmp_path, order[2], 3, **HOW))
    assert sum(drawn) == COUNT
    release.finish_release(tmp_path)
    assert (tmp_path / "SHA256SUMS").read_bytes() == (out / "SHA256SUMS").read_bytes()


def test_a_killed_shard_goes_on_and_gives_the_same_bytes(made, tmp_path, monkeypatch):
    pipeline, requests, out = made
    calls = []

    def die(path, *rest):
        calls.append(path)
        if len(calls) == 4:  # in the middle of the second batch, leaving what a killed process leaves
            path.with_name(".partial-0-" + path.name).write_bytes(b"half")
            raise KeyboardInterrupt
        save_volume(path, *rest)

    monkeypatch.setattr(release, "save_volume", lambda path, *rest: (path.parent.mkdir(parents=True), die(path, *rest)))
    with pytest.raises(KeyboardInterrupt):
        release.release_shard(pipeline, requests, tmp_path, **HOW)
    monkeypatch.undo()
    assert release.release_shard(pipeline, requests, tmp_path, 0, 2, **HOW) == 1  # its second batch; the first is done
    assert release.release_shard(pipeline, requests, tmp_path, 1, 2, **HOW) == 2
    release.finish_release(tmp_path)
    assert (tmp_path / "SHA256SUMS").read_bytes() == (out / "SHA256SUMS").read_bytes()
    assert release.verify_release(tmp_path) == []


def test_a_volume_damaged_before_the_end_is_drawn_again(made, tmp_path):
    pipeline, requests, out = made
    release.release_shard(pipeline, requests, tmp_path, **HOW)
    one, two = volume(tmp_path, 1), volume(tmp_path, 4)
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)  # swapped
    with pytest.raises(BrainLDMError, match="2 volumes are missing or changed"):
        release.finish_release(tmp_path)
    assert release.release_shard(pipeline, requests, tmp_path, **HOW) == 4
    (tmp_path / "rawdata" / "notes.txt").write_text("mine")
    with pytest.raises(BrainLDMError, match="notes.txt: does not belong"):
        release.finish_release(tmp_path)
    (tmp_path / "rawdata" / "notes.txt").unlink()
    release.finish_release(tmp_path)
    assert (tmp_path / "SHA256SUMS").read_bytes() == (out / "SHA256SUMS").read_bytes()


def test_what_cannot_be_is_refused(made, tmp_path):
    pipeline, requests, out = made
    for shard, shards in ((3, 3), (-1, 3), (0, 0)):
        with pytest.raises(BrainLDMError, match="choose 0 to"):
            release.release_shard(pipeline, requests, tmp_path, shard, shards, **HOW)
    with pytest.raises(BrainLDMError, match="no such file"):
        release.finish_release(tmp_path)
    with pytest.raises(BrainLDMError, match="another release .its sidecar differs"):
        release.release_shard(pipeline, requests, out, **HOW | {"steps": 3})
    with pytest.raises(BrainLDMError, match="another release .its count differs"):
        release.release_shard(pipeline, requests.head(3), out, **HOW)
    with pytest.raises(BrainLDMError, match="another release .its requests_sha256 differs"):
        release.release_shard(pipeline, requests.assign(age_years=60.0), out, **HOW)
    assert release.verify_release(tmp_path) == [f"{tmp_path}: is not a finished release; run its shards and finish it"]


def test_a_set_from_private_scans_says_that_it_stays_here(made, tmp_path):
    pipeline, requests, _ = made
    private = sampling.Pipeline(**vars(pipeline) | {"training": {"cohort": "ukbiobank"}})
    release.release_shard(private, requests.head(2), tmp_path, **HOW)
    release.finish_release(tmp_path)
    description = json.loads((tmp_path / "rawdata" / "dataset_description.json").read_text())
    assert description["License"].startswith("Not to be given away: UK Biobank")
    assert "Not to be given away" in (tmp_path / "rawdata" / "README").read_text()


def truncate(out):
    path = volume(out, 2)
    path.write_bytes(path.read_bytes()[:-40])


def lose(out):
    shutil.rmtree(volume(out, 2).parents[1])


def add(out):
    shutil.copytree(volume(out, 2).parents[1], out / "rawdata" / "sub-000009")


def swap(out):
    one, two = volume(out, 2).read_bytes(), volume(out, 5).read_bytes()
    volume(out, 2).write_bytes(two)
    volume(out, 5).write_bytes(one)


def duplicate(out):
    volume(out, 2).write_bytes(volume(out, 5).read_bytes())


def edit(column, row=2):
    def change(out):
        path = out / "rawdata" / "participants.tsv"
        table = pd.read_csv(path, sep="\t", float_precision="round_trip")
        table.loc[row, column] += 3
        table.to_csv(path, sep="\t", index=False)

    return change


def drop_row(out):
    path = out / "rawdata" / "participants.tsv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def rewrite(change):
    def damage(out):
        image = nib.load(volume(out, 2))
        array, affine = change(image.get_fdata(), image.affine.copy())
        nib.save(nib.Nifti1Image(array.astype(np.float32), affine), volume(out, 2))

    return damage


def shift(affine):
    affine[0, 3] += 2
    return affine


DAMAGES = {
    "truncated": (truncate, "damaged or truncated"),
    "not a volume": (lambda out: volume(out, 2).write_bytes(gzip.compress(b"hello" * 99)), "is not a NIfTI"),
    "missing": (lose, "sub-000002_T1w.nii.gz: is missing"),
    "extra": (add, "sub-000009/anat/sub-000002_T1w.nii.gz: does not belong"),
    "swapped": (swap, "the table says"),
    "duplicate": (duplicate, "is the same as"),
    "moved": (rewrite(lambda array, affine: (array, shift(affine))), "affine differs"),
    "cut": (rewrite(lambda array, affine: (array[1:], affine)), "has shape"),
    "bright": (rewrite(lambda array, affine: (array * 300, affine)), "not within 0 to 1"),
    "requests": (edit("age_years"), "not those that were drawn"),
    "measurements": (edit("measured_brain_ml"), "sub-000003_T1w.nii.gz: measured_brain_ml"),
    "row": (drop_row, "has other rows than the 5"),
    "table": (lambda out: (out / "rawdata" / "participants.tsv").write_bytes(b"\xff\x00\n"), "cannot be read as"),
    "no table": (lambda out: (out / "rawdata" / "participants.tsv").unlink(), "participants.tsv: is missing"),
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("forged", [False, True])
def test_every_damage_is_found_even_where_checksums_were_renewed(copy, name, forged):
    damage, words = DAMAGES[name]
    damage(copy)
    problems = release.verify_release(copy)
    if forged:
        assert problems
        renew_sums(copy)
        problems = release.verify_release(copy)
    assert any(words in problem for problem in problems), problems


def test_checksums_find_what_nothing_else_can(copy):
    (copy / "rawdata" / "README").write_text("other words")
    assert release.verify_release(copy) == [f"{copy / 'rawdata' / 'README'}: was changed"]
    (copy / "SHA256SUMS").unlink()
    assert any("SHA256SUMS: is missing" in problem for problem in release.verify_release(copy))


def test_measuring_again_can_be_limited(copy):
    edit("measured_brain_ml", 1)(copy)
    renew_sums(copy)
    assert release.verify_release(copy) != []
    assert release.verify_release(copy, remeasure=0) == []
    assert release.verify_release(copy, remeasure=1) == []  # looks at the first only
