"""The same map on loky, a local Ray and a local Dask; what is kept when a worker dies."""
import math
import os
import subprocess
import sys
import time

import pytest

from arlm_nb.core.parallel import Partial, pmap
from tests.house.notebooks import ROOT

ITEMS = list(range(12))


def work(n: int) -> float:
    "Something that depends on its item alone."
    return sum(math.sin(n*k) for k in range(2000))


def dies_at_five(n: int) -> int:
    if n == 5: time.sleep(1.0); os._exit(3)
    return n


def test_loky():
    assert pmap(work, ITEMS, n_jobs=2, progress=False) == [work(n) for n in ITEMS]


@pytest.mark.parametrize("backend", ["ray", "dask"])
def test_cluster_gives_what_loky_gives(backend):
    needed = {"ray": "ray", "dask": "distributed"}[backend]
    pytest.importorskip(needed, reason=f"{needed} is not installed (pip install \"arlm_nb[scale]\")")
    code = ("from tests.test_parallel import ITEMS, work\nfrom arlm_nb.core.parallel import Failed, pmap\n"
            "if __name__ == '__main__':\n"
            f"    here, there = (pmap(work, ITEMS, n_jobs=2, backend=b, progress=False) for b in ('loky', '{backend}'))\n"
            "    assert here == there, (here, there)\n"
            f"    kept = pmap(lambda n: 1/n, [1, 0, 2], n_jobs=2, backend='{backend}', progress=False, on_error='keep')\n"
            "    assert kept[0] == 1 and kept[2] == 0.5 and isinstance(kept[1], Failed)\n"
            "    print('equal')\n")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    if "did not start in" in done.stderr: pytest.skip("this machine is too busy for Ray's own 15 s start limit")
    said = done.stdout.splitlines()  # Ray tells on the same stream what became of its workers, also after the program's last line
    assert done.returncode == 0 and "equal" in said, done.stdout[-2000:] + done.stderr[-4000:]


def test_a_dead_worker_leaves_the_finished_results():
    with pytest.raises(Partial) as stop: pmap(dies_at_five, ITEMS, n_jobs=2, progress=False)
    kept = stop.value.results
    assert {0, 1, 2, 3} <= set(kept) and all(kept[n] == n for n in kept) and 5 not in kept
