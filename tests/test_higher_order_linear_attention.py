"""Higher-order linear attention on random shapes, its states in batches of decoding, Hugging Face configurations, bad input."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import hflm

from arlm_nb.architectures import higher_order_linear_attention as hla
from arlm_nb.architectures.hla_forms import dense
from arlm_nb.architectures.hla_stream import recurrent, scan
from arlm_nb.core.generation import sample
from arlm_nb.core.transformer import TransformerConfig

CARD = "hla_dense hla_recurrent hla_scan ahla_dense ahla_recurrent ahla_scan hla_combine HLAMixer HLATransformer state_bytes linearity_report".split()


def test_names_of_the_card():
    assert [n for n in CARD if not hasattr(hla, n)] == []


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([("linear", 0.8, True), ("hla2", 0.8, True), ("hla2", 0.9, False), ("ahla", 0.7, True), ("hla3", 1.0, True)]),
       st.integers(1, 40), st.integers(1, 50), st.integers(0, 39), st.integers(1, 6), st.integers(1, 6))
def test_forms_agree(case, T, chunk, cut, d, dv):
    q, k, v = hla.random_qkv(T, d, dv, lead=(2,), seed=T)
    want, cut = dense(q, k, v, *case), min(cut, T - 1)
    close = dict(atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(recurrent(q, k, v, *case)[0], want, **close)
    torch.testing.assert_close(scan(q, k, v, *case, chunk=chunk)[0], want, **close)
    if cut:
        first, state = scan(q[:, :cut], k[:, :cut], v[:, :cut], *case, chunk=chunk)
        torch.testing.assert_close(torch.cat([first, recurrent(q[:, cut:], k[:, cut:], v[:, cut:], *case, state=state)[0]], 1), want, **close)


def test_batches_of_one_length_and_rows_that_end():
    torch.manual_seed(0)
    lm = hla.HLATransformer(TransformerConfig(13, d_model=32, n_layers=2, n_heads=4, positions="rotary"), variant="ahla", gamma=0.9).eval()
    prompts = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    both = sample(lm, prompts, max_new_tokens=6, seed=2, stop=[11, 12])
    assert all(1 <= len(g.ids) <= 6 for g in both)
    assert sample(lm, prompts[0], max_new_tokens=6, seed=2, stop=[11, 12]).ids == both[0].ids
    with pytest.raises(ValueError, match="pass prompts of one length"): sample(lm, [[1], [2, 3]], max_new_tokens=2)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_state_bytes_of_hugging_face_models(family):
    lm = hflm(family)
    table = hla.state_bytes(lm.config, (8,), 4)
    cache = lm.new_cache()
    with torch.no_grad(): lm(torch.ones(1, 8, dtype=torch.long), cache=cache)
    assert table.kv_cache[0] == sum(4 * 2 * cache.keys(l).numel() for l in range(lm.n_layers))


@pytest.mark.parametrize("wrong, message", [(dict(gamma=0), "gamma"), (dict(gamma=1.1), "gamma"), (dict(order=1), "order"), (dict(order=3, gamma=0.5), "no decay"),
                                            (dict(order=3, masked=False), "second order only"), (dict(chunk=0), "chunk")])
def test_bad_input(wrong, message):
    with pytest.raises(ValueError, match=message): hla.hla_scan(*hla.random_qkv(5, 3), **wrong)
