"""The delayed KV cache: the names of the card, Hugging Face families, sets of any shape, bad input."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import VOCAB, hflm, transformer

from arlm_nb.core.generation import decoders, get_decoder, greedy
from arlm_nb.core.masks import causal
from arlm_nb.diffusion import delayed_kv_cache as D
from arlm_nb.diffusion.decoder import masked_diffusion
from arlm_nb.diffusion.delayed_cache import near, unsettled
from arlm_nb.diffusion.denoiser import MaskedLM
from arlm_nb.diffusion.kv_reorder import slots_of, split
from arlm_nb.diffusion.sampling import Remask, TopK, denoise
from arlm_nb.diffusion.step_tasks import KINDS, encode, problems, tokenizer

CARD = "DelayedKVCache concat_reorder delayed_kv_cache representation_drift cache_frontier".split()
MASK = VOCAB - 1


def test_names_of_the_card():
    assert [n for n in (*CARD, *D._all_) if not hasattr(D, n)] == []
    assert "delayed_kv_cache" in decoders() and get_decoder("delayed_kv_cache") is D.delayed_kv_cache


class Causal(MaskedLM):
    def run(self, x_t, t=None, *, mask=None, **more): return super().run(x_t, t, mask=causal() if mask is None else mask, **more)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "bloom", "gpt_neox"])
def test_hugging_face_families(family):
    lm = hflm(family)
    plain = masked_diffusion(lm, [1, 2, 3], max_new_tokens=8, mask_id=MASK)
    assert D.delayed_kv_cache(lm, [1, 2, 3], max_new_tokens=8, mask_id=MASK, refresh=1).ids == plain.ids
    for variant, policy in (("decode", "confidence"), ("pd", "margin"), ("prefill", "random"), ("greedy", "last_scores")):
        g = D.delayed_kv_cache(lm, [1, 2, 3], max_new_tokens=8, mask_id=MASK, variant=variant, policy=policy, refresh=4)
        assert MASK not in g.ids and g.cost.positions < 88
    want = greedy(lm, [1, 2, 3], max_new_tokens=8, stop=False)
    x = torch.tensor([1, 2, 3] + [MASK] * 8)
    for shift in ("un", "both"):  # a causal model from left to right: the ordinary cache, one step late
        cache = D.DelayedKVCache("decode", refresh=None, shift=shift, mask=causal())
        if MASK not in want.ids: assert denoise(Causal(lm, mask_id=MASK, shift=True), x, policy=D.Ordered("left"), steps=8, cache=cache).ids == want.ids


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(0, 1 << 30))
def test_sets_of_any_shape(rows, length, seed):
    again = torch.rand(rows, length, generator=torch.Generator().manual_seed(seed)) < 0.5
    s = split(again)
    assert torch.equal(s.positions.gather(1, slots_of(s, length)), torch.arange(length).expand(rows, -1))
    assert torch.equal(s.real.sum(1), torch.full((rows,), length)) and s.fresh_real.sum() == again.sum()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 11), st.integers(0, 8))
def test_windows(at, width):
    on = torch.arange(12)[None] == at
    found = near(on, width)[0].nonzero()[:, 0].tolist()
    assert len(found) <= width and at not in found and all(abs(i - at) <= (width + 1) // 2 for i in found)


def test_a_token_that_is_taken_back_is_computed_again():
    lm = transformer(causal=False, positions="rotary")
    x = torch.tensor([1, 2, 3] + [MASK] * 8)
    cache = D.DelayedKVCache(refresh=None)
    denoise(MaskedLM(lm, mask_id=MASK), x, policy=Remask(), steps=8, cache=cache)
    for (again, _), masked in zip(cache.log, cache.history): assert not (masked & ~again).any()
    assert unsettled([torch.tensor([[True, False]]), torch.tensor([[False, True]])], 0).tolist() == [[False, True]]


BAD = [
    (dict(refresh=0), "refresh must be >= 1"),
    (dict(delay=-1), "delay must be >= 0"),
    (dict(window=-2), "window must be >= 0"),
    (dict(variant="greedy"), "knows it ahead"),
    (dict(variant="pdd"), "pd"),
    (dict(shift="left"), "right"),
]


@pytest.mark.parametrize("given_, said", BAD)
def test_bad_input(given_, said):
    with pytest.raises(ValueError, match=said): D.delayed_kv_cache(transformer(), [1, 2], max_new_tokens=4, mask_id=MASK, **given_)


def test_more_bad_input():
    model = MaskedLM(transformer(causal=False), mask_id=MASK)
    cache, x = D.DelayedKVCache(), torch.tensor([1, 2, 3] + [MASK] * 8)
    run = dict(policy=TopK(), steps=8)
    denoise(model, x, cache=cache, **run)
    with pytest.raises(ValueError, match="make a new one"): denoise(model, x[1:], cache=cache, **run)
    with pytest.raises(ValueError, match="another text"): denoise(model, torch.cat([x[1:3], x[:1], x[3:]]), cache=cache, **run)
    cache.reset()
    denoise(model, x[1:], cache=cache, **run)
    with pytest.raises(ValueError, match="un, right or both"): D.delayed_kv_cache(MaskedLM(transformer(), mask_id=MASK, shift=True), [1, 2], max_new_tokens=4)
    with pytest.raises(ValueError, match="position_ids"): D.delayed_kv_cache(_deaf(), [1, 2], max_new_tokens=4, mask_id=MASK)
    with pytest.warns(UserWarning, match="window 7"): D.DelayedKVCache(window=7)
    with pytest.raises(ValueError, match="per_step must be >= 1"): D.Ordered(per_step=0)
    with pytest.raises(ValueError, match="add"): problems(3, kinds={"ad": 1.0})


def _deaf():
    "A model whose forward takes no position_ids."
    lm = hflm("llama")
    forward = lm.model.forward
    def without(input_ids=None, attention_mask=None, past_key_values=None, use_cache=None): return forward(input_ids, past_key_values=past_key_values, use_cache=use_cache)
    lm.model.forward = without
    return lm


def test_problems_have_one_form():
    for kind in KINDS:
        rows = encode(problems(20, 3, {kind: 1.0}))
        assert rows.shape == (20, 58) and bool((rows[:, -1] == tokenizer().eos_id).all())
