"""The network that the paper's authors released, and our weights in its layout (that of monai-generative 0.2).

What a computer needs: the weights are 2.3 GB on disk and the same in memory, held once (a process that loaded files of
that size held 2.5 GiB at most); they are read twice for their checksums. Latents are drawn two at a time, volumes are
decoded one by one. Decoding takes most memory: about 11 GB in float32 for 160 x 224 x 160 voxels, from 1.9 kB a voxel
measured on a grid of an eighth of that. So 16 GB of memory are the least. Seconds for a volume were not measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .covariates import Ranges
from .errors import BrainLDMError
from .foreign import checked, filled, read_state
from .networks import build, default_device, load_checkpoint, save_checkpoint
from .profiles import Profile, load_profile
from .records import sha256

if TYPE_CHECKING:
    from .sampling import Pipeline

BUNDLE = "brain-ldm-bundle"  # its manifest
FILES = {"autoencoder": "models/autoencoder.pt", "unet": "models/model.pt"}
LATENT_SCALE = 1.0  # [R]
BATCH = 2  # padded; one alone would take a slow path of convolutions on CPUs, more would take more memory
TRAINING = {"cohort": "ukbiobank", "subjects": 31740, "brain_only": False}

RANGES: Ranges = {
    "sex": (0.0, 1.0),
    "age_years": (44.0, 82.0),
    "ventricular_volume_ml": (6.99568, 171.375),
    "brain_volume_ml": (1144.24, 1793.91),
}
"""Covariates that became 0 and 1 in the paper [P]; the release says none, and is taken to have these."""


def departures(profile: Profile) -> list[str]:
    """What a profile has that the released network has not, in words; the layout has no place for any of it."""
    settings = profile.diffusion
    schedule = (settings.timesteps, settings.beta_start, settings.beta_end)
    found = {
        "mask channels": settings.mask_channels,
        "a mean latent": settings.mean_latent,
        f"{settings.prediction} prediction": settings.prediction != "epsilon",
        f"conditioning by {settings.conditioning}": settings.conditioning != "hybrid",
        f"a condition gain of {settings.condition_gain:g}": settings.condition_gain != 1,
        "another noise schedule": schedule != (1000, 0.0015, 0.0205),
    }
    return [words for words, departs in found.items() if departs]


def is_released(folder: Path) -> bool:
    """Whether a folder holds files of the release."""
    return any((Path(folder) / name).is_file() for name in FILES.values())


def load_released(folder: Path | None = None, profile: str | Path | None = None, device: str | None = None) -> Pipeline:
    """The released autoencoder and UNet (sections 2.1 and 2.2), ready to draw whole heads in MNI space.

    Args:
        folder: holds ``models/autoencoder.pt`` and ``models/model.pt``; None: where ``brainldm data fetch`` puts them.
        profile: of the paper's structure; None: ``paper``, drawn in batches of two.

    Raises:
        BrainLDMError: a file is missing or another one, or does not fit the profile.
    """
    from .sampling import Pipeline

    settings = load_profile(profile or "paper")
    if wrong := departures(settings):
        raise BrainLDMError(
            f"profile {settings.name!r}: has {', '.join(wrong)}, and the released network has not; use --profile paper"
        )
    if settings.name == "paper":
        drawing = settings.sampling.model_copy(update={"batch_size": BATCH})
        settings = settings.model_copy(update={"sampling": drawing})
    files = checked(BUNDLE, folder)
    networks = {}
    for kind, name in FILES.items():
        what = f"the {kind} of profile {settings.name!r}"
        # No name is kept for the tensors: the network has them, and nothing else should.
        networks[kind] = filled(lambda kind=kind: build(kind, settings), read_state(files[name]), files[name], what)
    device = device or default_device()
    return Pipeline(
        profile=settings,
        autoencoder=networks["autoencoder"].to(device),
        unet=networks["unet"].to(device),
        ranges=RANGES,
        latent_scale=LATENT_SCALE,
        sha256={kind: sha256(files[name]) for kind, name in FILES.items()},
        training=TRAINING,
    )


def save_released(weights: Path, out: Path) -> list[Path]:
    """Write a pair of ours under the names of the release, float32: ``models/autoencoder`` and ``model.safetensors``.

    The names of the tensors are those of monai-generative 0.2, which ``load_old_state_dict`` of MONAI renames. Ranges,
    latent scale and the rest stay in the header; latents are to be divided by that scale before they are decoded.

    Args:
        weights: a run's folder, or one of exported weights.

    Raises:
        BrainLDMError: the profile has what the released network has not, or the cohort may not be published.
    """
    from .manifests import publishable
    from .sampling import weight_files

    paths: list[Path] = []
    for source, (kind, name) in zip(weight_files(weights), FILES.items(), strict=True):
        tensors, config = load_checkpoint(source, kind)
        allowed, reason = publishable(config["training"]["cohort"])
        if not allowed:
            raise BrainLDMError(f"{weights}: weights trained on this cohort cannot be given away: {reason}")
        if wrong := departures(Profile.model_validate(config["profile"])):
            raise BrainLDMError(
                f"{weights}: has {', '.join(wrong)}, for which the released layout has no place; export it without "
                "--released"
            )
        if paths:  # the pair is checked by this hash when it is loaded
            config["autoencoder_sha256"] = sha256(paths[0])
        path = (Path(out) / name).with_suffix(".safetensors")
        save_checkpoint(path, {key: value.float() for key, value in tensors.items()}, config)
        paths.append(path)
    return paths
