"""The log-likelihood map: vectors of every shape of model, windows, invariances on random matrices."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import FAMILIES, VOCAB, any_lm

from arlm_nb.core.lm import TableLM
from arlm_nb.core.scoring import loglik_vector, scoring_windows
from arlm_nb.theory import loglikelihood_map as llm
from arlm_nb.theory.exact_divergence import exact_kl, log_ratio_moments
from arlm_nb.theory.loglik import TextSet
from arlm_nb.theory.map_uses import loglik_matrix
from arlm_nb.theory.model_matrix import ModelMatrix


def test_names_of_the_card():
    for n in "reference_texts loglik_vector loglik_matrix ModelMatrix exact_kl kl_monte_carlo".split(): assert hasattr(llm, n), n
    for n in "centred distance map nearest tree predict text_map".split(): assert hasattr(llm.ModelMatrix, n), n


@pytest.mark.parametrize("name", ["transformer", *FAMILIES])
def test_vector_is_the_sum_of_conditionals(name):
    lm, g = any_lm(name), torch.Generator().manual_seed(0)
    rows = [torch.randint(VOCAB, (n,), generator=g).tolist() for n in (3, 40, 17, 2)]
    found = loglik_vector(lm, rows, batch_tokens=60)
    for row, value in zip(rows, found):
        with torch.no_grad(): logp = lm(torch.tensor([row])).logits[0, :-1].double().log_softmax(-1)
        assert abs(float(logp.gather(-1, torch.tensor(row[1:])[:, None]).sum()) - value) < 2e-3
    if lm.context_length < 59:  # ALiBi models have no end
        with pytest.raises(ValueError, match="pass stride="): loglik_vector(lm, [[1] * 60])


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 60), st.integers(1, 20), st.integers(1, 20))
def test_windows_score_each_token_once(n, context, stride):
    if n - 1 > context and stride > context: return
    windows = scoring_windows(n, context, stride)
    scored = [t for start, stop, first in windows for t in range(first, stop + 1)]
    assert scored == list(range(1, n))
    for start, stop, first in windows:
        assert 0 <= start < first <= stop and stop - start <= context
        assert start == 0 or first - start >= context - stride + 1  # enough to read before the first that is scored


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(3, 30))
def test_matrix_invariances(seed, K, N):
    rng = np.random.default_rng(seed)
    own, names = TextSet(tuple(map(str, range(N)))), list("abcdef"[:K])
    L = rng.normal(size=(K, N)) * 10 - 100
    D = ModelMatrix(L, names, own).distance(0).frame.to_numpy()
    order = rng.permutation(N)
    for other in (L + rng.normal(size=(K, 1)), L + rng.normal(size=(1, N)), L[:, order]):
        np.testing.assert_allclose(ModelMatrix(other, names, own).distance(0).frame.to_numpy(), D, atol=1e-8)
    root = np.sqrt(D)
    assert (root[:, :, None] <= root[:, None, :] + root.T[None] + 1e-9).all() and (D == D.T).all() and (np.diag(D) == 0).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 2), st.integers(1, 2), st.integers(1, 9))
def test_divergence_is_positive_and_grows(seed, a, b, length):
    p, q = TableLM.random(3, a, seed=seed), TableLM.random(3, b, seed=seed + 1)
    assert 0 <= exact_kl(p, q, length) <= exact_kl(p, q, length + 1)
    assert exact_kl(p, p, length) == 0 and abs(log_ratio_moments(q, p, p, length)[1]) < 1e-12


def test_a_model_that_fails_says_which():
    texts = TextSet(("ab", "cd"))
    class Broken:
        name, context_length, tokenizer = "broken", 10, None
    with pytest.raises(RuntimeError, match="item 1: ValueError: broken has no tokenizer"):
        class Bytes:
            bos_id = 0
            def encode(self, text): return [ord(c) % VOCAB for c in text]
        lm = any_lm("transformer")
        lm.tokenizer = Bytes()
        loglik_matrix({"a": lm, "b": Broken()}, texts)
