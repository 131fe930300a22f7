"""Extractors: the same weights everywhere, features that tell sets apart, foreign weights only after their checksum."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from scipy import ndimage

from brainldm_core import features
from brainldm_core.errors import BrainLDMError
from brainldm_core.metrics import frechet_distance

OFFLINE_SHA256 = "2baa64002837cabc41c4f487422541d5f6b76d1421d950e50a65ce6d78835c0b"


def blobs(n, seed=0, shape=(16, 20, 16)):
    """Brain-like volumes: a bright ellipsoid of varied size with a dark centre of varied size, and texture."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side) for side in shape], indexing="ij"))
    volumes = []
    for _ in range(n):
        scale = rng.uniform(0.7, 0.9, 3)
        radius = np.sqrt(((grid / scale[:, None, None, None]) ** 2).sum(0))
        head = 1 / (1 + np.exp(12 * (radius - 1)))
        hole = 0.7 / (1 + np.exp(12 * (radius - rng.uniform(0.2, 0.45))))
        texture = 0.1 * ndimage.gaussian_filter(rng.normal(size=shape), 0.7)
        volumes.append(np.clip(0.8 * head - hole + texture * head, 0, 1))
    return np.array(volumes, np.float32)


def test_offline_weights_are_the_same_on_every_machine():
    """A changed hash is another extractor: give it another name."""
    state = torch.random.get_rng_state()
    features.offline_extractor.cache_clear()
    extractor = features.offline_extractor()
    assert extractor.sha256 == OFFLINE_SHA256
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not extractor.comparable and "not comparable with the paper's FID" in extractor.note
    assert extractor.name in extractor.note and extractor.sha256[:12] in extractor.note


def test_offline_weights_recomputed():
    weights = features._offline_weights()
    stream = iter(hashlib.shake_256(b"offline-1").digest(sum(weight.numel() for weight in weights)))
    for weight in weights:
        raw = np.array([next(stream) for _ in range(weight.numel())], float).reshape(weight.shape)
        raw -= raw.mean((2, 3, 4), keepdims=True)
        expected = raw / (256 / np.sqrt(12)) / np.sqrt(27 * weight.shape[1])
        assert np.allclose(weight.numpy(), expected, atol=1e-7)
        assert weight.sum((2, 3, 4)).abs().max() < 1e-5  # answers to structure, not to brightness
        assert weight.square().sum((1, 2, 3, 4)).mean().item() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("shape", [(16, 20, 16), (17, 19, 23), (32, 40, 32)])
def test_features_of_any_grid_do_not_depend_on_the_batch(shape):
    volumes = np.random.default_rng(0).uniform(size=(5, *shape)).astype(np.float32)
    extractor = features.offline_extractor()
    found = features.extract(extractor, volumes, batch=2)
    assert found.shape == (5, 256) and found.dtype == np.float32 and np.isfinite(found).all()
    assert np.allclose(found, features.extract(extractor, torch.from_numpy(volumes)[:, None], batch=5), atol=1e-5)
    # z-scored: windowing does not count.
    assert np.allclose(found, features.extract(extractor, 0.5 * volumes + 0.2), atol=1e-4)
    empty = features.extract(extractor, np.zeros((1, *shape), np.float32))
    assert np.isfinite(empty).all()


