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
from io import BytesIO
from pathlib import Path
from urllib.parse import urlparse

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
SLOW = 240_000

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


CELLS = (
    """
import numpy as np, warnings
warnings.simplefilter("ignore")
from brainldm_core import widgets
from brainldm_core.sampling import load_pipeline
pipeline = load_pipeline()
widgets.explorer(pipeline)""",
    """
base = {"sex": "F", "age_years": 60.0, "ventricular_volume_ml": 30.0, "brain_volume_ml": 1190.0}
cloud = np.linspace(10, 70, 7)
widgets.knobs(pipeline, base, {"ventricles": (cloud, cloud), "brain": (1100 + cloud, 1100 + cloud)}, None)""",
)
VENTRICLES, AGAIN = 1, 3  # which of the sliders on the page is that of the ventricles, in the explorer and the knobs


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator:
    """A notebook with the explorer and the knobs of the weights that ship, all cells run."""
    folder = tmp_path_factory.mktemp("lab")
    write_notebook(folder / "live.ipynb", *CELLS)
    with jupyter_lab(folder) as address, opened(address.format("live.ipynb")) as page:
        page.get_by_text("drawn in").nth(1).wait_for()
        yield page
        assert page.elsewhere == [], "requests to other hosts"
        assert page.errors == []


def picture(page, place: int = 0) -> bytes:
    """The bytes of a picture that is shown."""
    found = (
        page.locator(".brainldm-explorer img")
        .nth(place)
        .evaluate("async image => [...new Uint8Array(await (await fetch(image.src)).arrayBuffer())]")
    )
    return bytes(found)


def press(page, slider: int, *keys: str) -> None:
    """Press keys on the handle of a slider and wait until the brain of the last one is there."""
    place = 0 if slider < AGAIN else 1
    handle, image = page.locator(".brainldm-explorer .noUi-handle").nth(slider), page.locator(".brainldm-explorer img")
    before = image.nth(place).get_attribute("src")
    handle.focus()
    for key in keys:
        page.keyboard.press(key)
    wanted = "" if place else f"--ventricles {float(handle.get_attribute('aria-valuenow')):.0f}ml "
    page.wait_for_function(
        """([place, before, wanted]) => document.querySelectorAll('.brainldm-explorer img')[place].src != before
        && document.querySelectorAll('.brainldm-explorer')[place].innerText.includes('drawn in')
        && document.querySelector('.brainldm-copy input').value.includes(wanted)""",
        arg=[place, before, wanted],
    )


def line(page) -> str:
    """The command that is offered."""
    return page.locator(".brainldm-copy input").input_value()


def test_the_marks_under_a_slider_lie_on_its_track(page):
    tracks = page.evaluate(
        """[...document.querySelectorAll('.brainldm-explorer .widget-hslider')].map(slider => {
            const ends = e => [e.getBoundingClientRect().left, e.getBoundingClientRect().right];
            const track = slider.querySelector('.noUi-connects');
            return [ends(track), ends(slider.parentElement.querySelector('.brainldm-strip')),
                    getComputedStyle(track).backgroundImage]
        })"""
    )
    assert len(tracks) == 5
    for track, strip, colours in tracks:
        assert track == pytest.approx(strip, abs=2)
        assert colours.count("rgb(213, 94, 0)") == 4 and colours.count("rgb(0, 114, 178)") == 2


def test_a_key_on_a_slider_draws_another_brain_and_another_command(page):
    before, asked = picture(page), int(line(page).partition("--ventricles ")[2].split("ml")[0])
    press(page, VENTRICLES, "ArrowRight", "ArrowRight", "ArrowRight")
    assert picture(page) != before and f"--ventricles {asked + 3}ml " in line(page)
    press(page, VENTRICLES, "ArrowLeft", "ArrowLeft", "ArrowLeft")
    assert picture(page) == before and f"--ventricles {asked}ml " in line(page)


def test_beyond_the_training_range_a_warning_and_another_colour(page):
    explorer, handle = page.locator(".brainldm-explorer").first, page.locator(".brainldm-explorer .noUi-handle")
    colours = "e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).borderTopColor]"
    assert "Inside the training range" in explorer.inner_text()
    assert handle.nth(VENTRICLES).evaluate(colours)[0] == "rgb(0, 114, 178)"
    press(page, VENTRICLES, "End")
    assert "Extrapolation: ventricles 96 ml lies outside the training range (4.2 to 77.1 ml)" in explorer.inner_text()
    assert handle.nth(VENTRICLES).evaluate(colours)[0] == "rgb(213, 94, 0)"
    assert explorer.locator("img").evaluate(colours)[1] == "rgb(213, 94, 0)"
    press(page, VENTRICLES, "Home", *["ArrowRight"] * 20)
    assert "Inside the training range" in explorer.inner_text()
    assert explorer.locator("img").evaluate(colours)[1] == "rgb(0, 114, 178)"


def test_the_command_goes_to_the_clipboard(page):
    page.get_by_text("Copy as command").click()
    page.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == line(page)
    assert line(page).startswith("brainldm sample --age ")


def test_niivue_draws_the_brain_without_another_host(page):
    import matplotlib.image

    page.get_by_text("Turn it in 3-D").click()
    canvas = page.locator(".brainldm-explorer canvas")
    canvas.wait_for()
    end = time.monotonic() + SLOW / 1000
    while True:  # the picture comes some time after the canvas
        grey = matplotlib.image.imread(BytesIO(canvas.screenshot()))[..., 1]
        if grey.std() > 0.1:
            break
        assert time.monotonic() < end, "the canvas stays empty"
        page.wait_for_timeout(500)
    press(page, VENTRICLES, "End")
    page.wait_for_timeout(2000)
    later = matplotlib.image.imread(BytesIO(canvas.screenshot()))[..., 1]
    assert later.shape == grey.shape and abs(later - grey).mean() > 0.002, "the view does not follow the slider"


def test_points_follow_the_hand(page):
    before = picture(page, 1)
    press(page, AGAIN, *["ArrowRight"] * 10)
    assert picture(page, 1) != before
