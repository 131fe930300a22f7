"""The contract of a chapter: what every notebook tells, and what it must not hold."""

import ast
import re

import pytest

from brainldm_core.notebooks import find_notebook, notebook_names, project_root, read_notebook

LINES = 18  # of a code cell at most, imports included


@pytest.fixture(params=notebook_names())
def chapter(request):
    """(name, cells) of each notebook."""
    return request.param, read_notebook(find_notebook(request.param)).cells


def prose(cells) -> str:
    """All Markdown of a chapter."""
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def test_chapter_has_its_parts_in_order(chapter):
    _, cells = chapter
    parts = ["**Promise.**", "**Goals.**", "## Checks", "## What we saw", "## Exercises"]
    places = [prose(cells).find(part) for part in parts]
    assert min(places) >= 0 and places == sorted(places)


def test_exercises_are_graded_and_their_solutions_folded(chapter):
    text = prose(chapter[1])
    grades = re.findall(r"\*\*\d \((easy|medium|hard)\)\.\*\*", text)
    assert grades == ["easy", "medium", "hard"]
    assert text.count("```{dropdown} Solution") == len(grades)


def test_code_cells_are_short_and_tell_no_training(chapter):
    name, cells = chapter
    for cell in cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= LINES, cell.source
            for node in ast.walk(ast.parse(cell.source)):
                assert not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.While), f"{name}: {cell.source}"
                if isinstance(node, ast.Attribute):
                    assert node.attr not in ("backward", "step", "zero_grad"), f"{name}: {cell.source}"


def test_no_paths_in_code(chapter):
    for cell in chapter[1]:
        if cell.cell_type == "code":
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    assert not re.search(r"^[./~]*\w+/[\w/.]+$|\.(npz|tsv|csv|json|nii)\b", node.value), node.value


def test_figures_have_caption_name_and_alternative_text(chapter):
    name, cells = chapter
    drawn = re.compile(r"(?m)^(figures|charts)\.(?!mni_mask|slice_of)\w+\(")
    for cell in cells:
        if cell.cell_type == "code" and drawn.search(cell.source):
            show = cell.metadata.get("mystnb", {})
            assert show["figure"]["name"].startswith("fig-") and len(show["figure"]["caption"]) > 30, cell.source
            assert len(show["image"]["alt"]) > 20, f"{name}: {cell.source}"


def test_names_of_figures_and_equations_are_unique():
    names = []
    for name in notebook_names():
        cells = read_notebook(find_notebook(name)).cells
        names += [cell.metadata["mystnb"]["figure"]["name"] for cell in cells if "mystnb" in cell.metadata]
        names += re.findall(r":label: (\S+)", prose(cells))
    assert len(names) == len(set(names)) > 20


def test_checks_assert_something(chapter):
    _, cells = chapter
    asserts = [
        node
        for cell in cells
        if cell.cell_type == "code"
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Assert)
    ]
    assert len(asserts) >= 4


def test_source_on_published_pages_is_that_of_the_package():
    import nbformat

    shown = 0
    for name in notebook_names():
        notebook = nbformat.read(find_notebook(name).with_suffix(".ipynb"), as_version=4)
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                text = output.get("data", {}).get("text/markdown", "")
                for place, code in re.findall(r"From `(\S+)`:\n\n```python\n(.*?)\n```", text, re.DOTALL):
                    assert code in (project_root() / place).read_text(encoding="utf-8"), f"{name}: publish it again"
                    shown += 1
    assert shown > 5
