"""Goldfish: any text through content matching, bigrams against plain counting, any LM through the protocol, no look ahead, interrupted training, bad input."""
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arlm_nb.core.checkpoints import load_checkpoint, load_lm, save_checkpoint
from arlm_nb.core.lm import TableLM
from arlm_nb.core.statistics import influence
from arlm_nb.core.tokenizer import Tokenizer, as_hf
from arlm_nb.pretrained import goldfish as g
from arlm_nb.pretrained.content_match import content_matched, deduplicate, unigram_tokenizer
from arlm_nb.pretrained.goldfish_train import epochs, mixture, mixture_texts
from arlm_nb.pretrained.second_half import cut_ids, halves, second_half_logperplexity, sentence_bits, token_bits
from arlm_nb.pretrained.stupid_bigram import Bigram
from arlm_nb.pretrained.tongues import LATIN, TONGUES, parallel, transliterate

TOK = unigram_tokenizer(parallel("bria_latn", 200, "valid"), 200)
TEXT = parallel("bria_latn", 60)


def table_lm(tok=TOK, seed=0): return TableLM(TableLM.random(tok.vocab_size, 1, seed).table, tok)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=20), st.floats(1e-6, 1e-4), st.floats(0.3, 4))
def test_content_is_matched_to_within_one_text(texts, megabytes, premium):
    size, there = [len(t.encode()) / premium for t in texts], sum(len(t.encode()) for t in texts) / premium
    if there < megabytes * 1e6 * (1 - 1e-9):
        with pytest.raises(ValueError, match="there are"): content_matched(texts, megabytes, premium)
    else:
        n = len(content_matched(texts, megabytes, premium))
        assert sum(size[:n]) >= megabytes * 1e6 * (1 - 1e-9) and sum(size[:n - 1]) < megabytes * 1e6 * (1 + 1e-9)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text("abё ", max_size=40), st.integers(1, 12))
def test_nothing_repeats_after_deduplication_of_a_doubled_text(text, width):
    once = deduplicate([text], width)
    assert deduplicate([text, text], width) == (once if len(text.encode()) >= width else [t for t in (text, text) if t])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=60), st.lists(st.integers(0, 5), min_size=2, max_size=20), st.sampled_from([0.1, 0.4, 1.0]))
def test_bigram_against_plain_counting(train, ask, backoff):
    tok = Tokenizer.from_symbols(list("abcde"), ["<eos>"])
    pairs, left, right = Counter(zip(train, train[1:])), Counter(train[:-1]), Counter(train[1:])
    least = min(right.values())
    plain = [pairs[v, w] / left[v] if pairs[v, w] else backoff * max(right[w], least) / (len(train) - 1) for v, w in zip(ask, ask[1:])]
    np.testing.assert_allclose(Bigram(tok, backoff).fit(train).surprisal(ask), -np.log2(plain))


def test_bigram_without_backoff_is_the_source():
    "20,000 draws: what a Markov chain was drawn from and what was counted is the same distribution."
    from arlm_nb.core.statistics import chi_square
    rng, p = np.random.default_rng(0), np.random.default_rng(1).dirichlet(np.ones(4), 4)
    ids = [0]
    for u in rng.random(20_000): ids.append(int(np.searchsorted(p[ids[-1]].cumsum(), u)))
    b = Bigram(Tokenizer.from_symbols(list("abcd")), 0).fit(np.minimum(ids, 3))
    for v in range(4):
        assert b.mass(v) == pytest.approx(1)
        counts = np.round(b.score(np.full(4, v), np.arange(4)) * b.contexts[v])
        assert chi_square(counts, p[v] / p[v].sum()).p_value > 1e-3


@pytest.mark.parametrize("border", ["characters", "word"])
def test_table_bigram_and_protocol_agree(border):
    lm, some = table_lm(), [t for t in TEXT if len(t) > 60]
    whole = [lm.table[ids[:-1], ids[1:]].log2().sum() for ids in (cut_ids(TOK, s)[0] for s in some)]
    bits = sentence_bits(lm, some, border=border)
    for (ids, at, b), w in zip(bits, whole): assert b.sum() == pytest.approx(-float(w)) and b[at - 1:].sum() == pytest.approx(-float(lm.table[ids[at - 1:-1], ids[at:]].log2().sum()))


@pytest.mark.parametrize("n", [1, 7, 100_000])
def test_batches_change_nothing(n):
    rows = [cut_ids(TOK, s, "word")[0] for s in TEXT]
    lm = g.train_goldfish("x", parallel("bria_latn", 400, "valid"), 0.005, steps=3).model.eval()
    for a, b in zip(token_bits(lm, rows, n), (token_bits(lm, [r])[0] for r in rows)): np.testing.assert_allclose(a, b, atol=1e-4)


