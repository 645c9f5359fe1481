"""Compiled loops and PyTorch share OpenMP: what one sets must hold for the other."""
import os
import subprocess
import sys

CODE = """
import torch
from arlm_nb.kernels.masked_confidence import masked_confidence
torch.set_num_threads(1)
for _ in range(2):
    masked_confidence(torch.randn(4, 8, 100), torch.full((4, 8), 99), 99)
    assert torch.get_num_threads() == 1, torch.get_num_threads()
    assert "omp_get_max_threads() : 1" in torch.__config__.parallel_info(), torch.__config__.parallel_info()
"""


def test_the_first_parallel_loop_leaves_torchs_threads_as_they_were():
    "numba's pool starts with the first loop: a process of its own."
    environment = {k: v for k, v in os.environ.items() if k not in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
