"""Folders of NIfTI as sets: what is found, how it is turned and scaled, and what is refused."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from test_features import blobs

from brainldm_core import nifti_files, nifti_sets
from brainldm_core.errors import BrainLDMError

AFFINE = np.array([[5.0, 0, 0, -40], [0, 5, 0, -50], [0, 0, 5, -40], [0, 0, 0, 1]])


def write(folder, volumes, name="sub-{:03d}_T1w.nii.gz", affine=AFFINE, gain=1.0):
    """Volumes (N, D, H, W) as float32 NIfTI files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, volume in enumerate(volumes):
        path = folder / name.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.asarray(volume * gain, np.float32), affine), path)
    return folder


def test_a_set_is_what_lies_in_the_files(tmp_path):
    volumes = blobs(5)
    found = nifti_sets.open_set(write(tmp_path / "a", volumes))
    assert found.shape == (5, 16, 20, 16) == (len(found), *found.grid)
    rounded = np.round(volumes * 255) / 255
    assert np.allclose(found[1:4], rounded[1:4], atol=1e-6) and found[1:4].dtype == np.float32
    assert np.allclose(found[np.array([4, 0])], rounded[[4, 0]], atol=1e-6)
    assert np.allclose(found.take([3, 1])[:], rounded[[3, 1]], atol=1e-6)
    assert found.names[2] == "sub-002_T1w" and found.subjects[2] == "sub-002"
    assert np.allclose(found.changed(lambda x: 0.5 * x)[:], rounded / 2, atol=1 / 255)


def test_volumes_are_turned_to_one_orientation(tmp_path):
    """The same brain in eight orders and directions of axes is the same volume; no file can swap left and right."""
    volume, folder = blobs(1)[0], tmp_path / "turned"
    volume[:4] *= 0.5  # left is not right
    image = nib.Nifti1Image(volume, AFFINE)
    for number, code in enumerate(("RAS", "LAS", "LPI", "PSR", "IAL", "SRA")):
        turn = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(AFFINE), nib.orientations.axcodes2ornt(code)
        )
        folder.mkdir(exist_ok=True)
        nib.save(image.as_reoriented(turn), folder / f"v{number}_{code}.nii.gz")
    found = nifti_sets.open_set(folder)
    assert np.allclose(found.affine, AFFINE)
    assert np.abs(found[:] - found[:1]).max() == 0
    assert np.allclose(found[:1][0], volume, atol=0.002)


def test_what_is_no_image_is_not_found(tmp_path):
    folder = write(tmp_path / "a", blobs(2), "sub-{:03d}/anat/sub-{:03d}_T1w.nii.gz".replace("{:03d}_", "x_"))
    for name in ("sub-x_dseg.nii.gz", "._sub-x_T1w.nii.gz", "mask.nii.txt"):
        (folder / name).write_bytes(b"nothing")
    write(folder / ".hidden", blobs(1))
    write(folder, blobs(1), "sub-{:03d}_T2w.nii.gz")
    assert [path.name for path in nifti_files.find_volumes(folder)] == ["sub-x_T1w.nii.gz"] * 2
    plain = write(tmp_path / "plain", blobs(3), "brain {}.nii")
    (plain / "brain_mask.nii.gz").write_bytes(b"")
    assert len(nifti_files.find_volumes(plain)) == 3
    assert len(set(nifti_sets.open_set(plain).subjects)) == 3
    for folder, words in ((tmp_path / "none", "no such folder"), (tmp_path / "a" / ".hidden" / "x", "no such folder")):
        with pytest.raises(BrainLDMError, match=words):
            nifti_files.find_volumes(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BrainLDMError, match="holds no NIfTI"):
        nifti_files.find_volumes(tmp_path / "empty")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v, a: (v[:-1], a), "15x20x16 voxels, not 16x20x16"),
        (lambda v, a: (v, np.diag([4.0, 5, 5, 1])), "voxels of 4x5x5 mm, not of 5x5x5 mm"),
        (lambda v, a: (v, a + np.array([[0, 0, 0, 3.0]] + [[0] * 4] * 3)), "does not place its voxels"),
        (lambda v, a: (np.stack([v, v], -1), a), "not one 3-D volume"),
    ],
)
def test_another_grid_is_refused_by_name(tmp_path, change, words):
    folder = write(tmp_path / "a", blobs(2))
    volume, affine = change(blobs(1)[0], AFFINE)
    write(folder, [volume], "sub-odd{}_T1w.nii.gz", affine)
    with pytest.raises(BrainLDMError, match=words) as error:
        nifti_sets.open_set(folder)
    assert "sub-odd0_T1w.nii.gz" in str(error.value)
    if volume.shape == (16, 20, 16):
        assert len(nifti_sets.open_set(folder, ignore_affines=True)) == 3
    other = nifti_sets.open_set(write(tmp_path / "b", [blobs(1)[0][:, :-1]]))
    with pytest.raises(BrainLDMError, match="16x19x16 voxels, not 16x20x16"):
        nifti_sets.check_same_grid(other, nifti_sets.open_set(write(tmp_path / "c", blobs(1))))


