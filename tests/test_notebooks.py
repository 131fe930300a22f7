"""Notebooks as files: pairs in step, typed parameters, outputs that belong to their code."""

from __future__ import annotations

import ast
import json

import nbformat
import pytest

from brainldm_core import notebooks
from brainldm_core.errors import BrainLDMError

NAMES = notebooks.notebook_names()
COMMON = {"profile": (str, "tiny"), "cohort": (str, "atlas"), "seed": (int, 0), "runs": (str, "runs")}


def test_the_chapters_are_there():
    chapters = ["00_quickstart", "01_data", "02_autoencoder", "03_latent_diffusion", "04_ddim_acceleration"]
    assert NAMES[: len(chapters)] == chapters


@pytest.mark.parametrize("name", NAMES)
def test_pair_is_in_step(name):
    assert notebooks.out_of_step(notebooks.find_notebook(name)) == ""


@pytest.mark.parametrize("name", NAMES)
def test_pair_names_its_kernel_and_hides_no_widget_path_or_error(name):
    path = notebooks.find_notebook(name).with_suffix(".ipynb")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert not any(output.output_type == "error" for output in cell.get("outputs", []))
    text = path.read_text()
    assert str(notebooks.project_root()) not in text
    assert len(json.dumps([cell.get("outputs") for cell in notebook.cells])) < 1_500_000


@pytest.mark.parametrize("name", NAMES)
def test_tells_and_leaves_the_work_to_modules(name):
    source = notebooks.find_notebook(name)
    notebook = notebooks.read_notebook(source)
    parameters = notebooks.parameters_of(notebook, source)
    assert {key: parameters[key] for key in COMMON} == COMMON
    previous = "code"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            last = ast.unparse(ast.parse(cell.source).body[-1])
            tells = last.startswith("pages.")  # shows sentences of its own
            assert previous == "markdown" or tells, f"no sentence before: {cell.source}"
            lines = [line for line in cell.source.splitlines() if line.strip()]
            assert len(lines) <= 20, f"too long for a page: {cell.source}"
            nodes = list(ast.walk(ast.parse(cell.source)))
            assert not any(isinstance(node, ast.ClassDef | ast.While) for node in nodes)
        previous = cell.cell_type


MAKERS = {
    "cohort": "load_cohort(",
    "autoencoder": "train_autoencoder(",
    "diffusion": "train_diffusion(",
    "baselines": "train_baselines(",
    "brain_age": "age_reader(",
    "samples": "sample_stage(",
}


@pytest.mark.parametrize("name", NAMES)
def test_waits_for_the_stages_that_it_shows(name):
    """A notebook that is started too early would make a stage itself, beside the workflow's own job."""
    text = notebooks.find_notebook(name).read_text()
    assert {stage for stage, call in MAKERS.items() if call in text} <= set(notebooks.needs(name))


PAGE = """# %% [markdown]
# # Page

# %% tags=["parameters"]
seed: int = 0  # of the training

# %%
print(seed)
"""


@pytest.fixture
def page(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(notebooks, "project_root", lambda: tmp_path)
    path = tmp_path / "notebooks" / "00_page.py"
    path.write_text(PAGE)
    assert notebooks.sync() == ["00_page"]
    twin = path.with_suffix(".ipynb")
    notebook = nbformat.read(twin, as_version=4)
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="0\n")]
    notebook.cells[2].execution_count = 2
    nbformat.write(notebook, twin)
    return path


def output(path) -> list[str]:
    notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    return [output.text for cell in notebook.cells for output in cell.get("outputs", [])]


def test_sync_has_nothing_to_do_when_in_step(page):
    before = page.with_suffix(".ipynb").read_bytes()
    assert notebooks.sync() == []
    assert page.with_suffix(".ipynb").read_bytes() == before


def test_sync_keeps_outputs_when_only_prose_changed(page):
    page.write_text(PAGE.replace("# # Page", "# # A better title"))
    assert "its cells differ" in notebooks.out_of_step(page)
    assert notebooks.sync() == ["00_page"]
    assert notebooks.out_of_step(page) == ""
    assert output(page) == ["0\n"]


@pytest.mark.parametrize("change", [("print(seed)", "print(-seed)"), ("seed: int = 0", "seed: int = 0\nsize: int = 1")])
def test_sync_drops_outputs_of_other_code(page, change):
    page.write_text(PAGE.replace(*change))
    assert notebooks.sync() == ["00_page"]
    assert output(page) == []


def test_a_change_of_the_ipynb_or_its_kernel_is_seen_and_never_goes_back(page):
    twin = page.with_suffix(".ipynb")
    text = twin.read_text()
    twin.write_text(text.replace("print(seed)", "print(seed + 1)"))
    assert "its cells differ" in notebooks.out_of_step(page)
    notebooks.sync()
    assert page.read_text() == PAGE and notebooks.out_of_step(page) == ""
    twin.write_text(text.replace('"name": "python3"', '"name": "julia"'))
    assert "kernel" in notebooks.out_of_step(page)
    twin.unlink()
    assert "missing" in notebooks.out_of_step(page)


def test_parameters_are_set_in_their_own_cell(page):
    notebook = notebooks.read_notebook(page)
    notebooks.set_parameters(notebook, {"seed": 7}, page)
    assert notebook.cells[1].source == "seed: int = 7  # of the training"
    page.write_text(PAGE.replace("seed: int = 0", 'name: str = "é"; seed: int = 0'))
    notebook = notebooks.read_notebook(page)
    notebooks.set_parameters(notebook, {"name": "it's", "seed": -1}, page)
    assert notebook.cells[1].source == 'name: str = "it\'s"; seed: int = -1  # of the training'


def test_values_of_a_command_line_are_read_strictly():
    assert notebooks.check_value("x", "3", int) == 3
    assert notebooks.check_value("x", "1e-3", float) == 0.001
    assert notebooks.check_value("x", "false", bool) is False
    for text, kind in (("3.0", int), ("", float), ("yes", bool)):
        with pytest.raises(BrainLDMError, match="parameter x"):
            notebooks.check_value("x", text, kind)
