"""Widgets: what a page gets, escaping, odd values; and live in JupyterLab, in both themes. Pictures go to out/browser/."""
import json
import math

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from arlm_nb.core.generation import Generation
from arlm_nb.core.widgets import DecoderPlayer, LayerHeatmap, TokenStrip, replay
from tests import test_browser
from tests.test_browser import browser, draw_figures, lab, move_slider, picture, run_all, theme  # noqa: F401 (fixtures)

WIDGET = "application/vnd.jupyter.widget-view+json"
VIEWS = """
from arlm_nb.core.controls import Controls, Job
from arlm_nb.core.generation import sample
from arlm_nb.core.lm import TableLM
from arlm_nb.core.plotting import bars, lines, show
from arlm_nb.core.widgets import DecoderPlayer, LayerHeatmap, TokenStrip
clicks = []
strip = TokenStrip("The| quick| brown| fox| jumps| over| the| lazy| dog|.".split("|"), [0.2, 4, 3, 1, 2, .5, .1, 3, .4, .1], label="surprise [nats]").on_click(clicks.append)
strip
# %%
signed = TokenStrip(list("below and above zero"), [(i - 10) / 10 for i in range(20)], center=0, label="difference")
signed
# %%
words = "The capital of France is".split()
tops = [["a", "b", "c", "d", "e"]] * 3 + [["first", "of", "the", "'s", "Paris"]]
heat = LayerHeatmap(words, ["embed", 1, 2, "out"], [[5 - l - t / 5 for t in range(5)] for l in range(4)], tops, label="KL to the output [nats]").on_click(clicks.append)
heat
# %%
lm = TableLM.random(12, 2, seed=2)
player = DecoderPlayer(sample(lm, [0, 1], max_new_tokens=12, temperature=.7, candidates=6)).on_click(clicks.append)
player
# %%
def draw(n, kind): return lines({"x": list(range(n)), "y": [i ** 2 for i in range(n)]}, "x", "y", title=f"{n} points, {kind}", x_title="x", y_title="y")
controls = Controls(draw, n=(2, 20), kind=["plain", "fancy"])
controls
# %%
import time
def slow(job):
    for i in range(400): job.report(i, 400, value=i); time.sleep(0.05)
job = Job(slow, title="counting")
job
# %%
show(bars({"ours": {"greedy": (0.71, 0.65, 0.77), "beam": 0.74}, "baseline": {"greedy": 0.52, "beam": 0.55}}, value_title="accuracy", title="Bars"))
"""


def player():
    steps = [
        {"position": 0, "token": 3, "logprob": -0.1, "candidates": [(3, 0.9), (1, 0.1)]},
        {"position": 1, "token": 1, "logprob": None, "note": "<i>"},
    ]
    return DecoderPlayer(Generation([3, 1], "", [-0.1, 0.0], steps, prompt_ids=[0]))


VIEW_MAKERS = [lambda: TokenStrip(["<script>", "\n", ""], [1, float("nan"), None]), player,
               lambda: LayerHeatmap(["<script>"], ["<b>"], [[math.inf]], [["<i>"]], [['"><img>']])]


@pytest.mark.parametrize("make", VIEW_MAKERS)
def test_static_and_live_forms(make, monkeypatch):
    view = make()
    monkeypatch.setenv("ARLM_LIVE", "0")
    bundle = view._repr_mimebundle_()
    assert (
        WIDGET not in bundle
        and {"application/vnd.plotly.v1+json", "text/plain"} <= set(bundle)
        and ("image/png" in bundle) != ("text/html" in bundle)
    )
    assert bundle == make()._repr_mimebundle_(), "the same view must give the same output"
    json.dumps(bundle, allow_nan=False)
    monkeypatch.setenv("ARLM_LIVE", "1")
    bundle = view._repr_mimebundle_()
    assert WIDGET in bundle and "text/html" in bundle
    for raw in ("<script>", "<b>", "<i>", "<img>"): assert raw not in bundle["text/html"]


