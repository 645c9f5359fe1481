"""The `arlm` command in a process of its own: what it prints, what it says of wrong input, with which status it ends."""
import json
import os
import subprocess
import sys

import pytest

from arlm_nb.core.catalog import catalog, papers
from tests.house.notebooks import ROOT


def arlm(*arguments, **env):
    return subprocess.run([sys.executable, "-c", "from arlm_nb.core.cli import main; main()", *map(str, arguments)],
                          cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=300)


def test_list_has_every_paper():
    done = arlm("list")
    assert done.returncode == 0 and [line.split()[1] for line in done.stdout.splitlines()] == list(catalog())
    done = arlm("list", "--area", "interp")
    assert [line.split()[1] for line in done.stdout.splitlines()] == [p.key for p in papers("interp")]


def test_show():
    done = arlm("show", "markov_chains")
    assert done.returncode == 0
    assert done.stdout.startswith("Large Language Models as Markov Chains\n2024  https://arxiv.org/abs/2410.02724\n")


@pytest.mark.parametrize("arguments, said", [
    (("show", "markov_chain"), "unknown key 'markov_chain'; nearest: markov_chains;"),
    (("list", "--area", "decoding"), "unknown area 'decoding'; nearest: decode;"),
    (("claims", "distortionfree"), "nearest: distortion_free"),
    (("claims", "--recorded", "distortionfree"), "nearest: distortion_free"),
    (("bench", "nothing_like_it"), "unknown benchmark 'nothing_like_it'"),
    (("paper", "function_vector"), "unknown key 'function_vector'; nearest: function_vectors;"),
    (("toor",), "No such command 'toor'"),
    (("show",), "Missing argument"),
    (("tour", "--out", "/proc/no/report.html"), "cannot write the report to /proc/no/report.html"),
    (("tour", "--out", "nbs"), "cannot write the report: nbs is a folder"),
])
def test_wrong_input_is_one_clear_line_and_status_two(arguments, said):
    done = arlm(*arguments)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr and done.stdout == ""


def test_catalog_is_said_where_to_put_when_missing(tmp_path):
    code = ("import arlm_nb.core.paths as paths, arlm_nb.core.catalog as catalog, pathlib\n"
            "paths.data_roots = lambda: [pathlib.Path('nowhere')]\n"
            "from arlm_nb.core.cli import main\nmain(['list'])")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "catalog.toml is in none of" in done.stderr and "ARLM_DATA" in done.stderr


def test_debug_brings_the_traceback_back():
    done = arlm("show", "nothing", ARLM_DEBUG="1")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_measured_numbers_are_shown(tmp_path):
    number = {"ours": 0.75, "baseline": 0.5, "ablation": 0.49, "interval": [0.7, 0.8], "unit": "accuracy"}
    number |= {"holds": True, "name": "unseen words"}
    entry = {"paper": "better by 12%", "threshold": "better by 5%", "state": "holds", "holds": True, "seconds": 1.5, "measured": [number]}
    entry["measured"].append({"ours": 3.0, "unit": "heads", "holds": None, "name": "size"})
    (tmp_path/"claims.json").write_text(json.dumps({"tuned_lens": entry}))
    done = arlm("show", "tuned_lens", ARLM_DATA=str(tmp_path))
    assert "unseen words: ours 0.75 [0.7, 0.8], baseline 0.5, ablation 0.49 accuracy -> holds" in done.stdout
    assert "size: ours 3 heads -> reported" in done.stdout
    assert "better by 12%" in done.stdout
    table = arlm("claims", "--recorded", ARLM_DATA=str(tmp_path))
    assert table.returncode == 0 and table.stdout.startswith("tuned_lens: holds (1.5 s)\n  unseen words: ours 0.75 [0.7, 0.8]") and table.stdout in done.stdout
    assert json.loads((tmp_path/"claims.json").read_text()) == {"tuned_lens": entry}  # nothing ran, nothing was written
    none = arlm("claims", "--recorded", "spectr", ARLM_DATA=str(tmp_path))
    assert none.returncode == 0 and none.stdout == "nothing is recorded yet: run without --recorded\n"
