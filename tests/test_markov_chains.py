"""theory.markov_chains beyond its notebooks: every architecture, bad input, damage, interruption."""
import numpy as np
import pytest
import torch

from arlm_nb.core.lm import TableLM
from arlm_nb.theory.markov_chains import (
    MarkovChain,
    chain,
    estimate_mixing,
    frequentist,
    greedy_map,
    icl_bound,
    icl_risk,
    loop_statistics,
    marton_gamma,
    order_k_projection,
    pretraining_bound,
    simulate,
    StateEncoding,
    t_min,
    temperature_sweep,
    weight_bounds,
    window_sweep,
)
from arlm_nb.theory.markov_table import texts_of

from tests.models import FLAGSHIP, any_lm

TOKENS, NAMES = [5, 17, 40], ("transformer", *FLAGSHIP)


@pytest.fixture(params=NAMES, scope="module")
def lm(request):
    return any_lm(request.param)


# ---- every main call on every architecture ----

def test_chain_rows_are_the_models_own(lm):
    c = MarkovChain.from_lm(lm, 3, tokens=TOKENS, max_rows=10)
    ids = torch.tensor(TOKENS)
    for l in (1, 2, 3):
        texts = ids[texts_of(torch.arange(3 ** l), 3, l)]
        with torch.no_grad():
            alone = torch.stack([lm(t[None]).logits[0, -1, ids].double().softmax(-1) for t in texts])
        torch.testing.assert_close(c.tables[l - 1], alone, atol=2e-5, rtol=1e-3)


def test_analysis(lm, tmp_path):
    c = MarkovChain.from_lm(lm, 2, tokens=TOKENS).with_temperature(3.0)
    assert c.n_states == 12 and c.classes().ergodic
    far, Q = c.decay(12), c.matrix(full=False).toarray()
    assert (
        (far.entry <= far.paper_bound + 1e-12).all()
        and (far.actual <= far.doeblin + 1e-12).all()
        and (far.actual <= far.spectral + 1e-9).all()
    )
    assert (
        np.isclose(c.epsilon().value, np.linalg.matrix_power(Q, 2).min())
        and c.mixing_time() == int(np.argmax(far.actual <= 0.25))
        or far.actual.min() > 0.25
    )
    pi = c.stationary().windows
    assert np.allclose(pi @ Q, pi) and c.spectral_gap().gap > 0 and c.pseudo_gap().value > 0
    assert len(temperature_sweep(c, [3.0, 6.0])) == 2 and np.isclose(greedy_map(c).basins.sum(), 1)
    c.save(tmp_path / "c.safetensors")
    assert torch.equal(MarkovChain.load(tmp_path / "c.safetensors", lm).p, c.p)
    with pytest.raises(ValueError, match="not of"):
        MarkovChain.load(tmp_path / "c.safetensors", TableLM.random(3, 1))


def test_estimates_and_bounds(lm):
    prompts = [[5, 17, 40, 5], [1, 2, 3, 4], [9, 9, 8, 8]]
    small = dict(n=3, samples=4, piece_size=4, temperature=2.0)
    for method in ("coupling", "overlap", "marginal", "autocorrelation"):
        e = estimate_mixing(lm, prompts, method=method, **small)
        assert np.isfinite(e.value) and e.ci[0] <= e.ci[1] and e.direction and e.tokens_spent > 0 and e.complete
    assert len(loop_statistics(lm, prompts, [0.0, 1.0], n=8)) == 6
    assert order_k_projection(lm, prompts, 1, most=4, n=6, texts=4).chain.T == 4
    b = weight_bounds(lm)
    with torch.no_grad():
        logits = lm(torch.randint(lm.vocab_size, (8, 12), generator=torch.Generator().manual_seed(0))).logits.double()
    assert logits.abs().max() <= b.B_max * (1 + 1e-4) and b.B_max <= b.B_U * (1 + 1e-6)
    assert logits.log_softmax(-1).min() >= b.eps_lower(1, sharp=True) >= b.eps_lower(1)
    assert len(b.B_layers) == lm.n_layers and all(v > 0 for layer in b.B_layers for v in layer.values())
    assert np.isfinite(pretraining_bound(T=b.T, B_U=b.B_U, N_train=1e6, K=4, log_B_theta=b.log_B_theta).log_sample_complexity)


