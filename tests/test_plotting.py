"""Figures: the same output twice, a page that needs no network, no picture where there is no browser."""
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from arlm_nb.core.plotting import bars, figure, figure_bundle, heatmap, lines, part_html, report_html, show, static_png


def example(): return lines({"x": np.arange(3), "y": np.array([1.0, np.nan, 2.0]), "a": [0, 1, 2], "b": [1, 2, 3]}, "x", "y", band=("a", "b"), title="t & t")


def test_the_same_figure_gives_the_same_output(monkeypatch):
    monkeypatch.setenv("ARLM_STATIC", "0")
    first, second = figure_bundle(example()), figure_bundle(example())
    assert first == second and "image/png" not in first and first["text/plain"] == "[t & t]"
    json.dumps(first)
    assert show(example()) is None and part_html(example()) == part_html(example())


def test_a_report_stands_alone(tmp_path):
    import pandas as pd
    page = report_html("Tour & more", ["# Head\n\n| a | b |\n|---|---|\n| 1 | 2 |", example(), pd.DataFrame({"x": [1.5, 2.0], "name": ["<a>", "b"]}), heatmap(np.eye(3))])
    body = page[:page.index("<script>")] + page[page.rindex("</script>", 0, page.index("<h1>")):]
    assert not re.search(r"""(src|href)=["']?http""", body) and "<h1>Head</h1>" in body and "&lt;a&gt;" in body and "<td>1.5</td>" in body
    assert page.count("/**\n* plotly.js") == 1 and body.count('class="plotly-graph-div"') == 2


@pytest.mark.parametrize("part", [3, None, []])
def test_unknown_parts_are_refused(part):
    with pytest.raises(ValueError, match="a report part must be"): part_html(part)


def test_without_a_browser_there_is_no_picture_and_no_noise():
    code = "from arlm_nb.core.plotting import static_png, figure; assert static_png(figure()) is None"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "ARLM_STATIC": "1", "BROWSER_PATH": "/nowhere/chromium", "PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout and not done.stderr, done.stderr


def test_odd_values():
    assert heatmap(np.full((2, 2), np.nan)).data[0].zmin == 0 and heatmap([[]]).data[0].zmax == 1
    assert bars({"a": 1}).data[0].error_x.array is None and figure(height=10).layout.height == 10
    with pytest.raises(KeyError): lines({"x": [1]}, "x", "y")


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_a_picture_is_small_and_repeats(monkeypatch):
    monkeypatch.setenv("ARLM_STATIC", "1")
    first = static_png(example())
    if first is None: pytest.skip("kaleido found no Chromium that starts")
    assert first[:4] == b"\x89PNG" and len(first) < 40_000 and first == static_png(example())