def test_no_token_sees_what_comes():
    lm = g.train_goldfish("x", parallel("bria_latn", 400, "valid"), 0.005, steps=3).model.eval()
    n = lm.tokenizer.vocab_size
    moved = influence(lambda ids: torch.tensor(np.stack(token_bits(lm, ids.tolist())))[..., None], torch.randint(2, n, (12,), generator=torch.Generator().manual_seed(0)), n, 1e-4)
    assert not moved.triu(2).any() and moved.diagonal(1).all()                               # bits i are of token i + 1


@pytest.mark.parametrize("script, n", [("latn", 1), ("cyrl", 2), ("deva", 3)])
def test_scripts(script, n):
    t = transliterate(LATIN + " .", script)
    assert len(t.encode()) == 52 * n + 2 and len(set(t)) == 54


@pytest.mark.parametrize("code", list(TONGUES))
def test_tokenizers_lose_nothing_and_come_out_the_same(code):
    a, b = (unigram_tokenizer(parallel(code, 200, "valid"), 256) for _ in range(2))
    assert a.hash == b.hash
    for s in parallel(code): assert a.unk_id in a.encode(s) or a.decode(a.encode(s)) == s


def test_word_border_asks_every_tokenizer_for_the_same_text():
    small = unigram_tokenizer(TEXT, 60)
    for s in TEXT:
        rest = [t.decode(ids[:1] + ids[at:]).removeprefix("<eos>").strip() for t in (TOK, small) for ids, at in [cut_ids(t, s, "word")]]
        if TOK.unk_id not in TOK.encode(s): assert rest[0] == rest[1] == halves(s, "word")[1].strip()


def test_hugging_face_models_with_and_without_a_start_token():
    import transformers

    from arlm_nb.core.hflm import HFLM
    config = transformers.GPT2Config(vocab_size=TOK.vocab_size, n_embd=16, n_layer=1, n_head=2, n_positions=128, bos_token_id=1, eos_token_id=1)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    lm = HFLM(model, as_hf(TOK))
    ids, at = cut_ids(lm.tokenizer, TEXT[0], "word")
    assert ids[0] == TOK.eos_id
    with torch.no_grad(): expected = torch.nn.functional.cross_entropy(model(torch.tensor([ids])).logits[0, at - 1:-1], torch.tensor(ids[at:]), reduction="sum")
    assert float(second_half_logperplexity(lm, TEXT[:1], border="word")[0]) == pytest.approx(float(expected) / np.log(2), rel=1e-5)
    bare = Tokenizer.from_symbols(["a", "b"])
    assert bare.bos_id is None and cut_ids(bare, "a b a b", "word") == ([0, 1, 0, 1], 2)
    assert Bigram(lm.tokenizer).fit([1, 5, 6, 1]).surprisal([1, 5]) == pytest.approx(0)


def test_unknown_letters_cost_chance_or_what_the_model_says():
    lm = table_lm()
    for unk, value in (("chance", np.log2(TOK.vocab_size)), ("model", None)):
        ids, _, bits = sentence_bits(lm, ["balgas ωω balgas dandar"], unk, "word")[0]
        i = ids.index(TOK.unk_id)
        assert bits[i - 1] == pytest.approx(value if value else -float(lm.table[ids[i - 1], ids[i]].log2()))


def test_an_epoch_takes_each_sequence_once():
    for n, length, batch in ((100, 7, 3), (65, 64, 2), (1000, 10, 8)):
        data, there = epochs(torch.arange(n), length, batch, seed=3), (n - 1) // length
        seen = torch.cat([data(i)[:, 0] for i in range(there)])
        assert (seen.reshape(batch, there).sort(1).values == torch.arange(there) * length).all()


def test_mixture_follows_the_shares():
    "40,000 windows."
    from arlm_nb.core.statistics import chi_square
    shares = [0.7, 0.2, 0.1]
    ids = mixture([torch.full((50,), i) for i in range(3)], shares, 4, 40_000)(0, torch.Generator().manual_seed(0))
    assert ids.shape == (40_000, 5) and (ids == ids[:, :1]).all()
    assert chi_square(torch.bincount(ids[:, 0]).numpy(), shares).p_value > 1e-3
    assert len({s[0] for s in mixture_texts(0.01)}) > 30                                      # every script is there


def test_interrupted_training_goes_on_to_the_same_weights(tmp_path):
    texts, options = parallel("bria_latn", 400, "valid"), dict(steps=12, checkpoint_every=4)
    calls = []

    def stopping(model, batch, rng):
        from arlm_nb.core.training import next_token
        calls.append(1)
        if len(calls) == 7: raise KeyboardInterrupt
        return next_token(model, batch, rng)
    whole = g.train_goldfish("x", texts, 0.005, **options)
    part = g.train_goldfish("x", texts, 0.005, checkpoint=tmp_path, objective=stopping, **options)
    assert part.interrupted and part.steps_done == 6
    with pytest.raises(KeyboardInterrupt): part.whole()
    again = g.train_goldfish("x", texts, 0.005, checkpoint=tmp_path, **options).whole()
    for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values()): torch.testing.assert_close(a, b)


