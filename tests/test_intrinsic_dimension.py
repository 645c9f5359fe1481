"""Local intrinsic dimension: invariances on random clouds, states of every shape of model, the scorer on Hugging Face models."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import FAMILIES, FLAGSHIP, VOCAB, any_lm

from arlm_nb.core.scoring import answer_logprobs
from arlm_nb.interp import intrinsic_dimension as idm
from arlm_nb.interp.lid import lid_geomle, lid_mle, lid_twonn, local_pca_dimension, sorted_distances
from arlm_nb.interp.lid_states import hidden_states, lid_by_layer
from arlm_nb.interp.truth import TruthfulnessScorer, truth_benchmark
from arlm_nb.interp.uncertainty import p_true, predictive_entropy, sample_answers, semantic_entropy


def test_names_of_the_card():
    names = """lid_mle lid_geomle lid_twonn local_pca_dimension hidden_states TruthfulnessScorer truth_benchmark lid_by_layer lid_along_generation
    lid_during_training predictive_entropy semantic_entropy p_true""".split()
    assert [n for n in names if not hasattr(idm, n)] == []


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(1e-6, 1e6), st.sampled_from(["mle", "geomle", "twonn", "pca"]))
def test_scale_turn_shift(seed, d, scale, name):
    rng = np.random.default_rng(seed)
    x, ref, turn = rng.normal(size=(7, d)), rng.normal(size=(90, d)), np.linalg.qr(rng.normal(size=(9, d)))[0].T
    fn = {"mle": lambda a, b: lid_mle(a, b, k=9), "geomle": lambda a, b: lid_geomle(a, b, k_range=(6, 30), n_boot=4),
          "twonn": lambda a, b: lid_twonn(a, b, k=9), "pca": lambda a, b: local_pca_dimension(a, b, k=9)}[name]
    move = lambda v: scale * (v @ turn) + scale
    np.testing.assert_allclose(fn(move(x), move(ref)), fn(x, ref), rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 12))
def test_neighbours_are_the_nearest(seed, n):
    x = np.random.default_rng(seed).integers(0, 4, size=(n, 2)).astype(float)  # many twins
    x = np.vstack([x, [[9.0, 9.0], [11.0, 5.0]]])
    with pytest.warns(UserWarning, match="twins") if len(np.unique(x, axis=0)) < len(x) else __import__("contextlib").nullcontext():
        r, order = sorted_distances(x, need=1)
    for i in range(len(x)):
        want = sorted(d for j in range(len(x)) if (d := np.linalg.norm(x[i] - x[j])) > 0)
        np.testing.assert_allclose(r[i][:len(want)], want)
        assert np.isinf(r[i][len(want):]).all()
        np.testing.assert_allclose(np.linalg.norm(x[order[i][:len(want)]] - x[i], axis=1), want)


def pairs(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randint(VOCAB, (int(torch.randint(2, 6, (1,), generator=g)),), generator=g).tolist(), torch.randint(VOCAB, (3,), generator=g).tolist()) for _ in range(n)]


@pytest.mark.parametrize("name", ["transformer", *FAMILIES])
def test_states_and_logprobs(name):
    lm, texts = any_lm(name), pairs(5)
    states, scores = hidden_states(lm, texts), answer_logprobs(lm, texts)
    assert states.shape == (3, 5, 32)
    for i, (prompt, answer) in enumerate(texts):
        with torch.no_grad(), lm.record("resid_post") as seen: logp = lm(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
        np.testing.assert_allclose(states[:, i], seen.stack("resid_post")[:, 0, -1].double().numpy(), atol=1e-4, rtol=1e-3)
        want = [float(logp[len(prompt) - 1 + j, t]) for j, t in enumerate(answer)]
        np.testing.assert_allclose(scores[i][:, 0], want, atol=1e-4)


@pytest.mark.parametrize("name", FLAGSHIP)
def test_scorer_and_baselines(name):
    lm, texts = any_lm(name), pairs(70)
    scorer = TruthfulnessScorer(lm, texts, k_range=(5, 25), n_boot=3)
    assert scorer.score(pairs(4, seed=1)).shape == (4,) and 0 <= scorer.layer < 3
    assert lid_by_layer(lm, texts, k=8).shape == (3, 70)
    items = [idm.Answered(p, a, i % 2 == 0) for i, (p, a) in enumerate(pairs(12, seed=2))]
    samples = sample_answers(lm, [i.prompt for i in items], n=2, max_new_tokens=2, stop=False)
    table = truth_benchmark(lm, items, scorers={"lid": scorer, "entropy": lambda lm, items: -predictive_entropy(samples=samples)})
    assert list(table.frame.scorer) == ["lid", "entropy"] and table.frame.auroc.between(0, 1).all()
    assert (semantic_entropy(samples=samples) <= np.log(2) + 1e-9).all()


def test_p_true_reads_both_words():
    class Words:
        bos_id = eos_id = None
        def encode(self, text): return [ord(c) % VOCAB for c in text]
        def decode(self, ids): return " ".join(map(str, ids))
    lm = any_lm("transformer")
    lm.tokenizer = Words()
    a = p_true(lm, [("ab", "cd")], template="{prompt}{answer}?", yes="yes", no="no")
    b = p_true(lm, [("ab", "cd")], template="{prompt}{answer}?", yes="no", no="yes")
    np.testing.assert_allclose(a + b, 1.0)
