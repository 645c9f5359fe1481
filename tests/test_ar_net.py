"""AR-Net: names, bad input, the penalty on any weights, forecasts of every shape."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arlm_nb.timeseries import ar_net as a
from arlm_nb.timeseries.common import ar_process, companion_matrix, forecasters


@pytest.fixture(scope="module")
def x(): return ar_process((0.5, -0.3), 400)


@pytest.fixture(scope="module")
def net(x): return a.ARNet(2).fit(x, epochs=2, lr=0.01)


def test_names_of_the_card():
    names = "ARNet sparsity_penalty penalty_strength stpe ar_loss classic_ar order_scaling lag_report claim_ar_net".split()
    assert [n for n in names if not hasattr(a, n)] == []
    assert [n for n in ("fit", "coefficients", "forecast", "path") if not hasattr(a.ARNet, n)] == []
    assert callable(a.LagReport.plot) and "ar_net" in forecasters()


@pytest.mark.parametrize("make, match", [
    (lambda x: a.ARNet(0), "p, horizon and hidden must be >= 1, got 0"),
    (lambda x: a.ARNet(3, horizon=0), "must be >= 1, got 3, 0"),
    (lambda x: a.ARNet(3, hidden=(0,)), r"and \(0,\)"),
    (lambda x: a.ARNet(3, sparsity=0.0), r"in \(0, 1\], got 0.0"),
    (lambda x: a.ARNet(3, sparsity=1.5), r"in \(0, 1\], got 1.5"),
    (lambda x: a.ARNet(200).fit(x), "< n / 2 = 200, got 200"),
    (lambda x: a.classic_ar(x, 200), "< n / 2 = 200, got 200"),
    (lambda x: a.classic_ar(x, 0), "p must be >= 1"),
    (lambda x: a.ARNet(2).fit(np.r_[np.zeros(9), np.nan]), "first at step 9"),
    (lambda x: a.ARNet(2).fit(np.zeros((9, 2))), "takes one variate, got 2"),
    (lambda x: ar_process((1.2, 0.1)), "not stable"),
    (lambda x: a.ARNet(2, hidden=(4,)).coefficients, "not linear in its lags"),
    (lambda x: a.ARNet(2).path, "only after fit"),
    (lambda x: a.ARNet(5).forecast(torch.zeros(4), 2), "context has 4 values, the model looks back 5"),
    (lambda x: a.ARNet(2).forecast(torch.zeros(4), 0), "horizon must be >= 1"),
    (lambda x: a.ARNet(2).forecast(torch.full((4,), torch.nan), 1), "without NaN"),
    (lambda x: a.sparsity_penalty(torch.zeros(2), c1=0), "c1 and tiny must be > 0"),
    (lambda x: a.sparsity_penalty(torch.zeros(2), c2=0.5), "c2 >= 1"),
    (lambda x: a.penalty_strength(0.5, -1.0), "noise must be >= 0"),
    (lambda x: a.stpe([1.0], [1.0, 2.0]), "got 1 and 2"),
])
def test_bad_input(x, make, match):
    with pytest.raises(ValueError, match=match): make(x)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=8), st.floats(0.5, 5), st.floats(1, 5))
def test_penalty_is_even_bounded_and_counts(w, c1, c2):
    w = torch.tensor(w, dtype=torch.float64, requires_grad=True)
    r = a.sparsity_penalty(w, c1, c2)
    r.backward()
    assert 0 <= float(r.detach()) <= 1 and torch.isfinite(w.grad).all()
    assert float(a.sparsity_penalty(-w.detach(), c1, c2)) == pytest.approx(float(r.detach()), abs=1e-12)
    bigger = a.sparsity_penalty(2 * w, c1, c2)
    assert float(bigger.detach()) >= float(r.detach())
    assert float(a.sparsity_penalty(torch.cat([w, w]).detach(), c1, c2)) == pytest.approx(float(r.detach()), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=6))
def test_stpe_is_symmetric_and_between_0_and_100(pairs):
    e, t = np.array(pairs).T
    assert 0 <= a.stpe(e, t) <= 100 + 1e-9
    assert a.stpe(e, t) == pytest.approx(a.stpe(t, e)) and a.stpe(e, e) == 0


def test_forecast_is_the_companion_matrix(net, x):
    w, last = net.coefficients.to_numpy(), x.values[-2:, 0].numpy()
    state, want = last[::-1], []
    for _ in range(7):
        state = companion_matrix(w) @ state + np.r_[net.intercept, 0]
        want.append(state[0])
    np.testing.assert_allclose(net.forecast(x.values[:, 0], 7).mean[:, 0], want, atol=1e-6)
    batch = net.forecast(x.values[:10, 0].reshape(2, 5), 3).mean
    assert batch.shape == (2, 3, 1)
    torch.testing.assert_close(batch[1], net.forecast(x.values[5:10, 0], 3).mean)


def test_sparsity_of_one_is_dense_and_a_seed_is_a_run(x, net):
    fit = lambda **k: a.ARNet(2, **k).fit(x, epochs=2, lr=0.01).coefficients.tolist()
    assert fit(sparsity=1.0) == fit() == net.coefficients.tolist()
    assert fit(sparsity=0.5) != fit()


def test_the_intercept_is_not_penalised(x):
    net = a.ARNet(3, sparsity=0.1)
    loss = lambda s: a.ar_loss(net, {"x": torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), "y": torch.zeros(8, 1), "progress": s})
    grads = []
    for s in (0.0, 1.0):
        net.zero_grad()
        found = loss(s)
        found.value.backward()
        grads.append((net.net[0].bias.grad.clone(), net.net[0].weight.grad.clone(), found.parts))
    assert torch.equal(grads[0][0], grads[1][0]) and not torch.equal(grads[0][1], grads[1][1])
    assert grads[0][2]["penalty"] == 0 < grads[1][2]["penalty"] and grads[0][2]["mse"] == grads[1][2]["mse"]


def test_outputs_and_hidden_layers(x):
    net = a.ARNet(4, horizon=3, hidden=(5,)).fit(x, epochs=1, lr=0.01)
    assert net.forecast(x.values[:, 0], 7).mean.shape == (7, 1)
    assert a.ARNet(4, horizon=3).fit(x, epochs=1, lr=0.01).coefficients.shape == (4, 3)
    report = a.lag_report(a.ARNet(4, horizon=3).fit(x, epochs=1, lr=0.01), (0.5, -0.3))
    assert report.frame.true.tolist() == [0.5, -0.3, 0, 0] and len(report.plot().data) == 3


def test_l1_takes_the_place_of_the_penalty_and_of_nothing_else(x):
    rows = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)).double()
    batch, parts = {"x": rows, "y": torch.zeros(16, 1).double()}, {}
    for penalty in ("ar-net", "l1"):
        torch.manual_seed(0)
        net = a.ARNet(3, sparsity=0.1, penalty=penalty).double()
        found = a.ar_loss(net, batch)
        parts[penalty] = found.parts
        strength = a.penalty_strength(0.1, found.parts["mse"] ** 0.5)
        assert found.parts["penalty"] == pytest.approx(strength * float(a.PENALTIES[penalty](net.lag_weights.detach())))
    assert parts["l1"]["mse"] == parts["ar-net"]["mse"] and parts["l1"]["penalty"] != parts["ar-net"]["penalty"]
    fit = lambda **k: a.ARNet(2, penalty="l1", **k).fit(x, epochs=2, lr=0.01).coefficients.tolist()
    assert fit() == fit(sparsity=1.0) == a.ARNet(2).fit(x, epochs=2, lr=0.01).coefficients.tolist()
    with pytest.raises(ValueError, match="unknown penalty 'lasso'"): a.ARNet(2, penalty="lasso")


def test_penalty_study_names_its_best():
    found = a.penalty_study({1: 0.5}, 6, n=400, epochs=1, strengths=(0.01, 0.1))
    assert found.c.tolist() == [0.01, 0.1] and found.best.sum() == 1 and found.stpe[found.best].item() == found.stpe.min()
    assert (found.excess > 0).all()
