"""The repository's own checks: the package is what the notebooks export, the notebooks are clean and run, the style holds."""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from copy import deepcopy

import pytest

from tests.house.notebooks import LIMIT, NBS, POOL, ROOT, WORKERS, all_notebooks

NOTEBOOKS = [path.relative_to(NBS).as_posix() for path in all_notebooks()]
MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(?:work|root|tmp|home|Users)/[\w.]")
FILE_URL = re.compile(r"file:///\w")


def read(name: str) -> dict:
    return json.loads((NBS/name).read_text(encoding="utf-8"))


def code_cells(nb: dict) -> list[dict]:
    return [cell for cell in nb["cells"] if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]


def shows(cell: dict) -> bool:
    "Does it print or display something when it runs?"
    if "eval: false" in "".join(cell["source"]): return False
    try: tree = ast.parse(re.sub(r"^[%!].*", "", "".join(cell["source"]), flags=re.M))
    except SyntaxError: return True
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr) and not isinstance(last.value, (ast.Call, ast.Constant, ast.IfExp)): return True
    return any(isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "show", "display") for node in at_once(tree))


def at_once(node: ast.AST):
    "What runs when the cell runs: no bodies of functions and classes, no handlers of errors."
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.ExceptHandler, ast.If)): continue
        yield child
        yield from at_once(child)


@pytest.mark.house
def test_export_leaves_no_diff(tmp_path):
    "nbdev_export into an empty folder gives the package file by file, and nothing in the package is left over."
    shutil.copytree(NBS, tmp_path/"nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints", "*.png"))
    shutil.copy(ROOT/"settings.ini", tmp_path)
    env = {name: value for name, value in os.environ.items() if name != "IN_TEST"}
    done = subprocess.run([sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()"],
                          cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"nbdev_export failed:\n{done.stderr[-4000:]}"
    sources = lambda top: {p.relative_to(top).as_posix(): p.read_text(encoding="utf-8") for p in (top/"arlm_nb").rglob("*.py")}
    fresh, kept = sources(tmp_path), sources(ROOT)
    differ = [f"differs from its notebook: {name}" for name in sorted(fresh.keys() & kept.keys()) if fresh[name] != kept[name]]
    missing = [f"not exported yet: {name}" for name in sorted(fresh.keys() - kept.keys())]
    stale = [f"no notebook exports it: {name}" for name in sorted(kept.keys() - fresh.keys())]
    problems = differ + missing + stale
    assert not problems, "run `make export`:\n  " + "\n  ".join(problems)


@pytest.mark.house
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_notebook_is_clean(notebook):
    "Committed with its outputs, without errors, without a trace of the machine it ran on, small, and as nbdev_clean leaves it."
    from nbdev.clean import clean_nb
    path = NBS/notebook
    nb = read(notebook)
    outputs = [output for cell in code_cells(nb) for output in cell["outputs"]]
    problems = []
    if path.stat().st_size >= 1_000_000: problems.append(f"is {path.stat().st_size/1e6:.2f} MB, 1 MB at most")
    for output in outputs:
        if output["output_type"] == "error": problems.append(f"has an error output: {output['ename']}: {output['evalue'][:200]}")
    if not outputs: problems.append("shows a reader nothing: print what its checks measured, a small table, or a figure")
    silent = [cell["id"] for cell in code_cells(nb) if not cell["outputs"] and shows(cell)]
    if silent: problems.append(f"was committed without the outputs of cells {', '.join(silent)}: run it and save it")
    text = path.read_text(encoding="utf-8")
    for found in [*MACHINE_PATH.finditer(text), *FILE_URL.finditer(text)][:5]:
        problems.append(f"has a path of a machine: ...{text[max(0, found.start() - 40):found.end() + 40]!r}...")
    cleaned = deepcopy(nb)
    clean_nb(cleaned, allowed_metadata_keys=[], allowed_cell_metadata_keys=[])
    if comparable(cleaned) != comparable(nb): problems.append("is not as nbdev_clean leaves it: run `make export`")
    if len({cell.get("id") for cell in nb["cells"]}) != len(nb["cells"]): problems.append("has two cells of one id")
    assert not problems, f"{notebook}\n  " + "\n  ".join(problems)


def comparable(nb: dict) -> str:
    "The notebook without the numbers in the margin, every text as one string."
    def plain(value):
        if isinstance(value, dict): return {k: plain(v) for k, v in value.items() if k not in ("execution_count", "display_name")}
        if isinstance(value, list): return "".join(value) if all(isinstance(v, str) for v in value) else [plain(v) for v in value]
        return value.rstrip() if isinstance(value, str) else value
    return json.dumps(plain(nb), sort_keys=True)


@pytest.mark.house
@pytest.mark.timeout(LIMIT*(2 + len(NOTEBOOKS)/WORKERS))
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_notebook_runs(notebook, request):
    "From top to bottom with nbdev's test runner, in its time."
    passed, seconds, output = request.config.stash[POOL].wait(notebook)
    if not passed: pytest.fail(f"{notebook} failed after {seconds:.0f} s\n{tail(output)}", pytrace=False)


def tail(output: str, limit: int = 8000) -> str:
    "The end of what a notebook printed, without colours."
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    return plain if len(plain) <= limit else "...\n" + plain[-limit:]


@pytest.mark.house
def test_ruff():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--output-format", "concise", "arlm_nb", "tests", "tools", "setup.py"],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.house
def test_readme_is_in_step():
    "README.md is what `make readme` writes."
    done = subprocess.run([sys.executable, "tools/readme.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]


@pytest.mark.house
def test_checkpoints_can_be_made():
    "What is shipped can be made again with `make checkpoints`, and whoever needs it first is known."
    from arlm_nb.core.checkpoints import checkpoint_names, in_order, makers
    assert not set(checkpoint_names()) - set(makers.keys())
    assert sorted(in_order(makers.keys())) == makers.keys()
