"""One real scan: what each option does to it, what is recorded, and when it is done again."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from test_preprocess import bids, brain, quick, run, scan  # noqa: F401

from brainldm_core import brain_extraction, dataset, intensity, preprocess, records, registration, scans
from brainldm_core.errors import BrainLDMError
from brainldm_core.scans import Preparation


def spread(values):
    """Variation of intensities in per cent."""
    return 100 * values.std() / values.mean()


def sidecar(run, person="sub-b"):  # noqa: F811
    path = dataset.volume_path(run.stage("cohort"), person, "ses-1")
    return json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())


def head_and_field(whole_head):
    """A brain of three tissues, perhaps in a scalp; a smooth field of a known form; white matter; and an affine."""
    radius = np.linalg.norm((np.indices((84, 92, 76)) - np.array([42, 46, 38])[:, None, None, None]) / 30, axis=0)
    wave = sum(np.sin(axis / 5) for axis in np.indices(radius.shape)) / 6  # folds: grey and white lie side by side
    volume = np.where(radius + wave < 0.75, 870, np.where(radius < 0.9, 630, np.where(radius < 1, 200, 0)))
    if whole_head:
        volume = np.where((radius > 1.1) & (radius < 1.25), 950, volume)
    noise = np.random.default_rng(0).normal(0, 15, volume.shape) * (volume > 0)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, side) for side in volume.shape), indexing="ij")
    field = np.exp(0.35 * x + 0.3 * y**2 - 0.2 * z)
    white = ndimage.binary_erosion(volume == 870)
    return (volume + noise).clip(0).astype(np.float32), field.astype(np.float32), white, np.diag([-2.0, 2, 2, 1])


@pytest.mark.parametrize("whole_head", [False, True])
def test_a_known_bias_field_is_taken_off(whole_head):
    volume, field, white, affine = head_and_field(whole_head)
    biased = volume * field
    found, percent = intensity.correct_bias(biased, affine)
    assert found.shape == volume.shape
    assert spread(biased[white]) > 5 * spread(volume[white])
    assert spread(found[white]) < 0.3 * spread(biased[white])
    left = np.log(found[white] / volume[white])
    assert left.std() < 0.25 * np.log(field[white]).std()  # the field itself, not some flattening of tissue
    tissue = volume > 400
    low, high = np.percentile(field[tissue], [5, 95])
    assert percent == pytest.approx(100 * (high / low - 1), rel=0.25)
    np.testing.assert_allclose(np.log(biased[tissue] / found[tissue]).mean(), 0, atol=0.05)  # the level stays
    if not whole_head:
        np.testing.assert_array_equal(found, intensity.correct_bias(biased, affine)[0])


def test_a_scan_without_a_field_keeps_its_tissues_apart():
    volume, _, white, affine = head_and_field(False)
    found, percent = intensity.correct_bias(volume, affine)
    assert percent < 10
    grey = (volume > 550) & (volume < 710)
    before, after = (values[white].mean() / values[grey].mean() for values in (volume, found))
    assert after == pytest.approx(before, rel=0.05)


def test_intensity_windows():
    placed = np.zeros((20, 20, 20), np.float32)
    placed[5:15, 5:15, 5:15] = np.linspace(400, 800, 1000).reshape(10, 10, 10)
    placed[5, 5, 5] = 5000  # a vessel
    placed[0, 0, 0] = -10
    assert intensity.window(placed, "white", 640.0) == (0, 800)
    assert intensity.window(placed, "field", 640.0) == (-10, 5000)
    low, high = intensity.window(placed, "percentile", 640.0)
    assert low == 0
    assert high == pytest.approx(np.percentile(placed[placed > 200], 99.5))  # of all voxels it would be less
    assert 795 < high < 801
    for way in intensity.WAYS:
        with pytest.raises(BrainLDMError, match="nothing of it lies in the field"):
            intensity.window(np.zeros((4, 4, 4), np.float32), way, 0.0)


def test_an_unknown_intensity_is_an_error():
    with pytest.raises(BrainLDMError, match="--intensity dark: is unknown; choose one of white, field, percentile"):
        Preparation(intensity="dark")


def test_intensity_is_in_the_volume_the_sidecar_and_the_record(bids, run, quick):  # noqa: F811
    brightest = {}
    for way in intensity.WAYS:
        record = preprocess.prepare_bids(bids, run, workers=1, preparation=Preparation(intensity=way))
        volume = dataset.read_nifti(dataset.volume_path(run.stage("cohort"), "sub-b", "ses-1"))[0]
        brightest[way] = float(volume.max())
        assert record["settings"]["intensity"] == sidecar(run)["intensity"] == way
        assert intensity.WAYS[way] in (run.stage("cohort") / "quality.html").read_text()
    assert brightest["field"] == brightest["percentile"] == 1
    assert 0.5 < brightest["white"] < 0.9


def test_a_changed_option_does_the_scans_again(bids, run, quick):  # noqa: F811
    first = preprocess.prepare_bids(bids, run, workers=1)
    assert first["settings"].items() >= Preparation().settings().items()
    assert len(quick) == 5
    corrected = Preparation(bias_correction=True)
    preprocess.prepare_bids(bids, run, workers=1, preparation=corrected)
    assert len(quick) == 10
    assert sidecar(run)["bias_percent"] > 0
    preprocess.prepare_bids(bids, run, workers=1, preparation=corrected)
    assert len(quick) == 10
    assert preprocess.prepare_bids(bids, run, workers=1)["results"] == first["results"]
    assert len(quick) == 15
    assert sidecar(run)["bias_percent"] is None


def test_a_stop_leaves_no_volume_with_the_sidecar_of_other_settings(bids, run, quick, monkeypatch):  # noqa: F811
    preprocess.prepare_bids(bids, run, workers=1)
    write = scans.write_json

    def stopped(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(scans, "write_json", stopped)  # the volume is there, its sidecar not yet
    with pytest.raises(KeyboardInterrupt):
        preprocess.prepare_bids(bids, run, workers=1, preparation=Preparation(intensity="field"))
    monkeypatch.setattr(scans, "write_json", write)
    preprocess.prepare_bids(bids, run, workers=1)
    assert len(quick) == 7  # the first scan, which had been overwritten, once more
    volume = dataset.read_nifti(dataset.volume_path(run.stage("cohort"), "sub-a", "ses-1"))[0]
    assert volume.max() < 0.9  # the field's brightest would be 1


@pytest.fixture
def deepbet(monkeypatch, tmp_path):
    """A stand-in for the package deepbet with a network file; its network calls a part of the scan brain."""
    models = tmp_path / "site" / "data" / "models"
    models.mkdir(parents=True)
    (models / "model.pt").write_bytes(b"weights")
    fake = SimpleNamespace(__file__=str(tmp_path / "site" / "deepbet" / "__init__.py"), share=0.4, calls=0)

    class BrainExtraction:
        def __init__(self, no_gpu):
            assert no_gpu

        def run(self, image):
            fake.calls += 1
            volume = image.get_fdata()
            if fake.share == 0:
                raise AssertionError("Not enough foreground")
            mask = np.zeros(volume.shape, np.uint8)
            mask[: round(volume.shape[0] * fake.share)] = volume[: round(volume.shape[0] * fake.share)] > 0
            return image, nib.Nifti1Image(mask, image.affine), 0.0

    fake.BrainExtraction = BrainExtraction
    monkeypatch.setitem(sys.modules, "deepbet", fake)
    monkeypatch.setattr(brain_extraction, "NETWORKS", {"model.pt": records.sha256(models / "model.pt")})
    brain_extraction.load_extractor.cache_clear()
    yield fake
    brain_extraction.load_extractor.cache_clear()


def test_without_deepbet_the_command_says_how_to_get_it(bids, run, quick, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "deepbet", None)
    brain_extraction.load_extractor.cache_clear()
    with pytest.raises(BrainLDMError, match="--brain-extraction: needs deepbet .*pip install deepbet==1.0.2"):
        preprocess.prepare_bids(bids, run, workers=1, preparation=Preparation(brain_extraction=True))
    assert not run.stage("cohort").exists()
    assert quick == []


def test_only_the_known_network_is_run(deepbet, monkeypatch):
    monkeypatch.setattr(brain_extraction, "NETWORKS", {"model.pt": "0" * 64})
    with pytest.raises(BrainLDMError, match="model.pt: is not the network of deepbet 1.0.2; install it: pip install"):
        brain_extraction.load_extractor()


def test_a_brain_is_cut_out_of_a_head_and_left_alone_where_there_is_nothing_else(bids, run, deepbet):  # noqa: F811
    head = ndimage.zoom(nib.load(scan(bids)).get_fdata(dtype=np.float32), 1.4, order=1)  # so large is no brain
    nib.save(nib.Nifti1Image(head, np.diag([4.0, 4, 4, 1])), scan(bids))
    job = scans.Job(scan(bids), run.folder / "x_T1w.nii.gz", run.profile.grid, Preparation(brain_extraction=True))
    seen = []

    def register(volume, affine):
        seen.append(volume)
        return registration.Registration(np.eye(4), 0.9, 0.5, 0.5, 800.0, registration.is_brain_only(volume, affine))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registration, "register", register)
        found = scans.prepare_scan(job)
        assert "failed" not in found, found
        assert (found["brain_extraction"], found["SkullStripped"]) == ("deepbet 1.0.2", True)
        cut = round(head.shape[0] * 0.4)
        assert seen[0][:cut].max() > 500
        assert seen[0][cut:].max() == 0
        assert found["brain_ml"] == pytest.approx((seen[0] > 0).sum() * 0.064, rel=0.01)
        small = scans.Job(scan(bids, "sub-a"), run.folder / "y_T1w.nii.gz", run.profile.grid, job.preparation)
        found = scans.prepare_scan(small)
        assert (found["brain_extraction"], found["brain_ml"], deepbet.calls) == ("brain only already", None, 1)
        assert found["SkullStripped"] is True
        deepbet.share = 0.05
        nib.save(nib.Nifti1Image(head * 2, np.diag([4.0, 4, 4, 1])), scan(bids))  # another scan: done again
        assert "ml, which is none; look at this scan" in scans.prepare_scan(job)["failed"]
        deepbet.share = 0
        assert "finds no brain (Not enough foreground)" in scans.prepare_scan(job)["failed"]
        assert not job.target.exists()  # nothing is left of the earlier volume


def test_the_key_knows_which_tool_cut_the_brain(monkeypatch):
    before = Preparation(brain_extraction=True).settings()
    monkeypatch.setattr(brain_extraction, "TOOL", "deepbet 9.9.9")
    assert Preparation(brain_extraction=True).settings() != before
    assert Preparation().settings()["brain_extraction"] is False


def test_real_brains_are_cut_out_of_real_heads(shared_data):
    pytest.importorskip("deepbet")
    images = sorted((shared_data / "ixi_2mm" / "images").glob("*.nii.gz"))[:1]
    if not images:
        pytest.skip("no IXI scans here")
    labels = shared_data / "ixi_2mm" / "labels" / images[0].name.replace("_ds", "_ds_DLMUSE")
    volume, affine = dataset.read_nifti(images[0])
    cut, volume_ml = brain_extraction.extract_brain(volume, affine)
    truth = dataset.read_nifti(labels)[0] > 0
    assert volume_ml == pytest.approx(truth.sum() * 0.008, rel=0.03)
    assert 2 * ((cut > 0) & truth).sum() / ((cut > 0).sum() + truth.sum()) > 0.96
