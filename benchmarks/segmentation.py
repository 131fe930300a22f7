"""The segmenter of the morphometry: its training, its weights, and what it reaches on people and on labelled scans.

    python benchmarks/segmentation.py train LABELS --out runs/segmenter --seconds 1800
    python benchmarks/segmentation.py export runs/segmenter --out brainldm_core/weights/segmenter.safetensors
    python benchmarks/segmentation.py people LABELS --split test
    python benchmarks/segmentation.py scans IMAGES LABELS --method network

LABELS of the first three is a folder of SynthSeg's training label maps. ``scans`` pairs the volumes of two folders by
the order of their names and holds measured volumes against those of the labels, which are Neuromorphometrics' or
DLMUSE's: lateral ventricles 51 and 52, fluid also 4, 11, 46, 49 and 50, everything else brain.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

LATERAL = (51, 52)
HORNS = (49, 50)
FLUID = (4, 11, 46, 1, 63, *LATERAL, *HORNS)


def volumes_in(folder: Path) -> list[Path]:
    """NIfTI volumes of a folder and its subfolders, in the order of their names; those of BIDS derivatives left out."""
    found = [path for path in folder.rglob("*.nii*") if "derivatives" not in path.relative_to(folder).parts]
    return sorted(found, key=lambda path: path.name)


def against_labels(image: Path, label: Path, method: str) -> dict[str, float | str]:
    """Volumes (ml) of a scan by its labels and by a method, Dice of the lateral ventricles, and seconds."""
    import nibabel as nib

    from brainldm_core import morphometry

    scan, truth = (nib.as_closest_canonical(nib.load(path)) for path in (image, label))
    labels, ml = np.asarray(truth.dataobj), abs(np.linalg.det(truth.affine)) / 1000
    lateral = np.isin(labels, LATERAL)
    volume = scan.get_fdata(dtype=np.float32)
    if morphometry.choose(scan.affine, method) == "intensity":  # which wants [0, 1]
        volume = np.clip(0.8 * volume / np.percentile(volume[volume > 0], 90), 0, 1)
    start = time.process_time()
    found = morphometry.measure(volume, scan.affine, method)
    seconds = time.process_time() - start
    mask = morphometry.segment(volume, scan.affine, method) == 4
    whole = np.isin(labels, LATERAL + HORNS)
    return {
        "scan": image.name.split(".")[0],
        "lateral": lateral.sum() * ml,
        "with_horns": whole.sum() * ml,
        "lateral_found": found["lateral_ventricles_ml"],
        "dice": 2 * (mask & lateral).sum() / max(1, mask.sum() + lateral.sum()),
        "dice_horns": 2 * (mask & whole).sum() / max(1, mask.sum() + whole.sum()),
        "brain": ((labels > 0) & ~np.isin(labels, FLUID)).sum() * ml,
        "brain_found": found["brain_ml"],
        "labelled": (labels > 0).sum() * ml,
        "nonzero": (volume > 0).sum() * ml,
        "intracranial_found": found["intracranial_ml"],
        "seconds": seconds,
    }


def summary(true: pd.Series, found: pd.Series) -> str:
    """Correlation, mean difference and mean absolute difference of two columns in ml."""
    off, r = found - true, np.corrcoef(true, found)[0, 1]
    return f"r {r:.4f}, bias {off.mean():+.2f} ml, MAE {off.abs().mean():.2f} ml, n {len(off)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["train", "export", "people", "scans"])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=1800.0, help="of training (default 1800)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--method", default="network", choices=["intensity", "network", "synthseg"])
    options = parser.parse_args()
    from brainldm_core import segmentation_training as training

    pd.set_option("display.width", 200, "display.max_columns", 20)
    if options.task == "train":
        print(training.train_segmenter(options.folders[0], options.out, options.seconds, options.seed)["results"])
    elif options.task == "export":
        print(training.export_segmenter(options.folders[0], options.out))
    elif options.task == "people":
        table = pd.DataFrame(training.check_on_people(options.folders[0], options.split))
        for kind, part in table.groupby("kind"):
            print(f"{kind}: Dice of ventricles {part['dice'].mean():.3f} (least {part['dice'].min():.3f})")
            for name in ("lateral", "brain", "intracranial"):
                print(f"  {name}: {summary(part[f'{name}_true_ml'], part[f'{name}_found_ml'])}")
    else:
        pairs = zip(*map(volumes_in, options.folders), strict=True)
        table = pd.DataFrame([against_labels(image, label, options.method) for image, label in pairs])
        print(table.round(2).to_string(index=False))
        print(f"lateral: {summary(table['lateral'], table['lateral_found'])}")
        print(f"with inferior horns: {summary(table['with_horns'], table['lateral_found'])}")
        print(f"brain: {summary(table['brain'], table['brain_found'])}")
        for name, title in (("dice", "without"), ("dice_horns", "with")):
            mean, least = table[name].mean(), table[name].min()
            print(f"Dice of the lateral ventricles {title} their inferior horns {mean:.3f}, least {least:.3f}")


if __name__ == "__main__":
    main()
