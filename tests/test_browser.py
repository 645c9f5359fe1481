"""JupyterLab in chromium: notebooks run, figures and widgets appear, a slider moves what it should; pictures go to out/browser/."""
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tests.house.notebooks import NBS, ROOT, kill

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PICTURES = ROOT/"out"/"browser"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]
pytestmark = [pytest.mark.browser, pytest.mark.timeout(900), pytest.mark.flaky(reruns=2),  # a real browser on a busy machine
              pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")]

EXAMPLE = """
import plotly.graph_objects as go
from IPython.display import display
from ipywidgets import IntSlider, Label, VBox
from arlm_nb.core.plotting import show

show(go.Figure(go.Bar(x=["a", "b", "c"], y=[3, 1, 2])))
slider, label = IntSlider(value=3, min=0, max=9, description="steps"), Label("3 squared is 9")
slider.observe(lambda change: setattr(label, "value", f"{change.new} squared is {change.new**2}"), "value")
display(VBox([slider, label]))
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab of its own on a copy of the notebooks; gives its address and its folder."
    folder, home = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("home")
    for path in NBS.glob("*.ipynb"): shutil.copy(path, folder)
    nb = new_notebook(cells=[new_code_cell(EXAMPLE)])
    nb.metadata["kernelspec"] = {"display_name": "python3", "language": "python", "name": "python3"}
    nbformat.write(nb, folder/"example.ipynb")
    (home/"config"/"labconfig").mkdir(parents=True)
    (home/"config"/"labconfig"/"page_config.json").write_text(
        json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}))
    tracker = home/"settings"/"@jupyterlab"/"notebook-extension"/"tracker.jupyterlab-settings"
    tracker.parent.mkdir(parents=True)
    tracker.write_text(json.dumps({"windowingMode": "none"}))  # every output is in the page, not only those in view
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(8)
    env = {**os.environ, "JUPYTER_CONFIG_DIR": str(home/"config"), "JUPYTER_DATA_DIR": str(home/"data"), "OMP_NUM_THREADS": "1",
           "JUPYTERLAB_SETTINGS_DIR": str(home/"settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home/"workspaces")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser", "--ip=127.0.0.1",
               f"--port={port}", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"]
    with (home/"log").open("w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/api?token={token}", server, home/"log")
        yield f"http://127.0.0.1:{port}", token, folder
    finally:
        server.terminate()
        try: server.wait(10)
        except subprocess.TimeoutExpired: pass
        kill(server)


def wait_for(address: str, server: subprocess.Popen, log, seconds: float = 180) -> None:
    for _ in range(int(seconds*2)):
        try: return urllib.request.urlopen(address, timeout=5).close()
        except OSError: time.sleep(0.5)
        if server.poll() is not None: break
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}", pytrace=False)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


IDLE = "document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'"
READY = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
RAN = """() => window.jupyterapp.shell.currentWidget.content.widgets
    .filter(cell => cell.model.type === "code" && cell.model.sharedModel.getSource().trim())
    .every(cell => cell.model.executionCount !== null)"""
RUN_ALL = """() => {
    window.ran = "";
    window.jupyterapp.commands.execute("notebook:run-all-cells").then(() => window.ran = "done", error => window.ran = String(error));
}"""


def run_all(browser, lab, name: str, seconds: float = 400):
    "Opens a notebook in a fresh page, runs all cells, gives the page."
    address, token, _ = lab
    page = browser.new_page(viewport={"width": 1300, "height": 1600})
    page.set_default_timeout(180_000)
    page.goto(f"{address}/lab/tree/{name}?reset&token={token}")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    for _ in range(3):  # a run that meets a kernel that is still connecting is dropped without a word
        page.wait_for_function(READY)
        page.wait_for_timeout(1000)
        page.evaluate(RUN_ALL)
        page.wait_for_function("window.ran !== ''", timeout=1000*seconds)
        page.wait_for_function(IDLE)
        if page.evaluate(RAN): break
    assert page.evaluate("window.ran") == "done" and page.evaluate(RAN)
    page.wait_for_timeout(1500)
    errors = page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']")
    assert errors.count() == 0, errors.first.inner_text()
    return page


def picture(page, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES/f"{name}.png")


def draw_figures(page) -> None:
    "A figure that has a picture beside it shows the picture until the pointer comes."
    for image in page.locator(".plot-img").all(): image.dispatch_event("mouseenter")
    page.wait_for_selector(".js-plotly-plot .main-svg", state="attached")


def move_slider(page, steps: int = 3):
    "The first slider, some steps to the right with the keyboard; gives the outputs before and after."
    outputs = "() => [...document.querySelectorAll('.jp-OutputArea-output')].map(o => o.innerHTML).join('')"
    handle = page.locator(".jp-OutputArea .noUi-handle").first
    handle.scroll_into_view_if_needed()
    before = page.evaluate(outputs)
    handle.focus()
    for _ in range(steps):
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(300)
    page.wait_for_timeout(2500)
    return before, page.evaluate(outputs)


def test_a_figure_and_a_slider(browser, lab):
    page = run_all(browser, lab, "example.ipynb")
    draw_figures(page)
    assert page.locator(".widget-label", has_text="3 squared is 9").count() == 1
    move_slider(page)
    page.wait_for_selector("text=6 squared is 36")
    picture(page, "example")
    page.close()


@pytest.mark.skipif(not (NBS/"tour.ipynb").exists(), reason="nbs/tour.ipynb is not there yet")
def test_the_tour(browser, lab):
    page = run_all(browser, lab, "tour.ipynb")
    draw_figures(page)
    picture(page, "tour-top")
    assert page.locator(".jp-OutputArea .noUi-handle").count() > 0, "no slider was drawn"
    before, after = move_slider(page)
    without = lambda html: html.replace("noUi-active", "")
    assert without(before) != without(after), "the slider changed nothing"
    picture(page, "tour-slider")
    page.close()


PANELS = ("lens", "function vectors", "Markov chain", "watermark", "decoders")
SHOWN = """() => [...document.querySelectorAll('.widget-tab-contents .jupyter-widgets:not(.widget-slider):not(.widget-box), .widget-tab-contents .jp-OutputArea, .widget-tab-contents .js-plotly-plot')]
    .filter(e => e.offsetParent).map(e => e.outerHTML.replaceAll('noUi-active', '')).join('')"""


def settled(page, before: str | None = None, quiet: float = 1.5, limit: float = 240) -> str:
    "What the open panel shows, once it has become something else than `before` and stopped changing."
    began = time.monotonic()
    while before is not None and page.evaluate(SHOWN) == before and time.monotonic() - began < limit/2: page.wait_for_timeout(250)
    before, since, began = page.evaluate(SHOWN), time.monotonic(), time.monotonic()
    while time.monotonic() - since < quiet and time.monotonic() - began < limit:
        page.wait_for_timeout(250)
        now = page.evaluate(SHOWN)
        if now != before: before, since = now, time.monotonic()
    return before


def open_panel(page, name: str) -> str:
    page.locator(".jupyter-widget-tab .lm-TabBar-tab", has_text=name).last.click()
    page.wait_for_function("() => ![...document.querySelectorAll('.widget-tab-contents i')].some(e => e.offsetParent && e.innerText.startsWith('working'))",
                           timeout=240_000)
    return settled(page)


def choose(page, model: str) -> None:
    field = page.locator("input[list]").last  # a combobox
    if field.input_value() == model: return
    field.fill(model)
    field.press("Enter")
    page.wait_for_selector(f".widget-html-content code:has-text('{model}')")


@pytest.fixture(scope="module")
def explorer(browser, lab):
    page = run_all(browser, lab, "explorer.ipynb")
    page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
    page.locator(".jupyter-widget-tab").last.scroll_into_view_if_needed()
    yield page
    page.close()


@pytest.mark.parametrize("name", PANELS)
def test_explorer_panel(explorer, name):
    "Every control of the panel changes what it shows; a picture is kept in both themes."
    page = explorer
    theme(page, "Light")
    choose(page, "icl-tasks" if name == "function vectors" else "docs-1m")
    before = open_panel(page, name)
    assert "cannot be shown" not in before and len(before) > 200, before[:2000]
    picture(page, f"explorer-{name.replace(' ', '-')}-light")
    texts = page.locator(".widget-tab-contents input[type=text]:visible")
    if name in ("lens", "decoders"):
        texts.first.fill("The default value of the given name is returned")
        texts.first.press("Enter")
        before, was = settled(page, before), before
        assert before != was, "another text changed nothing"
    handles = page.locator(".widget-tab-contents .noUi-handle:visible")
    assert handles.count() > 0, "no slider in this panel"
    for i in range(handles.count()):
        handles.nth(i).scroll_into_view_if_needed()
        handles.nth(i).focus()
        label = handles.nth(i).locator("xpath=ancestor::*[contains(@class, 'widget-slider')]").inner_text()
        key = "ArrowLeft" if handles.nth(i).get_attribute("aria-valuenow") == handles.nth(i).get_attribute("aria-valuemax") else "ArrowRight"
        for _ in range(3): page.keyboard.press(key)
        after = settled(page, before)
        assert after != before, f"the slider {label!r} changed nothing"
        before = after
    theme(page, "Dark")
    settled(page)
    picture(page, f"explorer-{name.replace(' ', '-')}-dark")
    theme(page, "Light")


def theme(page, name: str) -> None:
    page.evaluate(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {name}'}})")
    page.wait_for_selector(f"body[data-jp-theme-light='{'true' if name == 'Light' else 'false'}']", state="attached")
    page.wait_for_timeout(800)
