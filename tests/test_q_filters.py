"""Q-Filters on Hugging Face families, on bad input, and the bounded cache under any order of chunks."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import FAMILIES, VOCAB, hflm

from arlm_nb.core.generation import get_decoder, greedy
from arlm_nb.core.lm import TableLM
from arlm_nb.core.masks import causal
from arlm_nb.core.transformer import Transformer, TransformerConfig
from arlm_nb.efficiency.compressed_cache import CompressedCache, compress
from arlm_nb.efficiency.evicting_decode import q_filter_generate, streaming_nll, streaming_perplexity
from arlm_nb.efficiency.eviction_scores import (
    h2o_score, knorm_score, q_filter_score, random_score, snapkv_score, streaming_score)
from arlm_nb.efficiency.needle_eval import needle
from arlm_nb.efficiency.needle_task import NeedleTask
from arlm_nb.efficiency.q_geometry import attention_sites, compute_filters, geometry

CLOSE = dict(atol=2e-4, rtol=2e-4)


@pytest.fixture
def ids():
    return torch.randint(1, VOCAB, (2, 24), generator=torch.Generator().manual_seed(1))


def usable(family):
    lm = hflm(family)
    try:
        CompressedCache(lm, 8, random_score(), recent=2)
    except ValueError as e:
        return lm, str(e)
    return lm, None


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_families(family, ids):
    lm, why = usable(family)
    if why:
        assert "ALiBi" in why or "sliding window" in why or "shows neither" in why
        return
    filters = compute_filters(lm, ids)
    site = attention_sites(lm)[0]
    with lm.record(site) as seen:
        full = lm(ids).logits
    q = seen.stack(site).flatten(1, 2).double()
    u = torch.linalg.svd(q[1, :, 0])[2][0]
    if lm.n_kv_heads == lm.n_heads:
        assert abs(abs(float(u @ filters.u[1, 0].double())) - 1) < 1e-4
    for score in (q_filter_score(filters), snapkv_score(4, 3), h2o_score()):
        cache, parts = CompressedCache(lm, 24, score, recent=4), []
        with cache.watch(lm):
            for part in ids.split(5, 1):
                parts.append(lm(part, cache=cache).logits)
        torch.testing.assert_close(torch.cat(parts, 1), full, **CLOSE)
        assert streaming_nll(lm, ids, CompressedCache(lm, 8, score, recent=2)).isfinite().all()


@torch.no_grad()
def test_streaming_on_a_grouped_family_equals_masks(ids):
    lm = hflm("llama")
    filters = compute_filters(lm, ids)
    cache, out, held = CompressedCache(lm, 8, q_filter_score(filters), recent=3), [], []
    for t in range(ids.shape[1]):
        held.append([None if s is None else cache.at(l).clone() for l, s in enumerate(cache.states)])
        out.append(lm(ids[:, t:t + 1], cache=cache).logits)
    T, group = ids.shape[1], lm.n_heads // lm.n_kv_heads
    with lm.record("resid_pre", layers=[0]) as seen:
        lm(ids)
    x = seen["resid_pre", 0]
    for l in range(lm.n_layers):
        mask = torch.zeros(2, lm.n_kv_heads, T, T, dtype=torch.bool)
        for t in range(T):
            if held[t][l] is not None:
                mask[:, :, t].scatter_(-1, held[t][l], True)
        mask |= torch.eye(T, dtype=torch.bool)
        x = lm.forward_layers(x, l, l + 1, mask=mask.repeat_interleave(group, 1))
    torch.testing.assert_close(torch.cat(out, 1), lm.unembed(lm.final_norm(x)), **CLOSE)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return Transformer(TransformerConfig(VOCAB, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, context_length=64, positions="rotary"), name="small").eval()


@settings(max_examples=15, deadline=None)
@given(chunks=st.lists(st.integers(1, 9), min_size=2, max_size=6), budget=st.integers(4, 12), recent=st.integers(0, 4), every=st.integers(1, 4))
def test_any_chunks_keep_the_promise(small, chunks, budget, recent, every):
    ids = torch.randint(VOCAB, (2, sum(chunks)), generator=torch.Generator().manual_seed(0))
    cache = CompressedCache(small, budget, knorm_score(), recent=recent, every=every)
    with torch.no_grad():
        for part in ids.split(chunks, 1):
            small(part, cache=cache)
            assert cache.slots <= budget + every - 1
    assert cache.length == ids.shape[1]
    for l in range(2):
        for row in cache.at(l).flatten(0, 1).tolist():
            assert len(set(row)) == len(row) == cache.slots
            assert set(range(max(0, cache.settled[0] - recent), cache.length)) <= set(row)


@torch.no_grad()
def test_explicit_mask_over_slots(small, ids):
    cache = CompressedCache(small, 8, random_score(), recent=2)
    small(ids[:, :20], cache=cache)
    assert (cache.slots, cache.length) == (8, 20)
    whole = small(ids[:, 20:24], cache=cache.clone()).logits
    torch.testing.assert_close(small(ids[:, 20:24], cache=cache.clone(), mask=causal()).logits, whole)
    with pytest.raises(ValueError, match="broadcastable"):
        small(ids[:, 20:24], cache=cache.clone(), mask=torch.ones(4, 24, dtype=torch.bool))


def test_bad_input(small, ids):
    filters = compute_filters(small, ids)
    score = q_filter_score(filters)
    for wrong, why in (
        (lambda: CompressedCache(small, 4, score, recent=3, sinks=2), "recent \\+ sinks = 5 and >= 1, got 4"),
        (lambda: CompressedCache(small, 0, score, recent=0), "got 0"),
        (lambda: CompressedCache(small, 8, score, recent=-1), "recent and sinks must be >= 0"),
        (lambda: CompressedCache(hflm("gpt2"), 8, score, recent=2), "filters must be"),
        (lambda: compute_filters(small, ids[:1, :7]), "at least d_head = 8 tokens, got 7"),
        (lambda: compute_filters(TableLM.random(4), ids), "shows neither"),
        (lambda: geometry(TableLM.random(4), ids, filters), "filters must be|has no attribute|shows neither"),
        (lambda: compress(small.new_cache(), 2, score), "has read something"),
        (lambda: compress(CompressedCache(small, 8, score, recent=2), 2, score), "plain KVCache"),
        (lambda: streaming_perplexity(small, ids, small.new_cache(2), start=23), "start must be in 0..22"),
        (lambda: snapkv_score(kernel=4), "kernel odd"),
        (lambda: streaming_score(-1), "sinks must be >= 0"),
        (lambda: needle(small, NeedleTask(), score=score), "tokens, the task"),
        (lambda: q_filter_generate(small, [1, 2], filters=score, budget=8, recent=9, max_new_tokens=2), "recent = 9"),
        (lambda: q_filter_generate(small, [1] * 60, filters=score, budget=8, recent=2, max_new_tokens=20), "do not fit the context"),
    ):
        with pytest.raises((ValueError, AttributeError), match=why):
            wrong()
    alibi = Transformer(TransformerConfig(VOCAB, d_model=32, n_layers=1, n_heads=2, positions="alibi"), name="alibi")
    with pytest.raises(ValueError, match="uses ALiBi"):
        CompressedCache(alibi, 8, random_score(), recent=2)
    with pytest.raises(ValueError, match="counted the tokens"):
        cache = CompressedCache(small, None, h2o_score())
        with torch.no_grad(), cache.watch(small):
            small(ids, cache=cache)
        cache.crop(20)


def test_decoder_is_registered(small):
    decoder = get_decoder("q_filters")
    prompt = [3, 1, 4, 1, 5]
    want = greedy(small, prompt, max_new_tokens=10, stop=False).ids
    assert decoder(small, prompt, filters=knorm_score(), budget=32, max_new_tokens=10, stop=False).ids == want
