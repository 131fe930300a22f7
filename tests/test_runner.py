"""The strict runner: parameters, the note of the last cell, and kernels that die."""

from __future__ import annotations

import json

import nbformat
import pytest

from brainldm_core import notebooks, runner
from brainldm_core.errors import BrainLDMError
from brainldm_core.records import open_run

HEAD = """# %% [markdown]
# # A page

# %% tags=["parameters"]
profile: str = "smoke"  # a comment that stays
cohort: str = "atlas"
seed: int = 0
runs: str = "runs"
strength: float = 0.5

# %%
from brainldm_core.records import open_run
from brainldm_core.runner import finish_notebook

run = open_run(profile, cohort, seed, runs)
"""
FINISH = """
# %%
finish_notebook(run, "00_page", {"strength": {"value": strength, "unit": "m"}, "seed": seed})
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with one page, ``write(cells)``; the runner works there."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "workflow").mkdir()
    (tmp_path / "workflow" / "Snakefile").touch()
    for module in (notebooks, runner):
        monkeypatch.setattr(module, "project_root", lambda: tmp_path)

    def write(cells: str = "", head: str = HEAD, finish: str = FINISH):
        (tmp_path / "notebooks" / "00_page.py").write_text(head + cells + finish)
        return tmp_path

    return write


def folder(root, seed=0):
    return open_run("smoke", "atlas", seed, root / "runs").stage("notebooks")


def test_runs_in_the_checkout_with_the_given_parameters_and_leaves_a_record(checkout):
    root = checkout("\n# %%\nfrom pathlib import Path\nassert Path('notebooks/00_page.py').exists()\nprint(strength)\n")
    record = runner.run_notebook("00", {"seed": 3, "strength": 1, "runs": "runs"})
    assert record == json.loads((folder(root, 3) / "00_page.record.json").read_text())
    assert record["settings"] == {"profile": "smoke", "cohort": "atlas", "seed": 3, "runs": "runs", "strength": 1.0}
    assert record["results"] == {"strength": {"value": 1.0, "unit": "m"}, "seed": {"value": 3}}
    assert json.loads((folder(root, 3).parent / "results" / "00_page.json").read_text())["results"] == record["results"]
    page = nbformat.read(folder(root, 3) / "00_page.ipynb", as_version=4)
    cells = [cell for cell in page.cells if cell.cell_type == "code"]
    assert 'profile: str = "smoke"  # a comment that stays\n' in cells[0].source
    assert "seed: int = 3\n" in cells[0].source and cells[0].source.endswith("strength: float = 1.0")
    assert cells[2].outputs[0].text == "1.0\n"
    assert str(root) not in json.dumps(page)
    assert sorted(path.name for path in folder(root, 3).iterdir() if path.suffix != ".lock") == [
        "00_page.ipynb",
        "00_page.record.json",
    ]


@pytest.mark.parametrize(
    "given, words",
    [
        ({"sed": 1}, "no parameter sed; it has profile, cohort, seed, runs, strength"),
        ({"seed": "one"}, "parameter seed: 'one' is not of type int"),
        ({"seed": 1.0}, "parameter seed: 1.0 is not of type int"),
        ({"seed": True}, "parameter seed: True is not of type int"),
        ({"profile": 1}, "parameter profile: 1 is not of type str"),
        ({"profile": "huge"}, "profile 'huge' is unknown"),
    ],
)
def test_bad_parameters_stop_before_the_kernel_starts(checkout, monkeypatch, given, words):
    checkout()
    monkeypatch.setattr(runner, "_execute", lambda *_: pytest.fail("the kernel was started"))
    with pytest.raises(BrainLDMError, match=words):
        runner.run_notebook("00_page", given)


@pytest.mark.parametrize(
    "change, words",
    [
        (("seed: int = 0", "seed = 0"), "'seed = 0' in the parameters cell"),
        (("seed: int = 0", "seed: int = 0.5"), "'seed: int = 0.5' in the parameters cell"),
        (("seed: int = 0", "seed: list = []"), "in the parameters cell"),
        (("seed: int = 0", "size: int = 0"), "lacks seed"),
        ((' tags=["parameters"]', ""), "0 cells are tagged"),
        (("finish_notebook(run, ", "print(run, "), "must end in finish_notebook"),
        (('"00_page"', '"01_page"'), "must end in finish_notebook"),
    ],
)
def test_a_notebook_that_breaks_the_rules_is_named(checkout, change, words):
    checkout(head=HEAD.replace(*change), finish=FINISH.replace(*change))
    with pytest.raises(BrainLDMError, match=f"00_page.py: .*{words}"):
        runner.run_notebook("00_page", {})


def test_unknown_notebook(checkout):
    checkout()
    with pytest.raises(BrainLDMError, match="'07' is unknown; choose one of 00_page"):
        runner.run_notebook("07", {})


@pytest.mark.parametrize(
    "cell, error, words",
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", runner.NotebookError, "kernel died"),
        ("assert 1 == 2, 'arithmetic'", runner.NotebookError, "a cell raised AssertionError: arithmetic; see"),
        ("raise SystemExit(0)", runner.NotebookError, "did not vouch"),
        ("import os\nos.environ['BRAINLDM_NOTEBOOK_NONCE'] = 'another'", runner.NotebookError, "wrong nonce"),
        ("run = open_run(profile, cohort, 5, runs)", runner.NotebookError, "did not vouch"),
        (
            "from brainldm_core.errors import BrainLDMError\nraise BrainLDMError('scan.nii: broken; mend it')",
            BrainLDMError,
            "^scan.nii: broken; mend it$",
        ),
        ("strength = float('nan')", BrainLDMError, "result 'strength'"),
    ],
)
def test_a_notebook_that_did_not_run_to_its_end_has_no_record(checkout, cell, error, words):
    root = checkout()
    runner.run_notebook("00_page", {"runs": "runs"})
    checkout(f"\n# %%\n{cell}\n")
    with pytest.raises(error, match=words):
        runner.run_notebook("00_page", {"runs": "runs"})
    assert not (folder(root) / "00_page.record.json").exists()


def test_by_hand_the_last_cell_writes_results_only(tmp_path, monkeypatch):
    monkeypatch.delenv(runner.NONCE, raising=False)
    run = open_run("smoke", "atlas", 0, tmp_path)
    runner.finish_notebook(run, "00_page", {"size": {"value": 2, "n": 7}})
    assert json.loads((run.stage("results") / "00_page.json").read_text())["results"] == {"size": {"value": 2, "n": 7}}
    row = {"value": 0.1, "floor": 0.02, "extractor": "offline-1", "low": 0.0, "high": 0.2}
    runner.finish_notebook(run, "00_page", {"fid": row})
    assert json.loads((run.stage("results") / "00_page.json").read_text())["results"] == {"fid": row}
    assert not run.stage("notebooks").exists()
    with pytest.raises(BrainLDMError, match="result 'size'"):
        runner.finish_notebook(run, "00_page", {"size": {"value": 2, "colour": "red"}})
