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


def small_lm(**kw):
    from arlm_nb.core.transformer import TransformerConfig
    from arlm_nb.timeseries.companion_mixer import CompanionTransformer
    torch.manual_seed(0)
    options = {k: kw.pop(k) for k in ("state", "heads", "norm") if k in kw}
    lm = CompanionTransformer(TransformerConfig(9, 16, 2, 2, context_length=32, **({"positions": "none"} | kw)), **options)
    for p in lm.parameters(): p.data.mul_(3) if p.dim() > 1 else None
    return lm.double().eval()


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 10_000))
def test_the_last_state_needs_no_steps(d, length, seed):
    from arlm_nb.timeseries.companion import advance
    from arlm_nb.timeseries.companion_layers import bounded
    from arlm_nb.timeseries.companion_mixer import last_state, response
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    a, B, C, u, x = bounded(draw(2, d)), draw(2, d), draw(2, d), draw(3, 2, length), draw(3, 2, d)
    state, seen = x, []
    for k in range(length):
        state = advance(a, state) + B * u[..., k, None]
        seen.append((C * state).sum(-1))
    torch.testing.assert_close(last_state(a, B, u, x), state, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(response(a, B, C, u, x), torch.stack(seen, -1), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kw", [{}, {"heads": 2}, {"state": 25}, {"positions": "learned"}])
@torch.no_grad()
def test_the_mixer_streams_and_does_not_look_ahead(kw):
    from arlm_nb.core.statistics import influence
    lm, ids = small_lm(**kw), torch.randint(9, (2, 20), generator=torch.Generator().manual_seed(1))
    for sizes in ([1] * 20, [20], [1, 19], [19, 1], [4, 4, 12]):
        cache, parts, at = lm.new_cache(2), [], 0
        for n in sizes:
            parts.append(lm(ids[:, at : at + n], cache=cache).logits)
            at += n
        torch.testing.assert_close(torch.cat(parts, 1), lm(ids).logits, atol=1e-10, rtol=0)
    assert torch.equal(influence(lambda v: lm(v).logits, ids[0], 9, tolerance=1e-11), torch.ones(20, 20).tril().bool())


@torch.no_grad()
def test_the_mixer_scores_and_decodes():
    from arlm_nb.core.generation import greedy, sample
    lm, prompt, options = small_lm(), [2, 3, 4], [[5, 6, 7], [5, 6, 2], [8], [5, 6]]
    for c, score in zip(options, lm.score_continuations(prompt, options), strict=True):
        logp = lm(torch.tensor([prompt + c])).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(score, logp.gather(-1, torch.tensor(c)[:, None]).sum())
    ids = list(prompt)
    for t in greedy(lm, prompt, max_new_tokens=6).ids:
        assert t == int(lm(torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(t)
    assert len(sample(lm, prompt, max_new_tokens=4, seed=0).ids) == 4
    assert not lm.reads_masks
    with pytest.raises(ValueError, match="cannot be honoured"): lm(torch.tensor([prompt]), mask=torch.ones(3, 3).tril().bool())
    with pytest.raises(ValueError, match="recurrent state"): (cache := lm.new_cache(), lm(torch.tensor([prompt]), cache=cache), cache.crop(1))
    for positions in ("rotary", "alibi"):
        with pytest.raises(ValueError, match=f"{positions} positions"): small_lm(positions=positions)


def test_a_gradient_reaches_a_b_and_c_and_the_start_is_not_drawn_anew():
    lm = small_lm().float()
    lm(torch.randint(9, (2, 12), generator=torch.Generator().manual_seed(0))).logits.square().mean().backward()
    for block in lm.blocks:
        a, B, C = block.mixer.flat.grad.view(-1, 3, 16).unbind(1)
        assert all(t.abs().sum() > 0 for t in (a, B, C))
        assert block.mixer.flat.std() > 0.1  # init_weights would have made it 0.02


def test_switched_off_stays_off():
    from arlm_nb.timeseries import spacetime_classes as c
    data = c.process_classes(60, 20)
    net = c.train_classifier(data, learn=False, channels=4, state=3, steps=3)
    layers = (*(b.ssm for b in net.blocks), net.loop)
    assert all(layer.a.abs().max() == 0 for layer in layers)
    assert all(companion_kernel(layer.column(), layer.B, layer.C, 9)[:, 3:].abs().max() < 1e-6 for layer in layers)  # taps end with the state
    with pytest.raises(ValueError, match="laws of"): c.best_possible(c.digit_series())
    with pytest.raises(ValueError, match="lags must be in 0..19, got 20"): c.lag_products(data.x, 20)
    with pytest.raises(ValueError, match="periods >= 2"): c.cycle_laws((1.5, 9))


def test_a_fit_draws_its_transfer_function():
    from arlm_nb.timeseries.spacetime_experiments import fit_ar, sinusoid_process
    fitted = fit_ar(sinusoid_process(0, series=50, length=220), "shift", steps=5)
    assert len(fitted.plot().data) == 2 and np.isfinite(fitted.plot().data[0].y).all()
