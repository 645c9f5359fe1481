"""What the README shows works: its Python runs, its links lead somewhere, its commands exist."""
import re
import subprocess
import sys

import pytest

from tests.house.notebooks import ROOT

README = (ROOT/"README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.skipif(not list((ROOT/"data").glob("checkpoints/docs-1m*")), reason="the checkpoint docs-1m is not there yet")
def test_the_first_example_runs():
    done = subprocess.run([sys.executable, "-c", BLOCKS[0]], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if not link.startswith("http")]
    assert links and not [link for link in links if not (ROOT/link).exists()]


def test_commands_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT/"Makefile").read_text(), re.M))
    assert set(re.findall(r"^make ([a-z]+)", README, re.M)) <= targets
    from arlm_nb.core.cli import app
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert set(re.findall(r"^arlm ([a-z]+)", README, re.M)) <= commands


def test_every_make_target_is_helped_with():
    makefile = (ROOT/"Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (help .*)$", makefile, re.M)[1].split()) - {"help"}
    assert phony == set(re.findall(r"make ([a-z]+)", "\n".join(re.findall(r'^\t@echo "(make .*)"$', makefile, re.M))))
