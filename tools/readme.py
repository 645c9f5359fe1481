"""README.md from nbs/index.ipynb by nbconvert: `python tools/readme.py` writes both, `--check` says whether they are in step."""
import difflib
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK, README = ROOT/"nbs"/"index.ipynb", ROOT/"README.md"
HIDE, NO_ECHO = re.compile(r"^#\s*\|\s*hide\b", re.M), re.compile(r"^#\s*\|\s*echo:\s*false", re.M)


def executed(path: Path) -> nbformat.NotebookNode:
    "The notebook with fresh outputs, and the little metadata that nbdev_clean leaves."
    nb = nbformat.read(path, 4)
    NotebookClient(nb, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell in nb.cells:
        cell.metadata = {}
        if cell.cell_type != "code": continue
        cell.execution_count = None
        for output in cell.outputs:
            if "execution_count" in output: output["execution_count"] = None
    nb.metadata = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    return nb


def markdown(nb: nbformat.NotebookNode) -> str:
    "GitHub's markdown: cells marked `#| hide` left out, of those marked `#| echo: false` only what they show."
    shown = nbformat.from_dict({**nb, "cells": [cell for cell in nb.cells if not HIDE.search(cell.source)]})
    for cell in shown.cells:
        if cell.cell_type == "code" and NO_ECHO.search(cell.source): cell.source = ""
    text, _ = MarkdownExporter().from_notebook_node(shown)
    text = "\n".join(line.rstrip() for line in text.splitlines())
    text = re.sub(r"^```(?:python)?\n+```$", "", text, flags=re.M)  # what is left of a cell without its source
    text = re.sub(r"\]\((?!https?:|#|\.\./)", "](nbs/", text).replace("](../", "](")  # links as seen from the top folder
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def main(check: bool) -> int:
    nb = executed(NOTEBOOK)
    fresh = markdown(nb)
    if not check:
        nbformat.write(nb, NOTEBOOK)
        README.write_text(fresh, encoding="utf-8")
        print(f"{README.name}: {len(fresh.splitlines())} lines")
        return 0
    kept = README.read_text(encoding="utf-8") if README.exists() else ""
    if kept == fresh: return 0
    print("README.md is not what nbs/index.ipynb makes; run `make readme`")
    print("\n".join([*difflib.unified_diff(kept.splitlines(), fresh.splitlines(), "README.md", "nbs/index.ipynb", lineterm="", n=1)][:60]))
    return 1


if __name__ == "__main__": sys.exit(main("--check" in sys.argv[1:]))
