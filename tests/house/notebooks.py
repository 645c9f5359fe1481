"""Runs notebooks with nbdev's own test runner, each in a process of its own that is killed when its time is up."""
import json
import os
import queue
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NBS = ROOT/"nbs"
WORKERS = int(os.environ.get("ARLM_NB_WORKERS", 2))
LIMIT = float(os.environ.get("ARLM_NB_SECONDS", 300))  # wall clock for one notebook, two at a time; the aim is 15 s, 60 for a flagship
POOL = pytest.StashKey()
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


def all_notebooks(root: Path = NBS) -> list[Path]:
    "Every notebook that nbdev would run: names that start with `_` or `.` are drafts."
    hidden = lambda path: any(part[0] in "_." for part in path.relative_to(root).parts)
    return sorted(path for path in root.rglob("*.ipynb") if not hidden(path))


class Server:
    "A process that runs notebooks one by one, each in a fork of it (`notebook_server.py`)."
    idle: queue.SimpleQueue = queue.SimpleQueue()
    every: list = []

    def __init__(self):
        env = {**os.environ, **ONE_THREAD, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "agg"}
        env |= {"ARLM_STATIC": "0"}  # outputs are thrown away: no pictures for them (tests/test_plotting.py draws some)
        self.process = subprocess.Popen([sys.executable, "-m", "tests.house.notebook_server"], cwd=ROOT, env=env, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        Server.every.append(self)

    def run(self, path: Path, limit: float) -> dict:
        self.process.stdin.write(json.dumps({"path": str(path), "root": str(ROOT), "limit": limit}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self):
        self.process.terminate()  # ends the notebook that runs, too


def run_notebook(path: Path, limit: float = LIMIT) -> tuple[bool, float, str]:
    "Executes a notebook from top to bottom; gives (passed, seconds, what it printed)."
    try: server = Server.idle.get_nowait()
    except queue.Empty: server = Server()
    try: reply = server.run(path, limit)
    except (json.JSONDecodeError, BrokenPipeError): return False, 0.0, f"the process that runs notebooks ended with {server.process.poll()}"
    Server.idle.put(server)
    return reply["passed"], reply["seconds"], reply["output"]


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
        for server in Server.every: server.stop()