def test_in_context_risk(lm):
    P = chain("dirichlet", 3, 0)
    r = icl_risk(lm, P, [2, 5], encode=StateEncoding((5, 17, 40), separator=(1,), prefix=(0,)), paths=3)
    assert r.values.shape == (1, 2) and 0 <= r.risk.min() <= r.risk.max() <= 1


# ---- sources that are not neural ----

def test_hidden_markov_model_as_a_chain():
    g = torch.Generator().manual_seed(0)
    A, B = torch.rand(2, 2, generator=g, dtype=torch.float64), torch.rand(2, 3, generator=g, dtype=torch.float64)
    A, B = A / A.sum(1, keepdim=True), B / B.sum(1, keepdim=True)

    def next_rows(x):
        state = torch.full((len(x), 2), .5, dtype=torch.float64)
        for t in range(x.shape[1]):
            state = state * B[:, x[:, t]].T
            state = state / state.sum(1, keepdim=True) @ A
        return state @ B
    c = MarkovChain.from_function(next_rows, 3, 4)
    assert c.classes().ergodic and all(torch.allclose(t.sum(-1), torch.ones(len(t), dtype=torch.float64)) for t in c.tables)
    drawn = c.decay(30)
    assert (drawn.actual <= drawn.doeblin + 1e-12).all()


def test_order_two_model_read_through_one_token_and_lifted_law():
    lm = TableLM.random(3, 1, seed=2)                       # order 1: windows of 3 have the T x T chain's law, lifted
    pi1, pi3 = (MarkovChain.from_lm(lm, K).stationary() for K in (1, 3))
    P = lm.table
    lifted = torch.einsum("a,ab,bc->abc", torch.from_numpy(pi1.windows), P, P).flatten()
    np.testing.assert_allclose(pi3.windows, lifted, atol=1e-12)
    np.testing.assert_allclose(pi3.tokens, pi1.windows, atol=1e-12)


def test_truncated_chains_are_analysed_in_general():
    lm = TableLM.random(4, 2, seed=3)
    for shape in (dict(top_k=2), dict(top_p=.6), dict(absorbing=[2])):
        c = MarkovChain.from_lm(lm, 2, **shape)
        found, Q = c.classes(), c.matrix().toarray()
        limit = np.linalg.matrix_power(Q, 2 ** 14)
        into = np.stack([limit[:, s].sum(1) for s in found.recurrent], 1)
        np.testing.assert_allclose(found.absorption, into, atol=1e-8)
        for law in c.stationary().laws:
            np.testing.assert_allclose(law @ Q[c.offset:, c.offset:], law, atol=1e-12)
    eos = MarkovChain.from_lm(lm, 2, absorbing=[2]).classes()
    assert len(eos.recurrent) == 1 and len(eos.recurrent[0]) == 1 and (eos.hitting_time >= 0).all()


def test_large_chain_by_iteration_and_float32():
    lm = TableLM.random(6, 2, seed=1)
    c = MarkovChain.from_lm(lm, 5, dtype=torch.float32)
    pi = c.stationary()
    assert pi.steps > 0 and pi.residual < 1e-5 and c.n_windows == 7776
    small = MarkovChain.from_lm(lm, 2).stationary().tokens
    np.testing.assert_allclose(pi.tokens, small, atol=1e-5)
    some = c.decay(6, starts=8)
    assert not some.attrs["exact"] and (some.actual <= some.doeblin + 1e-5).all()


# ---- bad input ----

