"""A released set: the same bytes however it is cut or killed, and every damage is found."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from test_sampling import SMOKE, rows, untrained_pipeline

from brainldm_core import release, release_repair, release_write, sampling
from brainldm_core.dataset import nifti_image
from brainldm_core.errors import BrainLDMError
from brainldm_core.records import read_record, sha256, write_json
from brainldm_core.samples import volume_name

pytestmark = pytest.mark.filterwarnings("ignore")
HOW = {"sampler": "ddim", "steps": 2, "seed": 3, "progress": False}
COUNT = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A pipeline, requests, and a finished release drawn in one shard."""
    pipeline = untrained_pipeline({"unet": "0"}, {"cohort": "atlas"})
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
    return out / "bids" / volume_name(identity)


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
    raw = out / "bids"
    assert sorted(path.name for path in out.iterdir()) == [
        "SHA256SUMS", "VOXELS.sha256", "bids", "record.json", "requests.tsv"
    ]  # fmt: skip
    table = pd.read_csv(raw / "participants.tsv", sep="\t", float_precision="round_trip")
    assert table["participant_id"].tolist() == [f"sub-{identity:06d}" for identity in range(1, COUNT + 1)]
    pd.testing.assert_frame_equal(table[list(requests)], requests, check_dtype=False)
    assert set(json.loads((raw / "participants.json").read_text())) == {*table, "Description"}
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


@pytest.mark.parametrize("order", [(3, 1, 2), (2, 3, 1)])
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

    def die(volume, affine):
        calls.append(volume)
        if len(calls) == 4:  # in the middle of the second batch, leaving what a killed process leaves
            (tmp_path / "bids" / volume_name(3)).with_name(".partial-0-x").write_bytes(b"half")
            raise KeyboardInterrupt
        return encode(volume, affine)

    encode = release_write.encode
    monkeypatch.setattr(release_write, "encode", die)
    with pytest.raises(KeyboardInterrupt):
        release.release_shard(pipeline, requests, tmp_path, **HOW)
    monkeypatch.undo()
    assert release.release_shard(pipeline, requests, tmp_path, 1, 2, **HOW) == 1  # its second batch; the first is done
    assert release.release_shard(pipeline, requests, tmp_path, 2, 2, **HOW) == 2
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
    (tmp_path / "bids" / "notes.txt").write_text("mine")
    with pytest.raises(BrainLDMError, match="notes.txt: does not belong"):
        release.finish_release(tmp_path)
    (tmp_path / "bids" / "notes.txt").unlink()
    release.finish_release(tmp_path)
    assert (tmp_path / "SHA256SUMS").read_bytes() == (out / "SHA256SUMS").read_bytes()


def test_what_cannot_be_is_refused(made, tmp_path):
    pipeline, requests, out = made
    for shard, shards in ((4, 3), (0, 3), (-1, 3), (0, 0)):
        with pytest.raises(BrainLDMError, match="choose 1/"):
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
    description = json.loads((tmp_path / "bids" / "dataset_description.json").read_text())
    assert description["License"].startswith("Not to be given away: UK Biobank")
    assert "Not to be given away" in (tmp_path / "bids" / "README").read_text()


def truncate(out):
    path = volume(out, 2)
    path.write_bytes(path.read_bytes()[:-40])


def lose(out):
    shutil.rmtree(volume(out, 2).parents[1])


def add(out):
    shutil.copytree(volume(out, 2).parents[1], out / "bids" / "sub-000009")


def swap(out):
    one, two = volume(out, 2).read_bytes(), volume(out, 5).read_bytes()
    volume(out, 2).write_bytes(two)
    volume(out, 5).write_bytes(one)


def duplicate(out):
    volume(out, 2).write_bytes(volume(out, 5).read_bytes())


def edit(column, row=2):
    def change(out):
        path = out / "bids" / "participants.tsv"
        table = pd.read_csv(path, sep="\t", float_precision="round_trip")
        table.loc[row, column] += 3
        table.to_csv(path, sep="\t", index=False)

    return change


