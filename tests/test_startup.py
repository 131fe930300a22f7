"""A quick start: extras are hidden from MONAI alone, and the clock begins with the process."""

import importlib
import subprocess
import sys
import time

import pytest

from brainldm_core import startup


def python(code):
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)


def test_hidden_packages_are_found_again_and_imported_ones_stay(tmp_path, monkeypatch):
    (tmp_path / "an_extra.py").write_text("here = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    with startup.without(("an_extra", "pytest", "no_such_package")):
        assert sys.modules["pytest"] is pytest
        with pytest.raises(ImportError):
            importlib.import_module("an_extra")
    assert importlib.import_module("an_extra").here and "no_such_package" not in sys.modules


NETWORKS = """
import torch
from brainldm_core import networks, profiles
profile = profiles.load_profile("smoke")
torch.manual_seed(0)
nets = [networks.build_autoencoder(profile), networks.build_unet(profile), networks.build_segmenter((4, 8, 8))]
print([type(net) for net in nets], sum(float(p.double().sum()) for net in nets for p in net.parameters()))
"""


def test_networks_come_without_extras_and_are_the_same():
    light = python(
        "import sys\nfrom brainldm_core import startup\nstartup.import_networks(True)\n"
        "found = {name.split('.')[0] for name in sys.modules}\n"
        "assert not found & {*startup.OPTIONAL, 'diffusers'}, found & set(startup.OPTIONAL)\n"
        "import matplotlib, nibabel, scipy.ndimage" + NETWORKS
    )
    assert light.stdout == python(NETWORKS).stdout and "AutoencoderKL" in light.stdout


def test_the_clock_begins_with_the_process():
    began = time.monotonic()
    done = python("import time\ntime.sleep(0.3)\nfrom brainldm_core.startup import *\nprint(seconds_since_start())")
    assert (0.29 if sys.platform.startswith("linux") else 0) < float(done.stdout) < time.monotonic() - began + 0.02
