"""The live explorer in a real JupyterLab and a real browser: make test-browser."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlparse

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
SLOW = int(os.environ.get("SLOWMS", 240_000))

if not os.environ.get("BRAINLDM_TEST_BROWSER"):
    pytest.skip("takes minutes; make test-browser does it", allow_module_level=True)
if find_spec("playwright") is None:
    pytest.skip("needs Playwright: pip install playwright", allow_module_level=True)


def browser_path() -> str | None:
    """The browser that BRAINLDM_BROWSER names, or one that is installed."""
    return os.environ.get("BRAINLDM_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)


if browser_path() is None:
    pytest.skip("needs Chromium; name it in BRAINLDM_BROWSER", allow_module_level=True)


@contextmanager
def jupyter_lab(folder: Path, dark: bool = False) -> Iterator[str]:
    """A JupyterLab of its own on the notebooks of a folder; gives its address up to the file's name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, home = secrets.token_hex(8), folder / ".jupyter"
    places = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    places["JUPYTERLAB_SETTINGS_DIR"] = str(home / "settings")
    places["JUPYTERLAB_WORKSPACES_DIR"] = str(home / "workspaces")
    chosen = {"themes": {"theme": f"JupyterLab {'Dark' if dark else 'Light'}"}, "notification": {"fetchNews": "false"}}
    for name, values in chosen.items():
        file = home / "settings" / "@jupyterlab" / "apputils-extension" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    options = [
        "--no-browser", "--allow-root", f"--ServerApp.port={port}",
        f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdates",
    ]  # fmt: skip
    with open(folder / "lab.log", "w") as log:
        lab = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], stdout=log, stderr=log, cwd=folder,
            env=os.environ | places | {"PYTHONPATH": path, "JUPYTER_PREFER_ENV_PATH": "1"}, start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + SLOW / 1000
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert lab.poll() is None and time.monotonic() < end, (folder / "lab.log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}"
    finally:
        os.killpg(lab.pid, signal.SIGTERM)
        try:
            lab.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(lab.pid, signal.SIGKILL)  # the server and its kernels, which are all in this group
            lab.wait()


def write_notebook(path: Path, *cells: str) -> None:
    """A notebook of code cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


@contextmanager
def opened(address: str, width: int = 1400, height: int = 1500) -> Iterator:
    """A page with a notebook whose cells have been run; ``page.elsewhere`` are requests to other hosts."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=FLAGS)
        context = browser.new_context(viewport={"width": width, "height": height})
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.set_default_timeout(SLOW)
        page.elsewhere, page.errors = [], []
        page.on(
            "request",
            lambda request: (
                page.elsewhere.append(request.url)
                if urlparse(request.url).hostname not in ("127.0.0.1", None, "")
                else None
            ),
        )
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
        page.keyboard.press("Control+b")  # the file browser away
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        try:
            yield page
        finally:
            browser.close()


EXPLORER = """
from brainldm_core import widgets
from brainldm_core.sampling import load_pipeline
box = widgets.explorer(load_pipeline())
box
"""
