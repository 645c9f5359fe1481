"SpaceTime: bad input, and identities for random layers that a notebook need not show."
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from arlm_nb.timeseries.companion import companion, companion_kernel, reciprocal, multiply
from arlm_nb.timeseries.companion_layers import ClosedLoopSSM, CompanionSSM, FixedFilters, loop_radius
from arlm_nb.timeseries.forecasting import compare
from arlm_nb.timeseries.generated import etth_like
from arlm_nb.timeseries.spacetime_model import SpaceTime, spacetime_loss


@given(st.integers(1, 24), st.integers(1, 70), st.integers(0, 10_000))
def test_the_fast_kernel_is_the_loop(d, length, seed):
    g = torch.Generator().manual_seed(seed)
    a, B, C = (torch.randn(2, d, generator=g, dtype=torch.float64) for _ in range(3))
    a = a / a.abs().sum(-1, keepdim=True)  # up to a root on the unit circle
    fast, loop = (companion_kernel(a, B, C, length, method=m) for m in ("fast", "loop"))
    torch.testing.assert_close(fast, loop, atol=1e-8, rtol=1e-8)


@given(st.integers(1, 30), st.integers(0, 10_000))
def test_a_series_times_its_inverse_is_one(n, seed):
    p = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    p[0] = 1 + p.sum()
    one = multiply(p, reciprocal(p, 40), 40)
    torch.testing.assert_close(one, torch.eye(40, dtype=torch.float64)[0], atol=1e-10, rtol=0)


@pytest.mark.parametrize("n", [1, 2, 13])
@pytest.mark.parametrize("norm", [1.0, 2.0, None])
def test_the_closed_loop_is_its_own_recurrence(n, norm):
    torch.manual_seed(n)
    layer = ClosedLoopSSM(4, 3, heads=2, norm=norm).double()
    u, x = torch.randn(2, n, 4, dtype=torch.float64), None
    y, w = layer.closed(u, 7)
    for k in range(n): out, x = layer.step(u[:, k], x)
    K = layer.K.repeat_interleave(2, 0)
    for h in range(7):
        torch.testing.assert_close(out, y[:, h], atol=1e-9, rtol=0)
        torch.testing.assert_close((K * x).sum(-1), w[:, h], atol=1e-9, rtol=0)
        out, x = layer.step(w[:, h], x)


def test_nothing_in_the_network_looks_ahead():
    torch.manual_seed(0)
    net, x = SpaceTime(20, 5, 8, 6, 2, variates=2, longest=20).double(), torch.randn(1, 20, 2, dtype=torch.float64)
    before = net(x)
    for at in range(20):
        other = x.clone()
        other[:, at:] += torch.randn(1, 20 - at, 2, dtype=torch.float64)
        torch.testing.assert_close(net(other)[:, :at], before[:, :at], atol=1e-9, rtol=0)


def test_no_feedback_is_no_loop():
    layer = ClosedLoopSSM(1, 4)
    torch.nn.init.zeros_(layer.K)
    y, w = layer.closed(torch.randn(1, 9, 1, generator=torch.Generator().manual_seed(0)), 30)
    assert w.abs().max() == 0
    M = companion(layer.column()).detach()[0].numpy()
    assert max(abs(np.linalg.eigvals(M))) <= 1 + 1e-6


def test_a_gradient_reaches_every_part():
    torch.manual_seed(0)
    net = SpaceTime(16, 8, 8, 4, 1, longest=16)
    batch = torch.randn(3, 16, 1), torch.randn(3, 8, 1)
    loss = spacetime_loss(net, batch, torch.Generator().manual_seed(0))
    loss.value.backward()
    assert set(loss.parts) == {"closed", "open", "inputs"}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_it_stands_in_the_leaderboard():
    from functools import partial
    from arlm_nb.timeseries.spacetime_model import spacetime_forecaster
    table = compare({"spacetime": partial(spacetime_forecaster, steps=3, channels=4, state=4)},
                    [etth_like(400)], [4], context=16)
    assert np.isfinite(table.frame.mse).all()


@pytest.mark.parametrize("make, told", [
    (lambda: CompanionSSM(5, 4, heads=2), "5 channels and 2 heads"),
    (lambda: CompanionSSM(0, 4), "must be >= 1"),
    (lambda: ClosedLoopSSM(2, 4).closed(torch.zeros(1, 3, 2), 0), "horizon must be >= 1, got 0"),
    (lambda: CompanionSSM(2, 4).open(torch.zeros(1, 3)), "must be \\[batch, L, 2\\]"),
    (lambda: SpaceTime(0, 4), "context must be >= 1, got 0"),
    (lambda: SpaceTime(8, 4, layers=-1), "layers must be >= 0, got -1"),
    (lambda: SpaceTime(8, 4, variates=2).forecast(torch.full((1, 8, 2), torch.nan)), "first NaN or infinity is at"),
    (lambda: FixedFilters(4, shortest=9, longest=3), "shortest <= longest"),
    (lambda: companion_kernel(torch.zeros(2), torch.zeros(3), torch.zeros(2), 4), "same state size, got 2, 3 and 2"),
])
def test_bad_input_is_named(make, told):
    with pytest.raises(ValueError, match=told): make()


def test_an_exploding_loop_is_told():
    layer = ClosedLoopSSM(1, 1, norm=None)
    with torch.no_grad(): layer.a.fill_(1.0), layer.B.fill_(1.0), layer.K.fill_(0.1)
    with pytest.warns(UserWarning, match="modulus 1.1000"): loop_radius(layer, 500)
