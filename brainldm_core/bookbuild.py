"""Build the book strictly: of a run, from its executed notebooks; or the published one, from committed outputs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .errors import BrainLDMError
from .notebooks import notebook_names, out_of_step, project_root, with_package
from .records import Run, commit, sha256, write_json, write_text
from .scoreboard import build_scoreboard, read_scoreboard, scoreboard_markdown
from .seeds import over_seeds

SOURCES = ("_config.yml", "_toc.yml", "CHANGELOG.md", "CONTRIBUTING.md", "README.md", "CITATION.cff", "LICENSE")
SCOREBOARD = "<!-- scoreboard -->"  # where book/scoreboard.md has its table
START = "from jupyter_book.cli.main import main; main(prog_name='jupyter-book')"


class BookError(RuntimeError):
    """The strict build gave a warning or an error."""


def build_book(notebooks: Path, html: Path, title_suffix: str = "", scoreboard: str = "") -> None:
    """Build ``html`` from the prose of the checkout and the executed notebooks in a folder; warnings are errors.

    ``scoreboard`` is the Markdown that its page shows.

    The sources are copied, so that nothing but ``html`` is written; the old ``html`` stays until the new one is whole.

    Raises:
        BookError: anything at all that Sphinx complains of; the whole log lies beside ``html``.
    """
    root, log = project_root(), html.parent / "build.log"
    html.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=html.parent) as scratch:
        copy = Path(scratch) / "book"
        shutil.copytree(root / "book", copy / "book", ignore=shutil.ignore_patterns("_build", ".*", "__pycache__"))
        for name in SOURCES:
            if (root / name).exists():
                shutil.copy2(root / name, copy / name)
        (copy / "notebooks").mkdir()
        for name in notebook_names():
            shutil.copy2(notebooks / f"{name}.ipynb", copy / "notebooks" / f"{name}.ipynb")
        page = copy / "book" / "scoreboard.md"
        if scoreboard and page.exists():
            write_text(page, page.read_text(encoding="utf-8").replace(SCOREBOARD, scoreboard))
        if title_suffix:
            _retitle(copy / "_config.yml", title_suffix)
        command = [sys.executable, "-c", START, "build", "-n", "-W", "--keep-going", str(copy)]
        done = subprocess.run(command, capture_output=True, text=True, env=with_package())
        built = copy / "_build" / "html"
        text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr).replace(str(copy), ".")
        write_text(log, text)
        if done.returncode or not (built / "index.html").exists():
            lines = [line for line in text.splitlines() if "WARNING" in line or "ERROR" in line or "Error" in line]
            raise BookError("\n".join([*lines[:40], f"{html}: the strict build of the book failed; see {log}"]))
        old = Path(scratch) / "old"
        if html.exists():
            html.rename(old)
        built.rename(html)


def _retitle(config: Path, suffix: str) -> None:
    import yaml

    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["title"] = f"{settings['title']} ({suffix})"
    write_text(config, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def build_run_book(run: Run) -> dict[str, Any]:
    """Build the book of a run into ``<run>/book/html``; return its record."""
    executed, folder = run.stage("notebooks"), run.stage("book")
    missing = [name for name in notebook_names() if not (executed / f"{name}.record.json").exists()]
    if missing:
        raise BrainLDMError(f"{executed}: {', '.join(missing)} not run yet; use 'brainldm run all'")
    record, start = folder / "record.json", time.perf_counter()
    record.unlink(missing_ok=True)
    rows = build_scoreboard(run.folder)  # all results are there: the file is that of the complete run
    build_book(executed, folder / "html", run.name, scoreboard_markdown(rows))
    content = {
        "made_by": "brainldm book",
        "inputs": {f"{name}.ipynb": sha256(executed / f"{name}.ipynb") for name in notebook_names()},
        "settings": {"run": run.name},
        "seed": run.seed,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(time.perf_counter() - start, 1),
        "outputs": {"html/index.html": sha256(folder / "html" / "index.html")},
    }
    write_json(record, content)
    return content


def build_published_book() -> Path:
    """Build the published book, from the committed outputs, into ``_build/html``.

    Raises:
        BrainLDMError: a notebook's pair is out of step.
    """
    root = project_root()
    for name in notebook_names():
        if problem := out_of_step(root / "notebooks" / f"{name}.py"):
            raise BrainLDMError(problem)
    published = sorted((root / "book" / "published").glob("*/results/scoreboard.json"))
    boards = [scoreboard_markdown(read_scoreboard(path.parent.parent)) for path in published]
    if seeds := over_seeds(path for path in (root / "book" / "published").iterdir() if path.is_dir()):
        boards.append(f"## Over training seeds\n\n{seeds}")
    build_book(root / "notebooks", root / "_build" / "html", scoreboard="\n\n".join(boards))
    return root / "_build" / "html"