def test_offline_distance_grows_with_what_is_wrong():
    extractor = features.offline_extractor()
    real, other = (features.extract(extractor, blobs(48, seed)) for seed in (0, 1))
    floor = frechet_distance(real, other)
    fake, rng = blobs(48, 2), np.random.default_rng(3)

    def distance(volumes):
        return frechet_distance(real, features.extract(extractor, np.clip(volumes, 0, 1).astype(np.float32)))

    noise = rng.normal(size=fake.shape)
    series = {
        "blur": [ndimage.gaussian_filter(fake, (0, s, s, s)) for s in (0.4, 0.6, 0.9)],
        "noise": [fake + s * noise for s in (0.01, 0.03, 0.1)],
        "loss of variety": [np.repeat(fake[: 48 // s], s, 0) for s in (4, 12, 48)],
        "shift": [np.roll(fake, s, 1) for s in (1, 2, 4)],
    }
    assert distance(fake) == pytest.approx(floor, rel=0.5)
    for name, steps in series.items():
        found = [distance(volumes) for volumes in steps]
        assert found == sorted(found) and found[-1] > 3 * floor, (name, found, floor)
    # A hole larger than in real ones, all else equal.
    grown = fake * (1 - 0.5 * np.exp(-((np.indices(fake.shape[1:]).T - [7.5, 9.5, 7.5]) ** 2).sum(-1) / 8).T)
    assert distance(grown) > 2 * floor


def test_features_are_not_one_feature_many_times():
    found = features.extract(features.offline_extractor(), blobs(64))
    assert (found.std(0) > 1e-5).all()  # none is dead
    found = (found - found.mean(0)) / found.std(0)
    share = np.linalg.svd(found, compute_uv=False) ** 2
    share /= share.sum()
    assert 1 / (share**2).sum() > 3  # effective number of directions; these shapes have five parameters and noise


def test_volumes_that_do_not_fit_are_refused():
    extractor, good = features.offline_extractor(), np.zeros((2, 16, 16, 16), np.float32)
    for bad in (good[0], good[:0], good + 2, np.full_like(good, np.nan), good.astype(np.uint8), good[:, None, None]):
        with pytest.raises(BrainLDMError, match="volumes"):
            features.extract(extractor, bad)
    with pytest.raises(BrainLDMError, match="needs 16 a side"):
        features.extract(extractor, good[:, :15])


def test_a_set_on_demand_is_read_batch_by_batch(on_demand, monkeypatch):
    volumes, extractor = on_demand(blobs(7)), features.offline_extractor()
    found = features.extract(extractor, volumes, batch=3, device="cpu")
    assert volumes.reads == list(range(7)) and volumes.largest == 3
    assert (found == features.extract(extractor, volumes.volumes, batch=3)).all()
    monkeypatch.setattr(features, "BATCH_VOXELS", 2 * 16 * 20 * 16)
    small = on_demand(volumes.volumes)
    features.extract(extractor, small, batch=8)
    assert small.largest == 2
    parts = features.extract_batches(extractor, on_demand(2 * volumes.volumes))
    with pytest.raises(BrainLDMError, match="scale them first"):
        next(parts)


# MedicalNet


@pytest.fixture(scope="module")
def weights():
    """A random state of the right keys and shapes; all are views of one pool, so that the file is small."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in features.MedicalNet().state_dict().items()}
    pool = torch.empty(max(shape.numel() for shape in shapes.values()))
    pool.normal_(0, 0.04, generator=torch.Generator().manual_seed(0))
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            continue
        values = pool[: shape.numel()].view(shape)
        if len(shape) > 1:
            fan = shape[1:].numel()
        elif name.endswith("running_var"):  # of the convolution before, so that no depth fades or explodes
            values = fan * 0.04**2 * (1 + values) / 2
        elif name.endswith(".weight"):
            values = 1 + values
        state[name] = values
    return state


def save(path, state, prefix="module.", **more):
    torch.save({"state_dict": {prefix + name: value for name, value in state.items()}, **more}, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def saved(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("medicalnet") / features.MEDICALNET_FILE
    return path, save(path, weights | {"conv_seg.0.weight": torch.zeros(2)})


def test_medicalnet_is_the_dilated_network(weights, saved):
    """MONAI's ResNet-50 has the same weights; with the strides and dilations of MedicalNet it is the same function."""
    from monai.networks.nets import resnet50

    with torch.device("meta"):
        other = resnet50(n_input_channels=1, conv1_t_stride=2, shortcut_type="B", bias_downsample=False, num_classes=1)
    other.fc = torch.nn.Identity()
    counters = {name: torch.tensor(0) for name in other.state_dict() if name.endswith("num_batches_tracked")}
    other.load_state_dict(counters | weights, assign=True)
    other.eval()
    for layer, dilation in ((other.layer3, 2), (other.layer4, 4)):
        layer[0].downsample[0].stride = (1, 1, 1)
        for block in layer:
            block.conv2.stride, block.conv2.dilation, block.conv2.padding = (1,) * 3, (dilation,) * 3, (dilation,) * 3
    extractor = features.medicalnet_extractor(*saved)
    volumes = torch.from_numpy(blobs(2, shape=(32, 48, 16)))[:, None]
    scored = torch.stack([(volume - volume.mean()) / float(volume.numpy().std()) for volume in volumes])
    with torch.no_grad():
        expected = other(scored).numpy()
    found = features.extract(extractor, volumes)
    assert found.shape == (2, 2048) and np.isfinite(found).all() and found.std() > 1e-3
    assert np.allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert np.abs(found[0] - found[1]).mean() > 0.01 * found.mean()
    assert extractor.comparable and "not comparable" not in extractor.note and extractor.sha256 == saved[1]


def test_medicalnet_has_its_strides():
    with torch.device("meta"):
        network = features.MedicalNet()
    count = sum(value.numel() for value in network.parameters())
    assert count == 46_155_072  # MONAI's less its last layer
    sides, x = [], torch.empty(1, 1, 160, 224, 160, device="meta")
    x = torch.nn.functional.max_pool3d(network.conv1(x), 3, 2, 1)
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = layer(x)
        sides.append(tuple(x.shape[1:]))
    assert sides == [(256, 40, 56, 40), (512, 20, 28, 20), (1024, 20, 28, 20), (2048, 20, 28, 20)]


def test_wrong_file_is_refused_before_it_is_opened(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(BrainLDMError, match="SHA-256"):
        features.medicalnet_extractor(saved[0])
    with pytest.raises(BrainLDMError, match="no such file"):
        features.medicalnet_extractor(tmp_path / "none.pth")


class _Evil:
    def __reduce__(self):
        return (pytest.fail, ("code of a weight file was run",))


def test_file_of_the_right_hash_may_still_hold_no_network(weights, tmp_path):
    path = tmp_path / "weights.pth"
    fewer = {name: value for name, value in weights.items() if name != "layer4.2.bn3.bias"}
    for state in (fewer, weights | {"more": torch.zeros(1)}, weights | {"conv1.weight": torch.zeros(64, 3, 7, 7, 7)}):
        with pytest.raises(BrainLDMError, match="is not MedicalNet"):
            features.medicalnet_extractor(path, save(path, state))
    for content in (b"", b"words", pickle.dumps({"state_dict": _Evil()}), pickle.dumps([1])):
        path.write_bytes(content)
        with pytest.raises(BrainLDMError, match="holds no weights"):
            features.medicalnet_extractor(path, hashlib.sha256(content).hexdigest())
    for content in ([1, 2], {"weights": 1}, {"state_dict": 3}):
        torch.save(content, path)
        with pytest.raises(BrainLDMError, match="holds no weights"):
            features.medicalnet_extractor(path, hashlib.sha256(path.read_bytes()).hexdigest())
    torch.save({"state_dict": {"conv1.weight": "text"}}, path)
    with pytest.raises(BrainLDMError):
        features.medicalnet_extractor(path, hashlib.sha256(path.read_bytes()).hexdigest())


def test_default_takes_medicalnet_where_it_lies(saved, monkeypatch, tmp_path):
    monkeypatch.setenv("BRAINLDM_DATA", str(tmp_path))
    assert features.default_extractor() is features.offline_extractor()
    (tmp_path / features.MEDICALNET_FILE).write_bytes(b"something else")
    with pytest.raises(BrainLDMError, match="SHA-256"):  # a broken file is said, not passed over
        features.default_extractor()
    (tmp_path / "medicalnet").mkdir()
    fetched = tmp_path / "medicalnet" / features.MEDICALNET_FILE
    fetched.write_bytes(b"something fetched")
    with pytest.raises(BrainLDMError, match=f"{fetched}: SHA-256"):
        features.default_extractor()
    monkeypatch.setattr(features, "MEDICALNET_SHA256", saved[1])
    monkeypatch.setenv("BRAINLDM_DATA", str(saved[0].parent))
    monkeypatch.delenv("BRAINLDM_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert features.data_folder() == tmp_path / ".cache" / "brainldm"