def test_intensities_are_never_guessed(tmp_path):
    volumes = blobs(3)
    bytes_like = nifti_sets.open_set(write(tmp_path / "a", volumes, gain=255))
    with pytest.raises(BrainLDMError, match=r"not within \[0, 1\].*--intensity field"):
        bytes_like[:1]
    scaled = nifti_sets.open_set(tmp_path / "a", "field")[:]
    assert scaled.min() == 0 and (scaled.max((1, 2, 3)) == 1).all()
    low, high = (part(volumes[0]) for part in (np.min, np.max))
    assert np.allclose(scaled[0], (volumes[0] - low) / (high - low), atol=0.003)
    bright = nifti_sets.open_set(tmp_path / "a", "percentile")[:]
    assert bright.max() == 1 and bright.mean() > scaled.mean()
    with pytest.raises(BrainLDMError, match="choose one of as-is, field, percentile"):
        nifti_sets.open_set(tmp_path / "a", "guess")
    noise = volumes - 0.2
    with pytest.raises(BrainLDMError, match="intensities go from -0.2"):
        nifti_sets.open_set(write(tmp_path / "b", noise))[:1]


def test_damaged_files_are_told_by_name(tmp_path):
    folder = write(tmp_path / "a", blobs(2))
    whole = gzip.decompress((folder / "sub-001_T1w.nii.gz").read_bytes())
    (folder / "sub-001_T1w.nii.gz").write_bytes(gzip.compress(whole[: len(whole) // 2]))
    found = nifti_sets.open_set(folder)  # the header is there
    with pytest.raises(BrainLDMError, match="sub-001_T1w.nii.gz: damaged or truncated"):
        found[:]
    (folder / "sub-001_T1w.nii.gz").write_bytes(b"no header at all")
    with pytest.raises(BrainLDMError, match="sub-001_T1w.nii.gz: cannot be read as NIfTI"):
        nifti_sets.open_set(folder)


def test_halves_share_no_subject(tmp_path):
    folder = write(tmp_path / "a", blobs(6), "sub-{0:02d}/ses-1/anat/sub-{0:02d}_ses-1_T1w.nii.gz")
    write(folder, blobs(3, 1), "sub-{0:02d}/ses-2/anat/sub-{0:02d}_ses-2_T1w.nii.gz")
    found = nifti_sets.open_set(folder)
    for seed in range(5):
        one, two = nifti_sets.halves(found, seed)
        assert not set(one.subjects) & set(two.subjects)
        assert sorted(one.paths + two.paths) == sorted(found.paths)
        assert len(set(one.subjects)) == len(set(two.subjects)) == 3
    with pytest.raises(BrainLDMError, match="at least 4 are needed"):
        nifti_sets.halves(found.take([0, 1, 2]))


def test_the_table_of_a_folder_is_found_and_cut_by_its_splits(tmp_path):
    folder = write(tmp_path / "a" / "set", blobs(4), "sub-{0:02d}/anat/sub-{0:02d}_T1w.nii.gz")
    rows = "\n".join(f"sub-{number:02d}\t{'train' if number < 3 else 'test'}" for number in range(4))
    (folder / "participants.tsv").write_text(f"participant_id\tsplit\n{rows}\n")
    for place in (folder, folder.parent):
        found = nifti_sets.open_set(place)
        assert nifti_files.find_participants(place, found.paths[0]) == folder / "participants.tsv"
        assert {name: len(part) for name, part in nifti_sets.splits(place, found).items()} == {"test": 1, "train": 3}
    (folder / "participants.tsv").unlink()
    assert nifti_sets.splits(folder, found) == {} and nifti_files.find_participants(folder, found.paths[0]) is None
