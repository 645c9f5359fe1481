"""Imports what nearly every notebook needs once, then runs each notebook in a fork: the isolation of a fresh process without its start.

One line of JSON in, {"path", "root", "limit"}; one out, {"passed", "seconds", "output"}. Nothing of the package itself is imported here, and no
thread is started before the forks. A notebook's process leads a group of its own, which is killed when it ends or when its time is up."""
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

LIBRARIES = ("torch", "numpy", "scipy.stats", "scipy.sparse.linalg", "pandas", "plotly.graph_objects", "plotly.io", "ipywidgets", "anywidget", "IPython",
             "fastcore.test", "nbdev.test", "numba", "safetensors.torch", "sklearn.linear_model", "transformers", "transformers.generation.utils",
             "transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama")


def execute(path: str, root: str):
    "In the fork: nbdev's own runner."
    import random

    import numpy as np
    from nbdev.config import get_config
    from nbdev.test import test_nb
    random.seed(), np.random.seed()  # as a fresh process would: from the system, not from the parent
    passed = False
    try: passed, _ = test_nb(Path(path), skip_flags=get_config().tst_flags.split(), basepath=root)
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(0 if passed else 1)


def fork(path: str, root: str, out) -> int:
    "Start a notebook; its process number."
    pid = os.fork()
    if pid: return pid
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with open(os.devnull) as nothing: os.dup2(nothing.fileno(), 0)
    os.dup2(out.fileno(), 1), os.dup2(out.fileno(), 2)
    try: execute(path, root)
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(1)


def end(pid: int):
    try: os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError): pass


def serve():
    import torch
    torch.set_num_threads(1)
    for name in LIBRARIES: importlib.import_module(name)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    running = []

    def stop(*_):
        for pid in running: end(pid)
        os._exit(1)

    signal.signal(signal.SIGTERM, stop)
    for line in sys.stdin:
        job, began, status = json.loads(line), time.perf_counter(), None
        with tempfile.TemporaryFile("w+", errors="replace") as out:
            pid = fork(job["path"], job["root"], out)
            running[:] = [pid]
            while status is None and time.perf_counter() - began < job["limit"]:
                done, code = os.waitpid(pid, os.WNOHANG)
                if done: status = code
                else: time.sleep(0.02)
            end(pid)
            if status is None: os.waitpid(pid, 0)
            running.clear()
            out.seek(0)
            reply = {"passed": status == 0, "seconds": time.perf_counter() - began, "output": out.read()}
        if status is None: reply["output"] += f"\nkilled after {job['limit']:.0f} s (ARLM_NB_SECONDS sets the limit)"
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__": serve()
