"""What a release says about itself: tables, README, licence and checksums, from its plan and what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .manifests import find_manifest, publishable
from .records import read_json, write_json, write_text
from .release_check import BIDS
from .samples import write_participants

if TYPE_CHECKING:
    import pandas as pd

LICENCE = "CC-BY-4.0"
TRAINING_ROWS = "whole rows of the training cohort, drawn with replacement"
_NAMELESS, _SOFTWARE = "The makers of this set (not named)", "The BrainLDM authors (software)"
_PAPER = "Pinaya et al. Brain Imaging Generation with Latent Diffusion Models. DGM4MICCAI 2022, arXiv:2209.07162"
_WHERE = {"CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/legalcode"}
_README = """{title}
{line}

{count} T1-weighted brain volumes of no person, drawn from a latent diffusion model (Pinaya et al. 2022,
arXiv 2209.07162) with brainldm. They are synthetic: no volume is a scan, and none is fit for clinical use.

Volumes: sub-NNNNNN/anat/sub-NNNNNN_T1w.nii.gz, {shape} voxels, in MNI space (RAS), intensities from 0 to 1 in
255 steps. T1w.json holds for all of them. Table: participants.tsv, columns explained in participants.json. Covariates
were requested jointly: {origin}. Columns measured_* were measured in the volume.

Trained on: {cohort}. {terms}
Check the files with: sha256sum -c SHA256SUMS (in the folder above this one), or brainldm release verify.
"""


def write_tables(out: Path, plan: dict[str, Any], table: pd.DataFrame) -> None:
    """Write the files of ``release_check.TABLES``: a function of plan, version and table, whoever writes them.

    A volume that a model computed was acquired by no scanner, so that in BIDS it is a derivative, and its sources are
    what the model was trained on.
    """
    bids, (allowed, reason) = out / BIDS, publishable(plan["cohort"])
    licence = plan["licence"] if allowed else f"Not to be given away: {reason}."
    terms = f"Licence: {licence}." if allowed else licence
    manifest = find_manifest(plan["cohort"])
    sources = [
        {"URL": source.url.split()[0], "Version": source.version} for source in (manifest.source if manifest else ())
    ]
    description = {
        "DatasetType": "derivative",
        "License": licence,
        "Authors": [*(plan["authors"] or [_NAMELESS]), _SOFTWARE],
        "ReferencesAndLinks": [_PAPER],
        "GeneratedBy": [
            {"Name": "brainldm", "Version": __version__, "Description": "brainldm release; networks are in T1w.json"}
        ],
        "SourceDatasets": sources,
        "BrainLDM": {"Synthetic": True, "Requests": plan["origin"]},
    }
    write_participants(bids, table, plan["title"], **description)
    columns = {"Description": "A row a synthetic volume: what was requested, and measured_* in the volume"}
    write_json(bids / "participants.json", columns | read_json(bids / "participants.json"))
    write_json(bids / "T1w.json", plan["sidecar"])
    shape, cohort = " x ".join(map(str, plan["shape"])), reason if allowed else plan["cohort"]
    facts = {"title": plan["title"], "line": "=" * len(plan["title"]), "count": plan["count"], "shape": shape}
    write_text(bids / "README", _README.format(**facts, cohort=cohort, terms=terms, origin=plan["origin"]))
    where = f"\n{_WHERE[licence]}" if licence in _WHERE else ""
    write_text(bids / "LICENSE", f"{licence}{where}\n")