def drop_row(out):
    path = out / "bids" / "participants.tsv"
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
    "table": (lambda out: (out / "bids" / "participants.tsv").write_bytes(b"\xff\x00\n"), "cannot be read as"),
    "no table": (lambda out: (out / "bids" / "participants.tsv").unlink(), "participants.tsv: is missing"),
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
    (copy / "bids" / "README").write_text("other words")
    assert release.verify_release(copy) == [f"{copy / 'bids' / 'README'}: was changed"]
    (copy / "SHA256SUMS").unlink()
    assert any("SHA256SUMS: is missing" in problem for problem in release.verify_release(copy))


def test_measuring_again_can_be_limited(copy):
    edit("measured_brain_ml", 1)(copy)
    renew_sums(copy)
    assert release.verify_release(copy) != []
    assert release.verify_release(copy, remeasure=0) == []
    assert release.verify_release(copy, remeasure=1) == []  # looks at the first only


def test_the_bids_validator_finds_nothing(made):
    """Neither errors nor warnings; the package is large, so that it comes with an extra of its own."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # a venv that is not activated
    if (validator := shutil.which("bids-validator-deno", path=beside)) is None:
        pytest.skip("needs the extra bids: pip install -e '.[bids]' -c constraints.txt")
    command = [validator, str(made[2] / "bids"), "--format", "json"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PATH": beside})
    said = json.loads(run.stdout)
    assert said["issues"]["issues"] == [] and said["summary"]["subjectMetadata"] is not None
    assert len(said["summary"]["subjects"]) == COUNT


def test_the_description_says_what_made_it_and_from_what(made, tmp_path):
    pipeline, requests, out = made
    description = json.loads((out / "bids" / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["GeneratedBy"][0]["Version"]
    assert description["SourceDatasets"][0]["URL"].startswith("https://") and len(description["Authors"]) == 2
    assert "creativecommons.org/licenses/by/4.0" in (out / "bids" / "LICENSE").read_text()
    more = {"title": "Brains for a course", "authors": ["Ada", "Bob"]}
    release.release_shard(pipeline, requests.head(2), tmp_path, **HOW | more)
    release.finish_release(tmp_path)
    description = json.loads((tmp_path / "bids" / "dataset_description.json").read_text())
    assert description["Name"] == more["title"] and description["Authors"][:2] == more["authors"]
    assert (tmp_path / "bids" / "README").read_text().startswith(more["title"] + "\n===")


def test_every_volume_is_small_plain_gzip_with_its_checksums(made):
    out = made[2]
    voxels = dict(reversed(line.split("  ")) for line in (out / "VOXELS.sha256").read_text().splitlines())
    for identity in range(1, COUNT + 1):
        content = volume(out, identity).read_bytes()
        assert content[:3] == b"\x1f\x8b\x08" and content[3] == 0 and content[4:8] == bytes(4)  # no name, no time
        plain = gzip.decompress(content)
        assert hashlib.sha256(plain).hexdigest() == voxels[f"bids/{volume_name(identity)[:-3]}"]
        assert len(content) < 1.05 * len(gzip.compress(plain, 1))


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_packed_file_is_what_the_library_would_write(order):
    volume = np.asarray(np.random.default_rng(0).integers(0, 256, (5, 6, 7)), np.uint8, order=order)
    affine = SMOKE.grid.affine
    packed, plain = release_write.encode(volume, affine)
    assert gzip.decompress(packed) == plain == nifti_image(volume, affine, 1 / 255).to_bytes()


def test_writers_of_any_number_give_the_same_bytes(made, tmp_path):
    pipeline, requests, out = made
    assert release.release_shard(pipeline, requests, tmp_path, workers=2, **HOW) == COUNT
    release.finish_release(tmp_path)
    for name in ("SHA256SUMS", "VOXELS.sha256", "requests.tsv"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()
    assert release.verify_release(tmp_path, workers=1) == []


def test_a_writer_that_fails_or_dies_stops_the_shard_with_a_line(made, tmp_path):
    pipeline, requests, _ = made
    (tmp_path / "bids").mkdir()
    (tmp_path / "bids" / "sub-000003").write_text("in the way")  # of a folder
    with pytest.raises(BrainLDMError, match="sub-000003.*cannot be written"):
        release.release_shard(pipeline, requests, tmp_path, workers=1, **HOW)
    assert release.missing_batches(tmp_path)[0] in (0, 1)
    with pytest.raises(BrainLDMError, match="a writer process died"), release_write.pool(1) as executor:
        executor.submit(os._exit, 1).result()


MENDED = [name for name in DAMAGES if name not in ("extra",)]


@pytest.mark.parametrize("name", MENDED)
def test_repair_restores_every_byte(made, copy, name):
    pipeline, requests, out = made
    DAMAGES[name][0](copy)
    mended = release_repair.repair_release(copy, pipeline)
    assert mended and release.verify_release(copy) == []
    for path in [path for path in out.rglob("*") if path.is_file()]:
        assert (copy / path.relative_to(out)).read_bytes() == path.read_bytes(), path
    assert release_repair.repair_release(copy, pipeline) == []


def test_repair_restores_lists_and_requests_too(made, copy):
    pipeline, requests, out = made
    lose(copy)
    for name in ("SHA256SUMS", "VOXELS.sha256", "requests.tsv", "bids/README"):
        (copy / name).write_bytes((copy / name).read_bytes()[:-30])
        release_repair.repair_release(copy, pipeline)
        assert release.verify_release(copy) == []
        assert (copy / name).read_bytes() == (out / name).read_bytes()
    for name in ("requests.tsv", "bids/participants.tsv"):
        (copy / name).unlink()
    with pytest.raises(BrainLDMError, match="both copies of what was requested are damaged"):
        release_repair.repair_release(copy, pipeline)
    release_repair.repair_release(copy, pipeline, lambda count, seed: requests)
    assert (copy / "SHA256SUMS").read_bytes() == (out / "SHA256SUMS").read_bytes()
    assert release.verify_release(copy) == []


def test_repair_refuses_other_weights_and_other_voxels(made, copy, monkeypatch):
    pipeline, _, _ = made
    other = sampling.Pipeline(**vars(pipeline) | {"sha256": {"unet": "1"}})
    with pytest.raises(BrainLDMError, match="another CheckpointSHA256"):
        release_repair.repair_release(copy, other)
    lose(copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    quantise = release.quantise
    monkeypatch.setattr(release, "quantise", lambda volumes: quantise(volumes) ^ 1)
    with pytest.raises(BrainLDMError, match="draws other voxels than the release has; repair it where it was made"):
        release_repair.repair_release(copy, pipeline)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_repair_with_another_compressor_keeps_the_voxels_and_says_so(made, copy, monkeypatch):
    pipeline, _, out = made
    lose(copy)
    monkeypatch.setattr(release_write, "LEVEL", 0)
    mended = release_repair.repair_release(copy, pipeline)
    assert f"bids/{volume_name(2)}" in mended and "SHA256SUMS" in mended
    assert release.verify_release(copy) == []
    assert read_record(copy)["results"]["compressed_anew"][0]["volumes"] == [f"bids/{volume_name(2)}"]
    assert volume(copy, 2).read_bytes() != volume(out, 2).read_bytes()
    assert np.array_equal(nib.load(volume(copy, 2)).get_fdata(), nib.load(volume(out, 2)).get_fdata())


def test_verification_tells_changed_voxels_from_other_compression(copy):
    path = volume(copy, 2)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())))
    problems = release.verify_release(copy)
    assert problems == [f"{path}: was changed, though not its voxels"]


def test_what_a_kill_between_record_and_tidying_leaves_is_tidied(made, copy):
    write_json(copy / "plan.json", read_record(copy)["settings"])
    (copy / "batches").mkdir()
    assert release.finish_release(copy) == read_record(copy)
    assert not (copy / "plan.json").exists() and not (copy / "batches").exists()
