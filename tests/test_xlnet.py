"""XLNet: its own Hugging Face class under an order, causal families asked in an order, random orders and memories, bad input."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import VOCAB, hflm, transformer

from arlm_nb.core.generation import greedy
from arlm_nb.objectives import xlnet as X

CARD = "XLNet two_stream order_mask permutation masked log_prob dependency_gap order_logits".split()


def small(**kw):
    torch.manual_seed(0)
    lm = X.XLNet(9, 16, 2, 2, **kw)
    for m in lm.modules():
        if isinstance(m, torch.nn.Embedding): m.weight.data.mul_(8)
    return lm.double().eval()


def test_names_of_the_card():
    assert [n for n in CARD if not hasattr(X, n)] == []


@pytest.mark.parametrize("family", ["transformer", "gpt2", "llama"])
def test_identity_order_of_causal_models(family):
    lm = transformer() if family == "transformer" else hflm(family)
    ids = torch.randint(1, VOCAB, (1, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(): want = lm(ids).logits[0, :-1]
    torch.testing.assert_close(X.order_logits(lm, ids, range(9))[1:], want, atol=1e-4, rtol=1e-4)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    out = X.order_logits(lm, ids, order)
    changed = ids.clone()
    changed[0, order[5]] = (changed[0, order[5]] + 1) % VOCAB
    moved = (X.order_logits(lm, changed, order) - out).abs().amax(1) > 0
    assert not moved[order[:6]].any()  # what comes later in the order is not seen


def test_hugging_face_xlnet_under_an_order():
    from transformers import XLNetConfig, XLNetLMHeadModel
    torch.manual_seed(0)
    model = XLNetLMHeadModel(XLNetConfig(vocab_size=VOCAB, d_model=32, n_layer=2, n_head=4, d_inner=64, dropout=0.0)).eval()
    for p in model.parameters(): p.data.mul_(4) if p.dim() >= 2 else None
    ids, order = torch.randint(1, VOCAB, (1, 7)), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    out = X.order_logits(model, ids, order)
    for t in range(7):
        changed = ids.clone()
        changed[0, order[t]] = (changed[0, order[t]] + 1) % VOCAB
        moved = (X.order_logits(model, changed, order) - out).abs().amax(1) > 1e-6
        assert not moved[order[:t + 1]].any() and moved[order[t + 1:]].all() or t == 6


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 7), st.integers(0, 5), st.integers(0, 10_000))
def test_memory_and_orders(T, M, seed):
    g = torch.Generator().manual_seed(seed)
    lm, ids = small(mem_len=8), torch.randint(9, (1, T + M), generator=g)
    order = torch.randperm(T, generator=g)
    whole = torch.cat([torch.arange(M), M + order])
    past = lm.remember(ids[:, :M]) if M else None
    with torch.no_grad():
        a, b = lm(ids[:, M:], order=order, memory=past).logits, lm(ids, order=whole).logits[:, M:]
    torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)  # the first segment left to right, then the second in its order


def test_it_is_an_lm():
    lm = small().float()
    out = greedy(lm, [1, 2, 3], max_new_tokens=5)
    text = [1, 2, 3]
    for t in out.ids:
        with torch.no_grad(): assert int(lm(torch.tensor([text])).logits[0, -1].argmax()) == t
        text.append(t)
    both = greedy(lm, [[1, 2, 3], [4]], max_new_tokens=4)
    assert both[0].ids == out.ids[:4] and both[1].ids == greedy(lm, [4], max_new_tokens=4).ids  # left padding by mask and positions
    with lm.record("resid_post") as seen: lm(torch.tensor([[1, 2]]))
    assert seen.stack("resid_post").shape == (2, 1, 2, 16)


@pytest.mark.parametrize("call, message", [
    (lambda lm: lm(torch.tensor([[1, 2]]), order=torch.tensor([1, 1])), "once a row"),
    (lambda lm: X.permutation(lm, torch.ones(1, 8, dtype=torch.long), torch.Generator(), K=1), "K must be > 1"),
    (lambda lm: X.log_prob(lm, torch.tensor([[1, 2]]), [0], given=[0]), "given overlaps"),
    (lambda lm: lm(torch.tensor([[1, 2]]), order=torch.arange(2), segments=torch.tensor([[0, 1]])), "needs SEP"),
    (lambda lm: X.XLNet(9, mem_len=2, positions="absolute"), "needs relative positions"),
    (lambda lm: X.load_reference("roberta"), "nearest"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message): call(small())
