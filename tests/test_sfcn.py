"""SFCN: the published layout, years by an independent replay, and brains laid as it saw them."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional

from brainldm_core import manifests, sfcn
from brainldm_core.errors import BrainLDMError
from brainldm_core.profiles import Grid, load_profile

SHAPES = {0: (32, 1, 3), 1: (64, 32, 3), 2: (128, 64, 3), 3: (256, 128, 3), 4: (256, 256, 3), 5: (64, 256, 1)}


@pytest.fixture(scope="module")
def state():
    """Random weights under the names and in the shapes of the published file."""
    generator, found = torch.Generator().manual_seed(0), {}

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    for number, (out, into, side) in SHAPES.items():
        name = f"module.feature_extractor.conv_{number}"
        found[f"{name}.0.weight"] = draw(out, into, side, side, side) * (2 / into / side**3) ** 0.5
        found[f"{name}.0.bias"] = draw(out) * 0.1
        found |= {f"{name}.1.weight": 1 + 0.1 * draw(out), f"{name}.1.bias": 0.1 * draw(out)}
        found |= {f"{name}.1.running_mean": 0.1 * draw(out), f"{name}.1.running_var": 1 + draw(out) ** 2}
        found[f"{name}.1.num_batches_tracked"] = torch.tensor(7)
    found["module.classifier.conv_6.weight"] = draw(40, 64, 1, 1, 1)
    return found | {"module.classifier.conv_6.bias": draw(40)}


@pytest.fixture
def network(state, tmp_path, monkeypatch):
    """The network, read from a file of the old format, as the published one is, with a checksum of git."""
    real = yaml.safe_load((Path(__file__).parents[1] / "data_manifests" / "sfcn.yaml").read_text())
    assert [file["name"] for file in real["files"]] == [sfcn.FILE]
    torch.save(state, tmp_path / sfcn.FILE, _use_new_zipfile_serialization=False)
    content = (tmp_path / sfcn.FILE).read_bytes()
    real["files"][0]["checksum"] = "git:" + hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    monkeypatch.setattr(manifests, "FOLDER", tmp_path / "manifests")
    manifests.FOLDER.mkdir()
    (manifests.FOLDER / "sfcn.yaml").write_text(yaml.safe_dump(real))
    return sfcn.load_sfcn(tmp_path)


def replay(state, volume):
    """Years of a prepared volume (D, H, W), layer by layer from the names in the file."""
    x = volume[None, None]
    for number in SHAPES:
        name = f"module.feature_extractor.conv_{number}"
        x = functional.conv3d(x, state[f"{name}.0.weight"], state[f"{name}.0.bias"], padding=int(number < 5))
        mean, variance = (state[f"{name}.1.running_{kind}"][:, None, None, None] for kind in ("mean", "var"))
        weight, bias = (state[f"{name}.1.{kind}"][:, None, None, None] for kind in ("weight", "bias"))
        x = (x - mean) / (variance + 1e-5).sqrt() * weight + bias
        x = functional.max_pool3d(x, 2, 2).relu() if number < 5 else x.relu()
    x = functional.avg_pool3d(x, x.shape[2:])
    logits = functional.conv3d(x, state["module.classifier.conv_6.weight"], state["module.classifier.conv_6.bias"])
    chances = logits.flatten().double().exp()
    return sum((42.5 + year) * float(chance) for year, chance in enumerate(chances)) / float(chances.sum())


def test_years_are_those_of_an_independent_replay(network, state):
    volumes = torch.rand(2, 1, 64, 64, 32, generator=torch.Generator().manual_seed(1)) * 3
    years = sfcn.years_of(network, volumes)
    expected = [replay(state, volume[0]) for volume in volumes]
    assert years.tolist() == pytest.approx(expected, abs=1e-3)
    assert abs(expected[0] - expected[1]) > 0.01 and all(42 < value < 82 for value in expected)


def test_full_size_has_the_published_grid():
    with torch.device("meta"):
        network = sfcn.build_sfcn()
        assert network.feature_extractor(torch.empty(2, 1, *sfcn.CROP)).shape == (2, 64, 5, 6, 5)
        assert network(torch.empty(2, 1, *sfcn.CROP)).shape == (2, 40, 1, 1, 1)


def test_a_wrong_file_is_refused(network, tmp_path):
    with open(tmp_path / sfcn.FILE, "ab") as file:
        file.write(b"x")
    with pytest.raises(BrainLDMError, match=f"{sfcn.FILE}: changed: git is .*brainldm data fetch sfcn"):
        sfcn.load_sfcn(tmp_path)


def ellipsoid(shape, affine, radii=(60, 75, 55), centre=(3.0, -20.0, 10.0)):
    """A brain-sized blob, soft at the rim, with its front brighter; where it lies is given in mm."""
    points = np.moveaxis(np.indices(shape, dtype=np.float32), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    radius = np.sqrt((((points - centre) / radii) ** 2).sum(-1))
    return ((0.6 + 0.002 * points[..., 1]) / (1 + np.exp(20 * (radius - 1)))).astype(np.float32)


def test_volumes_are_laid_on_the_grid_of_fsl_over_the_mean_of_the_whole():
    fsl = np.array([[-1.0, 0, 0, 90], [0, 1, 0, -126], [0, 0, 1, -72], [0, 0, 0, 1]])  # of MNI152_T1_1mm
    brain = ellipsoid((182, 218, 182), fsl)
    expected = (brain / brain.mean())[11:171, 13:205, 11:171]
    found = sfcn.prepare(brain, fsl)
    assert found.shape == (160, 192, 160) and np.abs(found - expected).max() < 1e-3
    ours = np.array(load_profile("paper").grid.affine)  # its middle lies 14 mm lower, and half a voxel off
    found = sfcn.prepare(ellipsoid((160, 224, 160), ours), ours)
    assert np.abs(found - expected).max() < 0.02 * expected.max()


def test_years_of_volumes_and_what_is_refused(network, state, monkeypatch):
    grid = Grid(shape=(34, 68, 36), spacing_mm=1.0)
    monkeypatch.setattr(sfcn, "GRID", grid)
    monkeypatch.setattr(sfcn, "CROP", (32, 64, 32))
    monkeypatch.setattr(sfcn, "is_brain_only", lambda *_: True)
    volumes = np.random.default_rng(0).uniform(0.1, 1, (3, *grid.shape)).astype(np.float32)
    years = sfcn.predict_years(network, volumes, grid.affine)
    for volume, found in zip(volumes, years, strict=True):
        middle = volume[::-1][1:33, 2:66, 2:34] / volume.mean()
        assert found == pytest.approx(replay(state, torch.from_numpy(middle)), abs=0.01)
    assert len(set(years.round(4))) == 3 and sfcn.predict_years(network, volumes[:0], grid.affine).shape == (0,)
    with pytest.raises(BrainLDMError, match="voxels of 2 mm; SFCN reads brains of 1 mm"):
        sfcn.predict_years(network, volumes, np.diag([2.0, 2, 2, 1]))
    monkeypatch.setattr(sfcn, "is_brain_only", lambda *_: False)
    with pytest.raises(BrainLDMError, match="holds a whole head"):
        sfcn.predict_years(network, volumes, grid.affine)
