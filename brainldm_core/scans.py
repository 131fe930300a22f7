"""One real scan: from a T1w file to a volume on the profile's grid in MNI space, and a sidecar that says how.

Like the paper (section 2.3) scans are aligned rigidly and resampled once, and a whole head stays one. What goes beyond
that is an option, off by default: the brain is cut out first, so that the template, a brain, finds its like; then the
bias field is taken off; then the scan is aligned.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .dataset import read_nifti, save_volume
from .errors import BrainLDMError
from .profiles import Grid
from .records import read_json, settings_hash, sha256, write_json

METHOD = "similarity by Mattes mutual information to ICBM 2009a, scale dropped; 2"
NOT_ASKED, NOT_NEEDED = "off", "brain only already"  # of brain extraction; else the name of the tool


@dataclass(frozen=True)
class Preparation:
    """What is done to every scan beside its alignment: the options of ``brainldm prepare bids``."""

    bias_correction: bool = False
    brain_extraction: bool = False
    intensity: str = "white"  # a key of intensity.WAYS

    def __post_init__(self) -> None:
        from .intensity import WAYS

        if self.intensity not in WAYS:
            raise BrainLDMError(f"--intensity {self.intensity}: is unknown; choose one of {', '.join(WAYS)}")

    def settings(self) -> dict[str, Any]:
        """Plain values for records and keys, with the version of a tool that another release may change."""
        from .brain_extraction import TOOL

        return asdict(self) | ({"brain_extraction": TOOL} if self.brain_extraction else {})


@dataclass(frozen=True)
class Job:
    """One scan to prepare: picklable, for a worker process."""

    source: Path
    target: Path
    grid: Grid
    preparation: Preparation = Preparation()


def prepare_scan(job: Job) -> dict[str, Any]:
    """Prepare one scan, or keep what is done with the same settings; its quality, or ``{"failed": reason}``.

    Raises:
        BrainLDMError: the result cannot be written (which no other scan would survive either).
    """
    sidecar = job.target.with_name(job.target.name.replace(".nii.gz", ".json"))
    try:
        settings = [METHOD, job.grid.model_dump(mode="json"), job.preparation.settings()]
        key = settings_hash([*settings, sha256(job.source)])
    except OSError as error:
        return {"failed": f"{job.source}: cannot be read ({error.strerror}); restore it"}
    if sidecar.exists() and job.target.exists():
        done = read_json(sidecar)
        if done.get("key") == key:
            return done
    sidecar.unlink(missing_ok=True)  # a stop from here on leaves no volume with the sidecar of other settings
    job.target.unlink(missing_ok=True)
    try:
        volume, quality = _prepare(job)
    except BrainLDMError as error:
        text = str(error)
        return {"failed": text if text.startswith(str(job.source)) else f"{job.source}: {text}"}
    except Exception as error:  # whatever a library thinks of this scan, the others go on
        reason = " ".join(str(error).split())[-160:] or type(error).__name__
        return {"failed": f"{job.source}: could not be prepared ({reason}); look at this scan"}
    save_volume(job.target, volume, job.grid.affine)
    quality = {"key": key, "Sources": [f"bids:raw:{job.source.name}"], **quality, "source": job.source.name}
    write_json(sidecar, quality)  # last: it says that the volume is finished
    return quality


def _prepare(job: Job) -> tuple[Any, dict[str, Any]]:
    """Volume (D, H, W), 0 to 1 where nothing is clipped, and what the sidecar says of it."""
    from .brain_extraction import TOOL, extract_brain
    from .intensity import correct_bias, window
    from .registration import is_brain_only, register
    from .resampling import resample

    volume, affine = read_nifti(job.source)
    extraction, brain_ml, bias_percent = NOT_ASKED, None, None
    if job.preparation.brain_extraction and is_brain_only(volume, affine):
        extraction = NOT_NEEDED
    elif job.preparation.brain_extraction:
        volume, brain_ml = extract_brain(volume, affine)
        extraction, brain_ml = TOOL, round(brain_ml, 1)
    if job.preparation.bias_correction:
        volume, spread = correct_bias(volume, affine)
        bias_percent = round(spread, 1)
    found = register(volume, affine)
    placed = resample(volume, affine, found.matrix, job.grid)
    low, high = window(placed, job.preparation.intensity, found.white_level)
    return (placed - low) / (high - low), {
        "SpatialReference": "MNI152 ICBM 2009a, rigid: the head keeps its size",
        "SkullStripped": found.brain_only,
        "brain_only": found.brain_only,
        "correlation": round(found.correlation, 4),
        "mutual_information": round(found.mutual_information, 4),
        "rotation_degrees": round(found.rotation_degrees, 2),
        "scale": round(found.scale, 4),
        "white_level": round(found.white_level, 4),
        "brain_extraction": extraction,
        "brain_ml": brain_ml,
        "bias_percent": bias_percent,
        "intensity": job.preparation.intensity,
        "intensity_window": [round(low, 4), round(high, 4)],
        "scan_from_template_mm": found.matrix.round(5).tolist(),
    }