@pytest.mark.parametrize("call, words", [
    (lambda m: MarkovChain.from_lm(m, 30), ["bytes", "memory_limit", "estimate_mixing"]),
    (lambda m: MarkovChain.from_lm(m, 2, temperature=0.0), ["temperature must be > 0", "greedy_map"]),
    (lambda m: MarkovChain.from_lm(m, 2, temperature=-1.0), ["greedy_map"]),
    (lambda m: MarkovChain.from_lm(m, 2, top_k=1), ["top_k", "greedy_map"]),
    (lambda m: MarkovChain.from_lm(m, 2, top_p=0.0), ["top_p"]),
    (lambda m: MarkovChain.from_lm(m, 0), ["K must be >= 1"]),
    (lambda m: MarkovChain.from_lm(m, 2, tokens=[0, 1, 1]), ["distinct"]),
    (lambda m: MarkovChain.from_lm(m, 2, tokens=[0, 99]), ["0..4"]),
    (lambda m: MarkovChain.from_lm(m, 2, tokens=[0, 1], absorbing=[3]), ["absorbing"]),
    (lambda m: MarkovChain.from_matrix([[.5, .4], [.5, .5]]), ["row 0", "0.9"]),
    (lambda m: MarkovChain.from_matrix([[1., 0.], [0., 1.]]).mixing_time(), ["2", "class 0", "class 1"]),
    (lambda m: MarkovChain.from_matrix([[0., 1.], [1., 0.]]).mixing_time(), ["aperiodic", "period 2"]),
    (lambda m: MarkovChain.from_lm(m, 2).mixing_time(1.5), ["e must be in (0, 1)"]),
    (lambda m: MarkovChain.from_lm(m, 2).sequence(10 ** 6), ["0..29"]),
    (lambda m: MarkovChain.from_lm(m, 2).index([7]), ["token 7"]),
    (lambda m: chain("dirichelt", 3, 0), ["nearest: dirichlet"]),
    (lambda m: chain("clique_rim", 7, 0), ["multiple of 3"]),
    (lambda m: simulate(torch.eye(2) * .5, 1, 3), ["row 0"]),
    (lambda m: estimate_mixing(m, [[0, 1], [2, 3]], method="cuopling"), ["nearest: coupling"]),
    (lambda m: estimate_mixing(m, [[0, 1]]), ["at least 2"]),
    (lambda m: estimate_mixing(m, [[0], [1]], window=3), ["shorter than the window"]),
    (lambda m: loop_statistics(m, [[0, 1]], [-1.0]), [">= 0"]),
    (lambda m: icl_risk(m, chain("walk", 9, 0), [4]), [">= vocab_size"]),
    (lambda m: t_min(torch.eye(3)), ["reducible"]),
    (lambda m: marton_gamma(torch.eye(2), 0), ["N must be >= 1"]),
    (lambda m: icl_bound([4], d=3, t_min=0., p_min=.1, B_U=1.), ["t_min must be > 0"]),
    (lambda m: weight_bounds(m), ["no weights"]),
])
def test_bad_input_says_what_to_do(call, words):
    with pytest.raises(ValueError) as error:
        call(TableLM.random(5, 2, seed=0))
    for word in words:
        assert word in str(error.value), str(error.value)


def test_window_longer_than_the_context():
    with pytest.raises(ValueError, match="context_length"):
        MarkovChain.from_lm(any_lm("transformer"), 60, tokens=[1])


def test_damaged_file(tmp_path):
    file = tmp_path / "chain.safetensors"
    file.write_bytes(b"not a chain")
    with pytest.raises(ValueError, match="chain.safetensors"):
        MarkovChain.load(file)
    with pytest.raises(FileNotFoundError):
        MarkovChain.load(tmp_path / "missing.safetensors")


def test_interrupt_keeps_finished_pieces(tmp_path):
    lm = TableLM.random(4, 2, seed=0)
    calls, forward = [0], TableLM.__call__

    class Stopping(TableLM):
        def __call__(self, *a, **k):
            calls[0] += 1
            if calls[0] == 12:
                raise KeyboardInterrupt
            return forward(self, *a, **k)
    shy, args = Stopping(lm.table), dict(method="autocorrelation", n=4, warmup=1, samples=12, piece_size=4, folder=tmp_path, seed=3)
    cut = estimate_mixing(shy, [[0, 1]], **args)
    assert not cut.complete and cut.detail["texts"] == 8
    whole, fresh = estimate_mixing(lm, [[0, 1]], **args), estimate_mixing(lm, [[0, 1]], **(args | {"folder": None}))
    assert whole.complete and whole.value == fresh.value and whole.detail["texts"] == 12


def test_window_sweep_and_uniform_counting():
    sweep = window_sweep(TableLM.random(3, 2, seed=1), [1, 2, 3])
    assert list(sweep.K) == [1, 2, 3] and list(sweep.states) == [3, 12, 39]
    assert torch.allclose(frequentist(torch.tensor([1, 0, 1]), 2), torch.tensor([1., 0.], dtype=torch.float64))