def test_empty_views(monkeypatch):
    monkeypatch.setenv("ARLM_LIVE", "0")
    for view in (TokenStrip([], []), LayerHeatmap([], [], []), DecoderPlayer(Generation([], "", [], []))):
        assert view.html() and view._repr_mimebundle_()
    assert replay([]) == []


@pytest.mark.parametrize("wrong, message", [
    (lambda: TokenStrip(["a"], []), "1 tokens need as many values, got 0"),
    (lambda: TokenStrip(["a"], [1], hover=[]), "1 tokens need as many hover texts, got 0"),
    (lambda: LayerHeatmap(["a", "b"], [0], [[1.0]]), r"values must be \[1, 2\]"),
    (lambda: LayerHeatmap(["a"], [0], [[1.0]], [["x"], ["y"]]), r"text must be \[1, 1\]"),
    (lambda: TokenStrip(["a"], [1]).update(width=3), "TokenStrip has no width")])
def test_bad_input(wrong, message):
    with pytest.raises(ValueError, match=message): wrong()


@pytest.fixture(scope="module")
def page(browser, lab):  # noqa: F811
    nb = new_notebook(cells=[new_code_cell(c.strip()) for c in VIEWS.split("# %%")])
    nb.metadata["kernelspec"] = {"display_name": "python3", "language": "python", "name": "python3"}
    nbformat.write(nb, lab[2]/"views.ipynb")
    page = run_all(browser, lab, "views.ipynb")
    page.set_viewport_size({"width": 1300, "height": 2200})
    yield page
    page.close()


@pytest.mark.browser
@pytest.mark.flaky(reruns=2)
@pytest.mark.timeout(600)
@pytest.mark.skipif(test_browser.CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")
class TestLive:
    def test_views_are_live(self, page):
        page.wait_for_selector(".arlm .strip")
        draw_figures(page)
        assert page.locator(".arlm").count() == 4 and page.locator(".js-plotly-plot .main-svg").count() > 0
        picture(page, "widgets-light")
        theme(page, "Dark")
        picture(page, "widgets-dark")

    def test_hover_and_click_reach_python(self, page):
        page.locator(".arlm .strip span", has_text=" fox").hover()
        assert page.locator(".arlm .tip:visible").inner_text() == " fox\nsurprise [nats] 1"
        page.locator(".arlm .strip span", has_text=" fox").click()
        page.locator(".arlm td", has_text="Paris").click()
        page.get_by_role("slider", name="step").fill("5")
        assert page.locator(".arlm .row .dim").inner_text() == "step 6 of 12" and page.locator(".arlm .bar").count() == 6
        picture(page, "widgets-player")
        page.evaluate("window.jupyterapp.commands.execute('notebook:insert-cell-below')")
        assert self.ask(page, "clicks") == "[3, (3, 4), 5]"

    def test_controls_redraw(self, page):
        move_slider(page, 4)
        for _ in range(60):  # each redraw shows a picture first
            draw_figures(page)
            if page.locator(".jupyter-widgets .gtitle", has_text="6 points, plain").count(): return
            page.wait_for_timeout(500)
        pytest.fail(f"the slider did not redraw; titles: {page.locator('.gtitle').all_inner_texts()}")

    def test_job_stops_and_keeps_its_value(self, page):
        page.locator("button", has_text="Run").last.click()
        page.wait_for_timeout(2000)
        page.locator(".jupyter-widgets button", has_text="Stop").click()
        page.wait_for_selector("text=counting · stopped")
        assert int(self.ask(page, "job.result")) > 2
        picture(page, "widgets-job")

    @staticmethod
    def ask(page, expression: str) -> str:
        "The value of an expression in the notebook's own kernel."
        return page.evaluate("""async code => {
            const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            const done = kernel.requestExecute({code: "0", user_expressions: {answer: code}, silent: true});
            return (await done.done).content.user_expressions.answer.data["text/plain"];
        }""", expression)