def test_the_release_recipe_trains_with_adam(monkeypatch):
    "The real configuration, of which the sizes alone are made small."
    import dataclasses

    from arlm_nb.pretrained import goldfish_train as train
    small = dataclasses.replace(train.goldfish_config(5), n_layers=1, d_model=16, n_heads=2, context=32, vocab=128, multiple=16)
    monkeypatch.setattr(train, "goldfish_config", lambda *a: small)
    done = train.train_goldfish("x", parallel("bria_latn", 400, "valid"), 0.005, scale=1, steps=2)
    assert done.steps_done == 2 and done.rows[0]["lr"] <= 1e-4


def test_saved_and_loaded(tmp_path):
    lm = g.train_goldfish("x", parallel("bria_latn", 400, "valid"), 0.005, steps=3).model.eval()
    again = load_checkpoint(save_checkpoint(lm, tmp_path / "lm"))
    assert again.tokenizer.hash == lm.tokenizer.hash
    torch.testing.assert_close(second_half_logperplexity(again, TEXT[:9], border="word"), second_half_logperplexity(lm, TEXT[:9], border="word"), atol=0.5, rtol=0.01)


def test_the_shipped_model():
    lm = load_lm("pretrained/goldfish-multilingual")
    small = g.train_goldfish("x", g.corpus_of("keli_deva", 0.01), 0.01, premium=g.premium_of("keli_deva"), steps=1).model
    assert sum(p.numel() for p in lm.parameters()) >= 10 * sum(p.numel() for p in small.parameters())
    rows = g.shipped()
    assert set(rows.language) == set(TONGUES) and set(rows.model) == {"goldfish", "bigram", "multilingual"}
    assert len(rows[rows.model == "goldfish"]) == 30


def test_questions_in_equal_words():
    for code in TONGUES:
        for i in g.inference_items(code, 20): assert sum(a != b for a, b in zip(*(c.split() for c in i.choices))) == 1
    found = g.reasoning(table_lm(), g.inference_items("bria_latn", 40), blind=True)
    assert found.bits.shape == (40, 2) and 0 <= found.accuracy.low <= found.accuracy.high <= 1


def test_no_warning_about_tokenizers_that_keep_everything():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second_half_logperplexity(table_lm(), TEXT, border="word")


@pytest.mark.parametrize("make, why", [
    (lambda: g.byte_premium(["a"], ["a", "b"]), "got 1 and 2"),
    (lambda: content_matched(["abc"], 1, 1.0), "asked for 1 MB of content, there are 3e-06"),
    (lambda: content_matched(["abc"], 1, 0.0), "must be > 0"),
    (lambda: g.corpus_of("keli_deva", 1.0), "has 0.01 MB of content"),
    (lambda: g.tongue("deu_latn"), "deu_latn"),
    (lambda: unigram_tokenizer([""]), "needs training text"),
    (lambda: second_half_logperplexity(table_lm(), ["x"]), "at least 2 characters"),
    (lambda: second_half_logperplexity(table_lm(), []), "at least one sentence"),
    (lambda: second_half_logperplexity(TableLM.random(3), ["ab cd"]), "no tokenizer"),
    (lambda: sentence_bits(table_lm(), TEXT, border="middle"), "characters or word"),
    (lambda: Bigram(TOK, backoff=-1), r"in \[0, 1\], got -1"),
    (lambda: Bigram(TOK).fit([0]), "at least 2 tokens, got 1"),
    (lambda: Bigram(TOK).fit([0, 10_000]), "must be in 0.."),
    (lambda: g.goldfish_config(20), "5, 10, 100, 1000, got 20"),
    (lambda: epochs(torch.arange(1), 4, 1), "at least 2 tokens"),
    (lambda: mixture([torch.arange(9)], [1, 2], 4, 1), "one share >= 0 for each of 1 rows"),
    (lambda: mixture([torch.arange(4)], [1], 4, 1), "rows of at least 5 tokens, the shortest has 4"),
    (lambda: g.reasoning(table_lm(), []), "at least one item"),
    (lambda: g.Item("a", ("b", ""), 0), "not empty"),
    (lambda: g.shipped("sweet"), "sweet"),
    (lambda: g.suite(["keli_deva"], [1.0]), "less than the smallest"),
])
def test_refused(make, why):
    with pytest.raises(ValueError, match=why): make()
