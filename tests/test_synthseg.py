"""SynthSeg, if it is installed: a stand-in on the PATH writes what the real command writes."""

from __future__ import annotations

import stat
import sys

import numpy as np
import pytest

from brainldm_core import morphometry, synthseg
from brainldm_core.errors import BrainLDMError

STAND_IN = """#!{python}
import argparse
from pathlib import Path
import nibabel as nib
import numpy as np

parser = argparse.ArgumentParser()
for name in ("--i", "--o", "--vol", "--threads"):
    parser.add_argument(name, required=True)
parser.add_argument("--cpu", action="store_true")
given = parser.parse_args()
image = nib.load(given.i)
values = np.asarray(image.dataobj)
if values.max() == 0:
    raise SystemExit("no brain here")
labels = np.select([values > 0.9, values > 0.5, values > 0.2], [41, 42, 43], 0).astype(np.int32)
nib.save(nib.Nifti1Image(labels, image.affine), given.o)
names = ["subject", "total intracranial", "left cerebral white matter", "left lateral ventricle",
         "left inferior lateral ventricle", "3rd ventricle", "csf", "right ventral DC"]
Path(given.vol).write_text(",".join(names) + "\\nscan,1500000,1000000,12000,1500,900,70000,4000\\n")
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A command of SynthSeg's name that thresholds a scan."""
    path = tmp_path / "bin" / synthseg.COMMAND
    path.parent.mkdir()
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(path.parent), prepend=":")
    return path


def test_volumes_are_those_of_its_table(stand_in):
    assert synthseg.available()
    volume = np.ones((8, 9, 10), np.float32)
    found = morphometry.measure(volume, np.eye(4), method="synthseg")
    assert found["lateral_ventricles_ml"] == pytest.approx(13.5)
    assert found["brain_ml"] == pytest.approx(1004)
    assert found["intracranial_ml"] == pytest.approx(1500)
    assert found["brain_volume_ml"] == pytest.approx(1004 * morphometry.REFERENCE_ICV_ML / 1500)


def test_labels_come_back_on_the_grid_of_the_scan(stand_in):
    volume = np.zeros((8, 9, 10), np.float32)
    volume[2], volume[3], volume[4] = 0.3, 0.7, 1.0
    labels = morphometry.segment(volume, np.diag([-2.0, 1.5, 1, 1]), method="synthseg")
    assert labels.dtype == np.uint8 and labels.shape == volume.shape
    assert [int(labels[k].min()) for k in range(1, 6)] == [0, 4, 2, 3, 0]
    assert [int(labels[k].max()) for k in range(1, 6)] == [0, 4, 2, 3, 0]


def test_a_failure_says_what_the_command_said(stand_in):
    with pytest.raises(BrainLDMError, match="failed with code 1.*no brain here"):
        synthseg.measure(np.zeros((4, 4, 4)), np.eye(4))


def test_without_the_command_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not synthseg.available()
    with pytest.raises(BrainLDMError, match="not on the PATH"):
        morphometry.measure(np.ones((4, 4, 4)), np.eye(4), method="synthseg")


def test_another_table_is_refused(tmp_path):
    table = tmp_path / "volumes.csv"
    table.write_text("subject,something\nscan,3\n")
    with pytest.raises(BrainLDMError, match=r"volumes\.csv.*no lateral ventricles"):
        synthseg.read_volumes(table)
