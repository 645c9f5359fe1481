"""Substring search on Hugging Face models, with transformers' own generate, and the index on random corpora."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import VOCAB, any_lm, hf_model

from arlm_nb.core.generation import decoders, get_decoder
from arlm_nb.retrieval import substring_search as S
from arlm_nb.retrieval.fm_index import FMIndex

DOCS = [torch.randint(1, VOCAB, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (9, 14, 6, 20, 11)]


def test_names_of_the_card():
    names = ("FMIndex substring_processor decode_ngrams NgramHits decode_substring ngram_weight score_documents search RankTable seal_pairs evaluate_retrieval "
             "RetrievalTable bm25 DualEncoder title_trie").split()
    assert [n for n in names if not hasattr(S, n)] == []
    assert all(hasattr(FMIndex, n) for n in "build range extend count next_tokens locate extract nbytes save load".split())
    assert "substring_search" in decoders() and get_decoder("substring_search") is S.decode_substring


@pytest.mark.parametrize("name", ["transformer", "gpt2", "llama", "bloom"])
def test_keys_and_quotations(name):
    lm, index = any_lm(name), FMIndex.build(DOCS, 3, vocab_size=VOCAB)
    hits = S.decode_ngrams(lm, [5, 9, 2], index, beam=4, length=5, title=[7, 7], title_length=3)
    assert all(k.count == index.range(k.tokens, k.start).count > 0 for k in hits.keys) and {k.start for k in hits.keys} == {True, False}
    with torch.no_grad(): torch.testing.assert_close(S.rescore(lm, hits), torch.tensor([k.logprob for k in hits.keys]), atol=1e-3, rtol=1e-3)
    found = S.score_documents(hits, index)
    assert found.score == sorted(found.score, reverse=True) and set(found.doc) <= set(range(5))
    for temperature in (0.0, 1.0):
        for g in S.decode_substring(lm, [[5, 9, 2], [4]], index=index, max_new_tokens=12, temperature=temperature, stop=False):
            assert index.count(g.ids) > 0 and (len(g.ids) == 12 or index.next_tokens(index.range(g.ids)) == ([], []))


@pytest.mark.parametrize("beams", [1, 3])
def test_transformers_generate_stays_in_the_corpus(beams):
    index, model = FMIndex.build(DOCS, vocab_size=VOCAB), hf_model("gpt2")
    prompt = torch.tensor([[5, 9, 2]])
    process = S.substring_processor(index, start=3, end=0)
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), logits_processor=[process], num_beams=beams, max_new_tokens=10, do_sample=False)
    new = out[0, 3:].tolist()
    gram = new[:new.index(0)] if 0 in new else new
    assert len(gram) > 0 and index.count(gram) > 0
    if beams == 1:
        assert gram == S.decode_substring(any_hf(model), [5, 9, 2], index=index, max_new_tokens=10, stop=False).ids


def any_hf(model):
    from arlm_nb.core.hflm import HFLM
    return HFLM(model)


def test_transformers_encoder_decoder():
    import transformers
    config = transformers.BartConfig(vocab_size=VOCAB, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                                     encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=48, pad_token_id=0, bos_token_id=0, eos_token_id=0,
                                     decoder_start_token_id=0, forced_eos_token_id=None)
    torch.manual_seed(0)
    model, index = transformers.BartForConditionalGeneration(config).eval(), FMIndex.build(DOCS, vocab_size=VOCAB)
    out = model.generate(torch.tensor([[5, 9, 2]]), logits_processor=[S.substring_processor(index, start=1, end=0)], num_beams=3, max_new_tokens=8)
    new = out[0, 1:].tolist()
    gram = new[:new.index(0)] if 0 in new else new
    assert len(gram) > 0 and index.count(gram) > 0


corpora = st.integers(1, 40).flatmap(lambda V: st.tuples(st.just(V), st.lists(st.lists(st.integers(0, V - 1), max_size=12), min_size=1, max_size=6)))


@settings(max_examples=60, deadline=None)
@given(corpora, st.integers(1, 9), st.data())
def test_index_is_the_corpus(corpus, rate, data):
    V, docs = corpus
    if not any(docs): return
    index = FMIndex.build(docs, rate, vocab_size=V)
    assert index.documents(range(len(docs))) == docs
    gram = data.draw(st.lists(st.integers(0, V - 1), min_size=1, max_size=3))
    want = [(d, i) for d, t in enumerate(docs) for i in range(len(t)) if t[i:i + len(gram)] == gram]
    assert index.locate(index.range(gram)) == want and index.count(gram) == len(want)


@pytest.mark.parametrize("call, message", [
    (lambda: FMIndex.build([]), "holds no token"),
    (lambda: FMIndex.build([[1, -1]]), "token -1"),
    (lambda: FMIndex.build([[9]], vocab_size=9), "allowed are 0 to 8"),
    (lambda: FMIndex.build([[1]], 0), "sample_rate must be >= 1"),
    (lambda: FMIndex.build([[1, 2]], separator=2), "holds the separator 2"),
    (lambda: FMIndex.build([[1]]).range([4]), "not in the index's vocabulary"),
    (lambda: FMIndex.build([[1]]).extend((0, 3), 7), "not in the index's vocabulary"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message): call()
