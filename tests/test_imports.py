"""Importing: quick, without the notebook tools, each area only from those above it, and nothing dangerous in the sources."""
import ast
import json
import re
import subprocess
import sys

import pytest

from tests.house.notebooks import ROOT

PACKAGE = ROOT/"arlm_nb"
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py") if path.name != "_modidx.py")
ORDER = ["kernels", "core"]  # then the papers' areas: they may use each other, never in a circle
TOOLS = ("nbdev", "fastcore", "execnb", "plotly", "ipywidgets", "anywidget", "IPython")
HEAVY = ("cupy", "transformers", "ray", "dask", "sklearn", "pandas", "datasets", "numba", "accelerate", "statsmodels", "scipy.stats")

BLOCKED = """
import importlib, json, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked: raise ImportError("blocked in this test: " + name)

blocked, modules, heavy = json.loads(sys.argv[1])
import torch
before = set(sys.modules)
sys.meta_path.insert(0, Block())
failed = {}
for module in modules:
    try: importlib.import_module(module)
    except Exception as error: failed[module] = f"{type(error).__name__}: {error}"
new = set(sys.modules) - before
print(json.dumps({"failed": failed, "heavy": sorted(name for name in heavy if name in new)}))
"""

TIMED = """
import time, sys, importlib
import torch
started = time.process_time()
for module in sys.argv[1:]: importlib.import_module(module)
print(time.process_time() - started)
"""


def python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_import_without_notebook_tools_and_light():
    "The package computes without nbdev, plotly and the widgets, and loads the large libraries only when they are used."
    found = json.loads(python(BLOCKED, json.dumps([TOOLS, MODULES, HEAVY])))
    assert not found["failed"]
    assert not found["heavy"], f"imported at module level somewhere: {found['heavy']}"


CORE = [module for module in MODULES if module.startswith("arlm_nb.core")]


@pytest.mark.parametrize("modules", [["arlm_nb", "arlm_nb.core"], CORE], ids=["core", "all of core"])
def test_import_takes_under_two_seconds_more_than_torch(modules):
    assert min(float(python(TIMED, *modules)) for _ in range(3)) < 2


def imports(path, inside: bool = True) -> set[str]:
    "The modules of ours that a source imports, anywhere in it or only at its top."
    here, found, tree = path.relative_to(ROOT).with_suffix("").parts, set(), ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if inside else tree.body:
        if isinstance(node, ast.Import): names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[:len(here) - node.level]) if node.level else ""
            names = [".".join(part for part in (base, node.module) if part)]
            names += [f"{names[0]}.{alias.name}" for alias in node.names]
        else: continue
        found |= {name for name in names if name in MODULES and name.count(".") >= 2}
    return found


SOURCES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")
           if path.name not in ("_modidx.py", "__init__.py")}
DOORS = {"arlm_nb.core.cli"}  # commands open other areas when called


def test_layers():
    "kernels imports nothing of ours; core only kernels and itself."
    graph = {module: imports(path) for module, path in SOURCES.items()}
    rank = lambda module: ORDER.index(module.split(".")[1]) if module.split(".")[1] in ORDER else len(ORDER)
    wrong = [f"{module} imports {other}" for module, others in graph.items() if module not in DOORS
             for other in others if rank(other) > rank(module)]
    assert not wrong
    assert not [module for module in graph if ".kernels." in module and any(".kernels." not in other for other in graph[module])]


def test_no_circle():
    "At import; a function may import what imports its module."
    graph = {module: imports(path, inside=False) for module, path in SOURCES.items()}
    seen, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module):], module])
        if module in seen: return
        seen.add(module); path.append(module)
        for other in sorted(graph.get(module, ()) - {module}): visit(other)
        path.pop()

    for module in graph: visit(module)


def dangers(tree: ast.AST) -> list[str]:
    "Unpickling, evaluating text, network modules at import."
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            flags = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            bad = name in ("eval", "exec", "torch.load", "joblib.load") or name.split(".")[0] in ("pickle", "dill", "cloudpickle")
            if bad and flags.get("weights_only") != "True" or flags.get("allow_pickle") == "True":
                found.append(f"line {node.lineno}: {name}")
    for node in tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
        found += [f"line {node.lineno}: imports {name}" for name in names
                  if name.split(".")[0] in ("requests", "pickle", "socket", "httpx")]
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_sources_hold_nothing_dangerous(path):
    text = path.read_text(encoding="utf-8")
    assert not dangers(ast.parse(text))
    assert not re.search(r"\b(?:TODO|FIXME|XXX)\b", text)


@pytest.mark.parametrize("source, bad", [
    ("import pickle", True), ("import torch\ntorch.load('x')", True), ("torch.load('x', weights_only=True)", False),
    ("model.eval()", False), ("eval('1')", True), ("np.load('x', allow_pickle=True)", True), ("def f():\n    exec(a)", True),
])
def test_the_check_itself(source, bad):
    assert bool(dangers(ast.parse(source))) == bad
