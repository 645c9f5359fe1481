"""Contrastive tokens: names of the card, random rows against a double loop, Hugging Face families, bad input."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arlm_nb.core.training import fit
from arlm_nb.objectives import contrastive_tokens as M
from tests.models import FLAGSHIP, VOCAB, hflm

CARD = """preceding_negatives contrastive_token_loss unlikelihood_loss sequence_unlikelihood simctg_loss nce_loss contrastive_tokens unlikelihood
simctg repetition Repetition token_gradient""".split()


def test_names_of_the_card():
    assert [n for n in CARD if not hasattr(M, n)] == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(2, 12), st.integers(0, 3), st.sampled_from([1.0, 0.5, 0.25, 3]))
def test_random_rows_against_a_double_loop(seed, window, T, K, ct_length):
    g = torch.Generator().manual_seed(seed)
    z, row = 3 * torch.randn(3, T, 6, generator=g), torch.randint(6, (3, K + T), generator=g)
    x, before, n = row[:, K:], row[:, :K], max(1, round(ct_length * T)) if ct_length <= 1 else min(int(ct_length), T)
    if ct_length > 1: ct_length = n if n > 1 else 1.0 / T
    window = max(2, window)
    losses = {"ct": [], "nce": [], "ul": []}
    for b in range(3):
        for t in range(n):
            label, own = int(x[b, t]), [int(v) for v in row[b, max(0, K + t - window):K + t] if v != row[b, K + t]]
            v, p = z[b, t].double(), z[b, t].double().softmax(-1)
            losses["ct"].append(math.log(1 + sum(math.exp(v[m] - v[label]) for m in own)))
            losses["nce"].append(-math.log(torch.sigmoid(v[label])) - sum(math.log(torch.sigmoid(-v[m])) for m in own))
            losses["ul"].append(-sum(math.log(max(1 - p[m], 1e-5)) for m in own))
    kw = dict(ct_length=ct_length, M=window, before=before)
    for name, loss in (("ct", M.contrastive_token_loss(z, x, **kw)), ("nce", M.nce_loss(z, x, **kw)), ("ul", M.unlikelihood_loss(z, x, unique=False, **kw))):
        assert abs(float(loss) - sum(losses[name]) / len(losses[name])) < 1e-3, name


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_padding_moves_nothing(seed, extra):
    g = torch.Generator().manual_seed(seed)
    z, x = torch.randn(2, 8, 5, generator=g), torch.randint(5, (2, 8), generator=g)
    long, labels = torch.cat([z, torch.randn(2, extra, 5, generator=g)], 1), torch.cat([x, torch.full((2, extra), M.IGNORED)], 1)
    for loss in (M.contrastive_token_loss, M.unlikelihood_loss, M.nce_loss):
        torch.testing.assert_close(loss(long, labels, ct_length=0.5, M=3), loss(z, x, ct_length=0.5, M=3))


@pytest.mark.parametrize("family", FLAGSHIP)
def test_a_hugging_face_model_is_tuned(family):
    lm = hflm(family)
    rows = torch.randint(1, VOCAB, (4, 25), generator=torch.Generator().manual_seed(0))
    objectives = (M.contrastive_tokens, M.simctg, M.nce, lambda *a: M.unlikelihood(*a, sequence=0.5, prefix=6, new_tokens=8, rows=2))
    for objective in objectives:
        run = fit(lm, lambda step, rng: rows, objective, steps=2, lr=1e-3, progress=False, log_every=1)
        assert all(math.isfinite(r["loss"]) for r in run.rows)
    written = M.write(lm, rows[:, :6].tolist(), new_tokens=8)
    assert len(M.repetition(written).frame) == 4


def test_only_label_and_negatives_move_on_a_hugging_face_model():
    lm = hflm("llama")
    ids = torch.randint(VOCAB, (2, 20), generator=torch.Generator().manual_seed(1))
    logits = lm(ids[:, :-1]).logits.detach().requires_grad_()
    M.contrastive_token_loss(logits, ids[:, 1:], ct_length=1.0, M=4, before=ids[:, :1]).backward()
    for b in range(2):
        for t in range(19):
            own = set(ids[b, max(0, t - 3):t + 2].tolist())
            assert set(logits.grad[b, t].nonzero()[:, 0].tolist()) <= own


Z, X = torch.zeros(2, 8, 7), torch.ones(2, 8, dtype=torch.long)


@pytest.mark.parametrize("call,says", [
    (lambda: M.contrastive_token_loss(Z, X, M=0), "M must be > 0"),
    (lambda: M.contrastive_token_loss(Z, X, M=-1), "M must be > 0"),
    (lambda: M.contrastive_token_loss(Z, X, ct_length=0), "ct_length must be > 0"),
    (lambda: M.contrastive_token_loss(Z, X, ct_length=9), "at most the sequence's 8 places, got 9"),
    (lambda: M.contrastive_token_loss(Z, X + 6), "labels must be in 0..6, got 7..7"),
    (lambda: M.nce_loss(Z, -X), "labels must be in 0..6, got -1"),
    (lambda: M.unlikelihood_loss(Z[:, :5], X), "one length"),
    (lambda: M.preceding_negatives(X, 0), "M must be >= 1"),
    (lambda: M.token_gradient(Z[0, 0], 7, [1]), "0..6"),
    (lambda: M.token_gradient(Z[0, 0], 1, [-1]), "0..6"),
    (lambda: M.repeated(X, 0), "n must be >= 1"),
    (lambda: M.sequence_unlikelihood(None, X, new_tokens=2), "new_tokens must be >= n = 4"),
    (lambda: M.repetition([]), "at least one text"),
    (lambda: M.tune("CT2"), "unknown objective 'CT2'; nearest: CT"),
    (lambda: M.contrastive_tokens(hflm("gpt2"), X, negatives="none"), "'preceding' or 'random'"),
    (lambda: M.unlikelihood(None, X, None, sequence=-0.1), r"sequence must be in \[0, 1\]"),
])
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says): call()
