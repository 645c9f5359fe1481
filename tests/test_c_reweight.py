"""C-reweight on Hugging Face models, and its exactness as a property."""
import pytest
import torch
from hypothesis import given, settings, strategies as st
from tests.models import any_lm

from arlm_nb.core.generation import decoders, get_decoder
from arlm_nb.watermark.c_reweight import ClusterKey, ClusterWatermarkProcessor, c_reweight_decoder, cluster_codebook, detect_tokens, reweight


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 9), st.floats(0, 0.5), st.integers(0, 10_000))
def test_an_order_and_its_reverse_give_the_law_back(m, alpha, seed):
    g = torch.Generator().manual_seed(seed)
    p = torch.rand(3, 20, generator=g, dtype=torch.double) ** 4
    p[:, 3] = 0
    p, labels, order = p / p.sum(1, keepdim=True), torch.randint(m, (20,), generator=g), torch.rand(3, m, generator=g).argsort(1)
    both = reweight(p, labels, order, alpha), reweight(p, labels, order.flip(1), alpha)
    torch.testing.assert_close((both[0] + both[1]) / 2, p, atol=1e-12, rtol=0)
    assert all((q >= 0).all() and (q.sum(1) - 1).abs().max() < 1e-9 for q in both)


@pytest.mark.parametrize("family", ["transformer", "llama"])
def test_text_is_marked_and_detected(family):
    lm = any_lm(family)
    labels = cluster_codebook(lm.embed(torch.arange(lm.vocab_size)), 16)
    key = ClusterKey(5, labels, context="neighbours", h=2)
    texts = c_reweight_decoder(lm, [[5, 8], [5, 1]], key=key, max_new_tokens=40, temperature=2.0, stop=False)
    right = sum(detect_tokens(g.ids, key).z for g in texts)
    assert right > sum(detect_tokens(g.ids, ClusterKey(6, labels, context="neighbours", h=2)).z for g in texts) + 2


def test_processor_gives_the_rule_of_the_decoder():
    labels = torch.arange(12) % 4
    key, processor = ClusterKey(3, labels), ClusterWatermarkProcessor(ClusterKey(3, labels))
    scores, ids = torch.randn(2, 12, generator=torch.Generator().manual_seed(0)), torch.tensor([[1, 2], [3, 4]])
    expected = reweight(scores.double().softmax(-1), labels, key.orders([(0, 4)] * 2), 0.5)
    torch.testing.assert_close(processor(ids, scores).exp(), expected.float(), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="call reset"): processor(torch.ones(3, 3, dtype=torch.long), scores)


def test_found_by_key():
    assert "c_reweight" in decoders() and callable(get_decoder("c_reweight"))
