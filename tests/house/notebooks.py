"""Runs notebooks with nbdev's own test runner, each in a process of its own that is killed when its time is up."""
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NBS = ROOT/"nbs"
WORKERS = int(os.environ.get("ARLM_NB_WORKERS", 2))
LIMIT = float(os.environ.get("ARLM_NB_SECONDS", 300))  # wall clock for one notebook, two at a time; the aim is 15 s, 60 for a flagship
POOL = pytest.StashKey()
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}

CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from nbdev.config import get_config
from nbdev.test import test_nb
passed, seconds = test_nb(Path(sys.argv[1]), skip_flags=get_config().tst_flags.split(), basepath=sys.argv[2])
sys.stdout.flush(); sys.stderr.flush()
import os; os._exit(0 if passed else 1)
"""


def all_notebooks(root: Path = NBS) -> list[Path]:
    "Every notebook that nbdev would run: names that start with `_` or `.` are drafts."
    hidden = lambda path: any(part[0] in "_." for part in path.relative_to(root).parts)
    return sorted(path for path in root.rglob("*.ipynb") if not hidden(path))


def run_notebook(path: Path, limit: float = LIMIT) -> tuple[bool, float, str]:
    "Executes a notebook from top to bottom; gives (passed, seconds, what it printed)."
    env = {**os.environ, **ONE_THREAD, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "agg"}
    started = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), str(ROOT)], cwd=ROOT, env=env, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        output, _ = child.communicate(timeout=limit)
        return child.returncode == 0, time.perf_counter() - started, output
    except subprocess.TimeoutExpired:
        kill(child)
        output, _ = child.communicate()
        return False, time.perf_counter() - started, f"{output}\nkilled after {limit:.0f} s (ARLM_NB_SECONDS sets the limit)"
    finally:
        kill(child)


def kill(child: subprocess.Popen) -> None:
    "The child and all that it started."
    try: os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError: pass


class Pool:
    "Starts all notebooks that were asked for as soon as the tests are collected; each test waits for its own."

    def __init__(self):
        self.executor: ThreadPoolExecutor | None = None
        self.results: dict[str, Future] = {}
        self.seconds: dict[str, float] = {}

    def start(self, names: list[str]) -> None:
        if not names: return
        self.executor = ThreadPoolExecutor(WORKERS)
        self.results = {name: self.executor.submit(run_notebook, NBS/name) for name in names}

    def wait(self, name: str) -> tuple[bool, float, str]:
        result = self.results[name].result() if name in self.results else run_notebook(NBS/name)
        self.seconds[name] = result[1]
        return result

    def stop(self) -> None:
        if self.executor is not None: self.executor.shutdown(wait=False, cancel_futures=True)
