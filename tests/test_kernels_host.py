"Every kernel's own CUDA source, run on the CPU by the host shim, and its CPU path: both against the float64 reference."
import importlib, pkgutil
import numpy as np
import pytest
import torch
import arlm_nb.kernels
from arlm_nb.kernels.dispatch import KERNELS, host_launcher
from tests.cuda_host.shim import GXX, HostLauncher
from tests.kernel_cases import CASES

for module in pkgutil.iter_modules(arlm_nb.kernels.__path__): importlib.import_module(f"arlm_nb.kernels.{module.name}")


def check(name, move):
    for label, call, want, (rtol, atol) in CASES[name](np.random.default_rng(5)):
        torch.testing.assert_close(call(move).double(), want.double(), rtol=rtol, atol=atol, msg=lambda m: f"{name}, case {label}: {m}")


def test_every_kernel_has_its_cases(): assert set(CASES) == set(KERNELS)

@pytest.mark.parametrize("name", list(CASES))
def test_cpu_path(name): check(name, lambda x: x.clone())

@pytest.mark.skipif(GXX is None, reason="the host shim needs g++")
@pytest.mark.parametrize("name", list(CASES))
def test_source_on_the_host(name):
    launcher = HostLauncher()
    with host_launcher(launcher): check(name, lambda x: x.clone())
    assert {entry for entry, *_ in launcher.launches} >= set(KERNELS[name].entries) - UNREACHED.get(name, set()), (
        "an entry that no case reaches"
    )


# f32 tables with bf16/f64 vectors and the like: same template, other types
UNREACHED = {
    n: {e + x for e in (("push_", "push_softmax_") if n.endswith("push") else ("pull_",)) for x in ("f16_f32", "bf16_f64")}
    for n in ("debruijn_push", "debruijn_pull")
}
