"""Weights that others give: nothing is opened before its checksum, nothing but tensors is read, nothing is copied."""

import hashlib
import pickle

import pytest
import torch
import yaml
from torch import nn

from brainldm_core import foreign, manifests
from brainldm_core.errors import BrainLDMError


def network() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """Writes a manifest ``net`` that lists files of these contents, without the files; gives the folder for them."""
    monkeypatch.setattr(manifests, "FOLDER", tmp_path / "manifests")
    monkeypatch.setenv("BRAINLDM_DATA", str(tmp_path / "data"))
    manifests.FOLDER.mkdir()

    def write(**contents):
        entries = [
            {
                "name": name,
                "url": "http://127.0.0.1:9/x",
                "bytes": None,
                "checksum": f"md5:{hashlib.md5(c).hexdigest()}",
            }
            for name, c in contents.items()
        ]
        content = {"name": "net", "title": "Net", "kind": "weights", "source": [], "files": entries, "licence": "CC0"}
        content |= {"citation": [], "access": "open", "non_commercial": False, "faces": "absent"}
        (manifests.FOLDER / "net.yaml").write_text(yaml.safe_dump(content | {"reference_icv_ml": None}))
        folder = tmp_path / "data" / "net"
        folder.mkdir(parents=True)
        return folder

    return write


def test_all_files_are_compared_with_the_manifest(listed, tmp_path):
    folder = listed(a=b"one", b=b"two")
    with pytest.raises(BrainLDMError, match=r"net/a: missing; get it with: brainldm data fetch net$"):
        foreign.checked("net")
    (folder / "a").write_bytes(b"one")
    (folder / "b").write_bytes(b"owt")
    with pytest.raises(
        BrainLDMError, match=r"net/b: changed: md5 is .* so it is not opened; delete it, then: brainldm"
    ):
        foreign.checked("net")
    (folder / "b").write_bytes(b"two")
    assert foreign.checked("net") == {"a": folder / "a", "b": folder / "b"}
    with pytest.raises(BrainLDMError, match="elsewhere/a: missing"):
        foreign.checked("net", tmp_path / "elsewhere")


class _Evil:
    def __reduce__(self):
        return (pytest.fail, ("code of a weight file was run",))


def test_only_tensors_are_read(tmp_path):
    path = tmp_path / "weights.pt"
    for content in (b"", b"words", pickle.dumps({"a": _Evil()}), pickle.dumps([1])):
        path.write_bytes(content)
        with pytest.raises(BrainLDMError, match="weights.pt: holds no weights"):
            foreign.read_state(path)
    for content in ([torch.zeros(1)], {"a": 1}, {"state": 3}, {1: torch.zeros(1)}):
        torch.save(content, path)
        with pytest.raises(BrainLDMError, match="weights.pt: holds no weights"):
            foreign.read_state(path, "state" if "state" in content else None)


@pytest.mark.parametrize("zipped", [True, False])  # files of before 2020 are not
def test_tensors_fill_a_network_and_are_not_copied(tmp_path, zipped):
    torch.manual_seed(0)
    path, source = tmp_path / "weights.pt", network()
    state = {f"module.{key}": value for key, value in source.state_dict().items() if "num_batches" not in key}
    torch.save({"state": state}, path, _use_new_zipfile_serialization=zipped)
    read = foreign.read_state(path, "state")
    made = foreign.filled(network, read, path, "a net")
    assert not made.training and not any(value.requires_grad for value in made.parameters())
    assert {key: made.state_dict()[key].data_ptr() == value.data_ptr() for key, value in read.items()} == dict.fromkeys(
        read, True
    )
    volume = torch.rand(2, 1, 3, 3, 3)
    assert torch.equal(made(volume), source.eval()(volume))


def test_weights_of_another_network_are_named_and_half_ones_become_single(tmp_path):
    state = network().state_dict()
    for wrong in ({}, state | {"2.weight": torch.zeros(1)}, state | {"0.weight": torch.zeros(2, 3, 1, 1, 1)}):
        with pytest.raises(BrainLDMError, match=r"x.pt: is not a net \(.*\); fetch it again"):
            foreign.filled(network, wrong, tmp_path / "x.pt", "a net")
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    made = foreign.filled(network, half, tmp_path / "x.pt", "a net")
    assert {value.dtype for value in made.parameters()} == {torch.float32}
