"Every kernel on a real GPU against the float64 reference: the same cases as on the host shim."
import numpy as np
import pytest
import torch
from tests.kernel_cases import CASES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.mark.parametrize("name", list(CASES))
def test_on_the_gpu(name):
    pytest.importorskip("cupy")
    for label, call, want, (rtol, atol) in CASES[name](np.random.default_rng(5)):
        got = call(lambda x: x.cuda()).double().cpu()
        torch.testing.assert_close(
            got,
            want.double(),
            rtol=max(rtol, 1e-6) if rtol else rtol,
            atol=max(atol, 1e-6) if atol else atol,
            msg=lambda m: f"{name}, case {label}: {m}",
        )
