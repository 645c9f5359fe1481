"""n-grams, statistics and metrics on random input, odd sizes and bad input."""
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arlm_nb.core import metrics, statistics
from arlm_nb.core.lm import TableLM
from arlm_nb.core.ngram import NgramLM

KINDS = st.sampled_from(["modified", "single", 0.0, 0.4, 1.0])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 6), KINDS, st.sampled_from([None, 0, 4]), st.lists(st.integers(0, 4), max_size=12))
def test_ngram_is_a_distribution_and_scores_by_it(ids, order, kind, eos, text):
    lm = NgramLM.fit(ids, order, 5, kind, eos)
    with np.errstate(divide="ignore"):  # a discount of 0 leaves nothing for unseen tokens
        scored = lm.log_prob(text)
        for i in range(len(text) + 1):
            p = lm.distribution(text[:i])
            assert abs(p.sum() - 1) < 1e-9 and p.min() >= 0
            if i < len(text): assert scored[i] == pytest.approx(math.log(p[text[i]]) if p[text[i]] > 0 else -math.inf, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=40), st.integers(2, 4))
def test_ngram_forgets_the_document_before(ids, order):
    lm = NgramLM.fit(ids, order, 4, eos=0)
    for before in ([], [1], [3, 2, 1]):
        assert np.array_equal(lm.log_prob([*before, 0, 2, 3, 1])[-3:], lm.log_prob([2, 3, 1]))


def test_ngram_large_vocabulary_and_order():
    "Order 7 over 200,000 tokens: packed keys must not overflow."
    rng = np.random.default_rng(0)
    ids = np.concatenate([rng.integers(0, 200_000, 3000), np.tile(rng.integers(199_000, 200_000, 9), 40)])
    lm = NgramLM.fit(torch.from_numpy(ids), 7, 200_000)
    assert lm.distribution(ids[-6:]).argmax() == ids[-9] and lm.log_prob(ids[-9:])[-1] > -0.5
    assert abs(lm.distribution(ids[100:106]).sum() - 1) < 1e-9


def test_ngram_is_quick():
    "Half a million tokens of order 5 in a tenth of what 5 million may take."
    rng = np.random.default_rng(0)
    ids = rng.zipf(1.3, 600_000) % 4096
    began = time.process_time()
    lm = NgramLM.fit(ids[:500_000], 5, 4096)
    lm.log_prob(ids[500_000:])
    assert time.process_time() - began < 8


@pytest.mark.parametrize("call, message", [
    (lambda: NgramLM.fit([0, 5], 2, 5), "ids must be in 0..4, got 0..5"),
    (lambda: NgramLM.fit([0], 2, 5, discounts="best"), 'discounts must be "modified"'),
    (lambda: NgramLM.fit([0, 1], 2, 5).log_prob([7]), "ids must be in 0..4"),
    (lambda: NgramLM.fit([0, 1], 2, 5).as_lm()(torch.tensor([[0]]), positions=torch.tensor([[3]])), "must be None"),
    (lambda: statistics.bootstrap([]), r"at least 1 value\(s\) needed"),
    (lambda: statistics.bootstrap([1, math.nan]), "must not hold NaN"),
    (lambda: statistics.paired_bootstrap([1, 2], [1]), "need one shape"),
    (lambda: statistics.wilson(3, 2), r"successes must be in 0\.\.n"),
    (lambda: statistics.chi_square([1, 2], [0.5, 0.6]), "sum to 1, got 1.1"),
    (lambda: statistics.chi_square([1, 2], [0.2, 0.3, 0.5]), "need one shape"),
    (lambda: statistics.exact_sequence_distribution(TableLM.random(10, 1), [0], 9), "2,000,000, got 10"),
    (lambda: statistics.same_distribution([[1, 2]], [[1], [2]], [0.5, 0.5]), r"samples must be \[N, 1\]"),
    (lambda: metrics.bits_per_byte([1.0], 0), "n_bytes must be >= 1"),
    (lambda: metrics.bleu(["a", "b"], ["a"]), "2 hypotheses need as many references, got 1"),
    (lambda: metrics.coherence(TableLM.random(4, 1), [], [1]), "at least one token"),
    (lambda: metrics.frechet_distance([[1.0]], [[1.0], [2.0]]), r"features must be \[n >= 2, d\]"),
    (lambda: metrics.mauve_like(np.zeros((3, 2)), np.zeros((3, 1))), r"features must be"),
    (lambda: metrics.calibration_error([0.5], [1, 0]), "one shape"),
    (lambda: metrics.average_lagging([], 3, 3), "delays must not be empty"),
    (lambda: metrics.repetition([]), "at least one text")])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message): call()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(0, 1000))
def test_pooling_keeps_every_count_and_leaves_no_small_cell(counts, seed):
    expected = np.random.default_rng(seed).dirichlet(np.full(len(counts), 0.3)) * 60 + 1e-9
    observed, pooled = statistics._pool(np.array(counts, float), expected)
    assert observed.sum() == sum(counts) and pooled.sum() == pytest.approx(expected.sum())
    assert pooled.min() >= 5 or len(pooled) == 1


def test_exact_distribution_in_batches_is_the_same():
    lm = TableLM.random(5, 2, seed=4)
    whole, small = (statistics.exact_sequence_distribution(lm, [1, 0, 3], 3, batch=b) for b in (4096, 7))
    assert torch.equal(whole[0], small[0]) and torch.equal(whole[1], small[1])
    torch.testing.assert_close(statistics.exact_sequence_distribution(lm, [3], 1)[1], lm.table[0, 3])


def test_frechet_against_the_matrix_square_root():
    from scipy.linalg import sqrtm
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(80, 5))
    a, b = np.cov(x.T), np.cov(y.T)
    assert metrics.frechet_distance(x, y) == pytest.approx(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real), rel=1e-9)
    assert metrics.frechet_distance(torch.from_numpy(x), torch.from_numpy(x[:, :1].repeat(5, 1))) >= 0


def test_holm_against_statsmodels():
    from statsmodels.stats.multitest import multipletests
    p = np.random.default_rng(0).random(30) ** 3
    np.testing.assert_allclose(statistics.holm(p), multipletests(p, method="holm")[1])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_share_of_pairs(rows):
    s, y = zip(*rows)
    if all(y) or not any(y):
        with pytest.raises(ValueError, match="both kinds"): statistics.auroc(s, y)
        return
    wins = [(a > b) + 0.5 * (a == b) for a, p in rows if p for b, n in rows if not n]
    assert abs(statistics.auroc(s, y) - np.mean(wins)) < 1e-12
