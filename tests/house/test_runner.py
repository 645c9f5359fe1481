"""The notebook runner itself: a failure shows its cell and traceback, a hang is killed, a marked cell is left out."""
import time

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from tests.house.notebooks import run_notebook


def written(tmp_path, *sources):
    path = tmp_path/"one.ipynb"
    nb = new_notebook(cells=[new_code_cell(source) for source in sources])
    nb.metadata["kernelspec"] = {"display_name": "python3", "language": "python", "name": "python3"}
    nbformat.write(nb, path)
    return path


def test_passing_notebook(tmp_path):
    path = written(tmp_path, "import os\nassert os.environ['HF_HUB_OFFLINE'] == '1'", "import torch\nassert torch.get_num_threads() == 1")
    passed, _, output = run_notebook(path)
    assert passed, output


def test_failing_notebook_shows_cell_and_traceback(tmp_path):
    passed, _, output = run_notebook(written(tmp_path, "answer = 41", "def check(x):\n    assert x == 42, 'not the answer'\ncheck(answer)"))
    assert not passed
    assert "check(answer)" in output and "AssertionError" in output and "not the answer" in output


def test_hanging_notebook_is_killed_with_its_children(tmp_path):
    marker = tmp_path/"late"
    path = written(tmp_path, f"import subprocess\nsubprocess.run(['sh', '-c', 'sleep 12; touch {marker}'])")
    started = time.perf_counter()
    passed, _, output = run_notebook(path, limit=8)
    assert not passed and "killed after 8 s" in output and time.perf_counter() - started < 12
    time.sleep(max(0, 14 - (time.perf_counter() - started)))
    assert not marker.exists()


def test_slow_cells_are_left_out(tmp_path):
    passed, _, output = run_notebook(written(tmp_path, "#| slow\nraise SystemError('ran')", "x = 1"))
    assert passed, output
