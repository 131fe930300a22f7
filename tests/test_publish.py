"""Publishing: what must not leave the machine, what may, and that it is all or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest

from brainldm_core import manifests, notebooks, publish, runner
from brainldm_core.errors import BrainLDMError
from brainldm_core.records import Record, open_run

ROOT = Path(__file__).resolve().parent.parent
PAGE = """# %% tags=["parameters"]
profile: str = "tiny"
cohort: str = "atlas"
seed: int = 0
runs: str = "runs"

# %%
from pathlib import Path
from brainldm_core.records import open_run
from brainldm_core.runner import finish_notebook
run = open_run(profile, cohort, seed, runs)
print(Path("runs").resolve() / "figure.png", Path.home() / "data", "/usr/lib")

# %%
finish_notebook(run, "00_page", {"r": 0.9})
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with one page and a way to run it for a cohort."""
    for module in (notebooks, runner, publish):
        monkeypatch.setattr(module, "project_root", lambda: tmp_path)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "00_page.py").write_text(PAGE)
    notebooks.sync()

    def run(cohort: str) -> Path:
        runner.run_notebook("00_page", {"profile": "smoke", "cohort": cohort})
        run = open_run("smoke", cohort, 0, tmp_path / "runs")
        Record(run.stage("cohort"), "a test", {"folder": str(tmp_path / "scans")}, {}).finish([])
        return run.folder

    return tmp_path, run


def files(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for folder in ("notebooks", "book") for path in (root / folder).rglob("*.*")}


def test_publishes_outputs_results_and_records_without_paths(checkout):
    root, run = checkout
    written = publish.publish(run("atlas"))
    page = nbformat.read(root / "notebooks" / "00_page.ipynb", as_version=4)
    assert page.cells[1].outputs[0].text == "runs/figure.png data /usr/lib\n"
    assert notebooks.out_of_step(root / "notebooks" / "00_page.py") == ""
    assert 'profile: str = "tiny"' in page.cells[0].source
    published = root / "book" / "published" / "smoke-atlas"
    assert json.loads((published / "results" / "00_page.json").read_text())["results"] == {"r": {"value": 0.9}}
    assert json.loads((published / "records" / "cohort.json").read_text())["settings"] == {"folder": "scans"}
    assert {path.name for path in written} == {"00_page.ipynb", "00_page.json", "cohort.json"}
    assert not any(str(root).encode() in content for content in files(root).values())


def test_results_of_another_seed_leave_the_notebooks_alone(checkout):
    root, run = checkout
    folder = run("atlas")
    before = (root / "notebooks" / "00_page.ipynb").read_bytes()
    written = publish.publish(folder, outputs=False)
    assert {path.name for path in written} == {"00_page.json", "cohort.json"}
    assert (root / "notebooks" / "00_page.ipynb").read_bytes() == before
    (folder / "notebooks" / "00_page.record.json").unlink()
    with pytest.raises(BrainLDMError, match="no notebook of it was run"):
        publish.publish(folder, outputs=False)


def test_losses_are_published_thinned_and_only_as_the_training_left_them(checkout):
    root, run = checkout
    folder = run("atlas")
    table = folder / "diffusion" / "losses.csv"
    table.parent.mkdir()
    table.write_text("step,loss,seconds\n" + "".join(f"{step},{step / 7},0.1\n" for step in range(1000)))
    Record(table.parent, "a test", {}, {}).finish([table])
    publish.publish(folder, outputs=False)
    lines = (root / "book" / "published" / "smoke-atlas" / "losses" / "diffusion.csv").read_text().splitlines()
    assert lines[:2] == ["step,loss", "4.5,0.642857"] and len(lines) == 101
    before = files(root)
    table.write_text(table.read_text().replace("5,0.7", "5,0.6"))
    with pytest.raises(BrainLDMError, match="losses.csv: is gone or was changed after the training"):
        publish.publish(folder, outputs=False)
    assert files(root) == before


@pytest.mark.parametrize(
    "cohort, words",
    [("ukbiobank", "restricted access"), ("oasis", "OASIS"), ("ixi", "faces"), ("ward7", "no manifest")],
)
def test_private_cohorts_are_refused_and_nothing_is_written(checkout, cohort, words):
    root, run = checkout
    folder, before = run(cohort), files(root)
    with pytest.raises(BrainLDMError, match=f"may not be published: .*{words}"):
        publish.publish(folder)
    assert files(root) == before


def test_refuses_what_is_unfinished_changed_or_large(checkout, monkeypatch):
    root, run = checkout
    folder = run("atlas")
    before = files(root)
    with pytest.raises(BrainLDMError, match="not a run"):
        publish.publish(root)
    monkeypatch.setattr(publish, "LIMIT", 10)
    with pytest.raises(BrainLDMError, match="00_page.py: its outputs are"):
        publish.publish(folder)
    executed = folder / "notebooks" / "00_page.ipynb"
    executed.write_text(executed.read_text().replace("figure", "finger"))
    with pytest.raises(BrainLDMError, match="was changed after it was run"):
        publish.publish(folder)
    (folder / "notebooks" / "00_page.record.json").unlink()
    with pytest.raises(BrainLDMError, match="finish the run first"):
        publish.publish(folder)
    assert files(root) == before


def test_code_changed_since_the_run_is_not_published_with_its_old_outputs(checkout):
    root, run = checkout
    folder = run("atlas")
    source = root / "notebooks" / "00_page.py"
    source.write_text(PAGE.replace("figure", "finger"))
    with pytest.raises(BrainLDMError, match="00_page.py: was changed after it was run"):
        publish.publish(folder)


def test_what_is_published_here_may_be():
    for record in (ROOT / "book" / "published").glob("*/records/[0-9][0-9]_*.json"):
        allowed, why = manifests.publishable(json.loads(record.read_text())["settings"]["cohort"])
        assert allowed, why
