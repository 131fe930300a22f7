"""Packages: pyproject.toml, constraints.txt, environment.yml and the imports of the code agree."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import brainldm_core

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# These extras are not part of 'make setup': torchvision must match the user's own torch, and deepbet is pinned itself.
UNPINNED = {"lpips", "brain-extraction"}


def requirements(*extras: str) -> list[Requirement]:
    lines = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return [Requirement(line) for line in lines]


def pins() -> dict[str, str]:
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([0-9][0-9a-z.]*)", line)
            assert match, f"{line!r}: only 'name==version' is a pin that holds on every machine"
            name = canonicalize_name(match.group(1))
            assert name not in found, f"{name} is pinned twice"
            found[name] = match.group(2)
    return found


def test_every_requirement_is_pinned_inside_what_pyproject_allows():
    pinned = pins()
    for need in requirements(*(set(PROJECT["optional-dependencies"]) - UNPINNED)):
        name = canonicalize_name(need.name)
        assert name in pinned, f"{name} is missing in constraints.txt"
        assert need.specifier.contains(pinned[name]), f"{need} does not allow {pinned[name]}"


def test_torch_and_python_are_those_of_the_readme():
    assert pins()["torch"] == "2.13.0"
    assert {str(need.specifier) for need in requirements() if need.name == "torch"} == {">=2.6"}
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert [minor for minor in range(8, 20) if f"3.{minor}.0" in allowed] == [11, 12, 13]


def test_environment_installs_the_package_with_the_same_extras_pins_and_python():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert conda == ["python" + PROJECT["requires-python"], "pip"]
    install = re.search(r"pip install .*-e \"(\S+)\" -c (\S+)", (ROOT / "Makefile").read_text())
    assert pip == [f"-c {install.group(2)}", f"-e {install.group(1)}"] == ["-c constraints.txt", "-e .[book,dev,live]"]


def imported() -> set[str]:
    files = [
        path for folder in ("brainldm_core", "notebooks", "tests", "benchmarks") for path in ROOT.glob(f"{folder}/*.py")
    ]
    names = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"brainldm_core"} - {file.stem for file in files}


def test_every_import_is_pinned_and_those_of_the_core_are_declared():
    owners = packages_distributions()
    pinned, declared = (
        pins(),
        {canonicalize_name(need.name) for need in requirements("book", "dev", "live", "browser", *UNPINNED)},
    )
    # These belong to packages that we declare: IPython and traitlets to JupyterLab, nbclient and nbformat to papermill.
    declared |= {"ipython", "traitlets", "nbclient", "nbformat", "packaging"}
    for name in imported():
        distributions = {canonicalize_name(owner) for owner in owners.get(name, [name])}
        assert distributions & declared, f"{name} is imported but not declared in pyproject.toml"
        if name not in ("lpips", "torchvision", "deepbet"):
            assert distributions & set(pinned), f"{name} is imported but not pinned"


def test_package_has_its_data_and_version():
    package = Path(brainldm_core.__file__).parent
    assert {"smoke.yaml", "tiny.yaml", "demo.yaml", "paper.yaml"} <= {path.name for path in package.glob("profiles/*")}
    assert {path.name for path in package.glob("weights/tiny/*")} >= {"autoencoder.safetensors", "unet.safetensors"}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == brainldm_core.__version__
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
