"""Features of volumes for FID, KID, precision and recall: MedicalNet's (as the paper) or an offline stand-in.

Features of different extractors do not compare: every number made with them carries the extractor's name and hash.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from .errors import BrainLDMError
from .fetch import data_folder
from .foreign import filled, read_state
from .networks import default_device
from .records import sha256
from .volume_sets import VolumeSet, grid_of, take

MEDICALNET_FILE = "resnet_50_23dataset.pth"
MEDICALNET_SHA256 = "ff48a62219073fb977fd3f4ddfb8dc1367f0ec156c8d6f6c37e205bd683a246e"
OFFLINE_NAME, OFFLINE_CHANNELS = "offline-1", (16, 32, 40, 40)
SMALLEST, BATCH_VOXELS = 16, 2**22  # voxels a side; voxels in one batch, for memory


@dataclass(frozen=True)
class Extractor:
    """What turns volumes (B, 1, D, H, W) in [0, 1] into features (B, F), and its identity.

    ``sha256`` is that of its weights; ``comparable``: whether its FID may stand beside the paper's.
    """

    name: str
    sha256: str
    comparable: bool
    function: Callable[[torch.Tensor], torch.Tensor]

    @property
    def note(self) -> str:
        """Words that go with every number made with it."""
        words = "" if self.comparable else ", not comparable with the paper's FID"
        return f"{self.name} ({self.sha256[:12]}){words}"


def z_score(x: torch.Tensor) -> torch.Tensor:
    """Each volume less its mean, over its standard deviation, all voxels included."""
    deviation, mean = torch.std_mean(x, (1, 2, 3, 4), correction=0, keepdim=True)
    return (x - mean) / deviation.clamp_min(1e-6)


def _offline_weights() -> list[torch.Tensor]:
    """Filters (out, in, 3, 3, 3): bytes of SHAKE-256 of the name, so no library's random numbers can change them.

    The mean of each kernel is taken off in whole numbers, the same on every machine.
    """
    inputs = (1, *OFFLINE_CHANNELS[:-1])
    weights, start = [], 0
    sizes = [(out, into, 27) for out, into in zip(OFFLINE_CHANNELS, inputs, strict=True)]
    stream = hashlib.shake_256(OFFLINE_NAME.encode()).digest(sum(map(math.prod, sizes)))
    for out, into, taps in sizes:
        raw = np.frombuffer(stream, np.uint8, out * into * taps, start).astype(np.int64).reshape(out, into, taps)
        start += raw.size
        centred = raw * taps - raw.sum(2, keepdims=True)
        gain = math.sqrt(1 / (into * taps)) / (256 / math.sqrt(12) * taps)  # keeps the scale from layer to layer
        weights.append(torch.from_numpy((centred * gain).astype(np.float32).reshape(out, into, 3, 3, 3)))
    return weights


@lru_cache(maxsize=1)
def offline_extractor() -> Extractor:
    """A random 3-D convolutional network that needs no file: 256 features of any grid from 16 voxels a side.

    Trained on nothing, so part of no compared system; the same weights on every machine. What makes random filters
    tell sets apart: each volume is z-scored, so that windowing does not count; every kernel sums to zero and answers
    to structure, not to brightness, without which deep channels grow alike; the modulus behind each layer keeps the
    energy of both signs, as in a scattering transform (Bruna and Mallat 2013), and leaves no channel dead; four depths,
    each halving the grid, see structures from one voxel to a whole lobe; a channel's mean tells how much there is of a
    structure and its standard deviation how unevenly it lies. Blur, noise, misplaced anatomy and loss of variety all
    raise the distance (tests); what they look like to a person is not what it was made for.
    """
    weights = _offline_weights()
    digest = hashlib.sha256(OFFLINE_NAME.encode() + b"".join(weight.numpy().tobytes() for weight in weights))

    def features(x: torch.Tensor) -> torch.Tensor:
        if min(x.shape[2:]) < SMALLEST:
            raise BrainLDMError(f"volumes of {tuple(x.shape[2:])} voxels: {OFFLINE_NAME} needs {SMALLEST} a side")
        x, pooled = z_score(x), []
        for depth, weight in enumerate(weights):
            x = functional.avg_pool3d(x, 2) if depth else x
            x = functional.conv3d(functional.pad(x, (1,) * 6, mode="replicate"), weight.to(x.device)).abs()
            pooled += torch.std_mean(x, (2, 3, 4), correction=0)
        return torch.cat(pooled, 1)

    return Extractor(OFFLINE_NAME, digest.hexdigest(), False, features)


class _Bottleneck(nn.Module):
    """Residual block of 1, 3 and 1 voxels (He 2016); parameters are named as in MedicalNet's files."""

    def __init__(self, inputs: int, width: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(4 * width)
        self.downsample = None
        if stride > 1 or inputs != 4 * width:
            shortcut = nn.Conv3d(inputs, 4 * width, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm3d(4 * width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x)).relu_()
        x = self.bn2(self.conv2(x)).relu_()
        return (self.bn3(self.conv3(x)) + shortcut).relu_()


class MedicalNet(nn.Module):
    """ResNet-50 of MedicalNet (Chen 2019) up to layer 4: stem of stride 2, layers 3 and 4 dilated by 2 and 4.

    Other 3-D ResNet-50s load its weights (MONAI's does) but stride where this one dilates: other features.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        inputs = 64
        plan = [(64, 3, 1, 1), (128, 4, 2, 1), (256, 6, 1, 2), (512, 3, 1, 4)]
        for number, (width, blocks, stride, dilation) in enumerate(plan, 1):
            layer = [_Bottleneck(inputs, width, stride, dilation)]
            layer += [_Bottleneck(4 * width, width, 1, dilation) for _ in range(blocks - 1)]
            setattr(self, f"layer{number}", nn.Sequential(*layer))
            inputs = 4 * width

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        """Feature maps (B, 2048, d, h, w), an eighth of each side, of z-scored volumes (B, 1, D, H, W)."""
        x = functional.max_pool3d(self.bn1(self.conv1(x)).relu_(), 3, stride=2, padding=1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, 2048) of z-scored volumes (B, 1, D, H, W)."""
        return self.maps(x).mean((2, 3, 4))


def load_medicalnet(path: Path, expected: str | None = None) -> tuple[MedicalNet, str]:
    """MedicalNet's ResNet-50 pretrained on 23 data sets, and the SHA-256 of its file.

    Args:
        path: ``resnet_50_23dataset.pth`` of the hub repository TencentMedicalNet/MedicalNet-Resnet50.
        expected: SHA-256 of the file, None: the published one; it is checked before the file is opened as weights.

    Raises:
        BrainLDMError: the file is missing, is another one, or does not hold this network.
    """
    path, expected = Path(path), expected or MEDICALNET_SHA256
    if not path.is_file():
        raise BrainLDMError(f"{path}: no such file; get it with: brainldm data fetch medicalnet")
    found = sha256(path)
    if found != expected:
        raise BrainLDMError(f"{path}: SHA-256 is {found}, {expected} was expected; fetch {MEDICALNET_FILE} again")
    state = read_state(path, "state_dict")
    state = {name: value for name, value in state.items() if not name.startswith("conv_seg.")}
    return filled(MedicalNet, state, path, "MedicalNet's ResNet-50"), found


def medicalnet_extractor(path: Path, expected: str | None = None) -> Extractor:
    """MedicalNet's 2,048 features, as the paper's FID (section 3.1); see ``load_medicalnet``."""
    network, found = load_medicalnet(path, expected)
    return Extractor("MedicalNet ResNet-50", found, True, lambda x: network.to(x.device)(z_score(x)))


def find_medicalnet() -> Path | None:
    """MedicalNet's file, where it was fetched or lies in ``data_folder()``."""
    places = (data_folder() / "medicalnet" / MEDICALNET_FILE, data_folder() / MEDICALNET_FILE)
    return next((path for path in places if path.exists()), None)


def default_extractor() -> Extractor:
    """MedicalNet when its file was fetched or lies in ``data_folder()``, else the offline one.

    Raises:
        BrainLDMError: MedicalNet's file is there but is another one.
    """
    path = find_medicalnet()
    return medicalnet_extractor(path) if path else offline_extractor()


def extract(
    extractor: Extractor, volumes: VolumeSet, batch: int = 8, device: str | torch.device | None = None
) -> np.ndarray:
    """Features (N, F) float32 of volumes (N, D, H, W) or (N, 1, D, H, W) in [0, 1], read and moved batch by batch.

    Args:
        device: where to compute; None: the accelerator if there is one.

    Raises:
        BrainLDMError: no volumes, another shape, or intensities that are not in [0, 1].
    """
    return np.concatenate(list(extract_batches(extractor, volumes, batch, device)))


def extract_batches(
    extractor: Extractor, volumes: VolumeSet, batch: int = 8, device: str | torch.device | None = None
) -> Iterator[np.ndarray]:
    """The same features in parts (B, F), for sets whose table is not wanted (``metrics.feature_moments``)."""
    batch = max(1, min(batch, BATCH_VOXELS // math.prod(grid_of(volumes))))
    device = torch.device(device or default_device())
    for start in range(0, len(volumes), batch):
        part = take(volumes, slice(start, start + batch), device).to(torch.float32)
        # Convolutions of reduced precision would make an accelerator's features differ from a processor's.
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            found = extractor.function(part).cpu().numpy()
        yield found
