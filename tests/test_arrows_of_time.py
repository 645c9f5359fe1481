"""Arrows of time: windows, fields of two elements, counting on rings, every shape of model, bad input."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import FAMILIES, VOCAB, any_lm

from arlm_nb.core.generation import decoders, get_decoder
from arlm_nb.core.lm import TableLM
from arlm_nb.core.tokenizer import Tokenizer
from arlm_nb.theory import arrow_score, arrow_sweep, arrows_of_time as aot
from arlm_nb.theory.arrow_exact import ring_losses
from arlm_nb.theory.arrow_fit import string_losses
from arlm_nb.theory.arrow_languages import f2_inverse, f2_rank


class Letters:
    "A tokenizer of letters, as large as the test models' vocabulary."
    vocab_size, bos_id, eos_id = VOCAB, 0, None
    def encode(self, text): return [ord(c) % VOCAB for c in text]
    def decode(self, ids): return "".join(chr(97 + i % 26) for i in ids)
    def token(self, i): return chr(97 + i % 26)


def test_names_of_the_card():
    for n in ("reverse_windows arrow_data arrow_of_time Arrow LinearLanguage PrimeProducts ngram_arrow score_directions "
              "backward_decoder").split(): assert hasattr(aot, n), n
    assert "arrows_of_time" in decoders() and get_decoder("arrows_of_time") is arrow_score.backward_decoder


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_reversing_twice_changes_nothing(n, context, seed):
    ids = torch.randint(9, (2, n), generator=torch.Generator().manual_seed(seed))
    if context > n:
        with pytest.raises(ValueError, match="context must not be larger than the text"): aot.reverse_windows(ids, context)
        return
    turned = aot.reverse_windows(ids, context)
    assert torch.equal(aot.reverse_windows(turned, context), ids)
    for a, b in zip(ids.split(context, 1), turned.split(context, 1)): assert torch.equal(a.flip(1), b)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab é語\n", max_size=12), min_size=1, max_size=5))
def test_rows_decode_to_their_documents(texts):
    for tokenizer, spelled in ((bpe, "forward"), (backward_bpe, "backward")):
        row = aot.encode_row(texts, tokenizer, spelled)
        assert aot.decode_row(row, tokenizer, spelled) == texts


def test_sweep_of_a_pair():
    text = [f"document {i} of some words " * (1 + i % 9) for i in range(40)]
    data = aot.arrow_data(text, bpe, 16)
    nll = torch.rand(2, 2, *data.test.shape, generator=torch.Generator().manual_seed(0))
    models = {("forward", 0): aot.small_model("gru", 8)(data)}
    found = arrow_sweep.as_found("x", aot.Arrow(nll, data, models=models))
    part = arrow_sweep.pieces(data, 64)
    assert part.shape == (data.test.numel(),) and part.bincount().max() <= 64 and (part.unique() == torch.arange(int(part.max()) + 1)).all()
    assert np.allclose(found.losses.sum(2), nll.double().sum((2, 3))) and np.isclose(found.gap.value, aot.Arrow(nll, data).gap)
    assert np.allclose(found.read[1], nll[1].flip(-1).mean(1)) and aot.growth(found, found) == (0.0, 0.0, 0.0)
    assert set(aot.load_sweep()) == set(aot.CELLS)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(0, 10**6))
def test_inverse_or_singular(n, seed):
    M = np.random.default_rng(seed).integers(0, 2, (n, n))
    if f2_rank(M) == n: assert np.array_equal(f2_inverse(M).astype(int) @ M % 2, np.eye(n))
    else:
        with pytest.raises(ValueError, match="singular"): aot.LinearLanguage(matrix=M)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(1, 4), st.sampled_from(["sparse", "involution", "dense"]), st.integers(0, 10**6))
def test_languages(n, weight, kind, seed):
    L = aot.LinearLanguage(n, min(weight, n), kind, seed)
    assert len(L.all().unique(dim=0)) == 2**n and (L.sample(20) < 2).all()
    for d in ("forward", "backward"):
        assert abs(L.optimal(d).sum() - L.entropy()) < 1e-12 and ((L.reads(d) == 0) == (L.optimal(d) > 0)).all()
    if kind == "involution": assert np.array_equal(L.matrix, L.inverse)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.floats(1e-4, 50), st.integers(5, 200), st.integers(5, 200))
def test_counting_has_no_arrow(seed, order, alpha, train, test):
    rng = np.random.default_rng(seed)
    f, b = ring_losses(rng.zipf(1.5, train).clip(max=6) - 1, rng.integers(0, 6, test), order, alpha, 6).sum(1)
    assert abs(f - b) < 1e-9 * max(f, 1)


@pytest.mark.parametrize("name", ["transformer", *FAMILIES])
def test_every_model_reads_and_writes_backward(name):
    lm = any_lm(name)
    lm.tokenizer = Letters()
    text = "what was before"
    both = aot.score_directions(lm, lm, [text])
    ids = Letters().encode(text)
    with torch.no_grad(): logp = lm(torch.tensor([[0, *ids[::-1]]])[:, :-1]).logits[0].double().log_softmax(-1)
    by_hand = -logp.gather(-1, torch.tensor(ids[::-1])[:, None])[:, 0].flip(0)
    assert np.abs(both.backward[0] - by_hand.numpy()).max() < 2e-3
    assert (
        abs(aot.score_directions(lm, lm, [text[::-1]]).forward[0].sum() - both.backward[0].sum()) < 2e-3
    )  # backward on a text is forward on its reverse
    g = aot.backward_decoder(lm, text, max_new_tokens=4, seed=1)
    assert [s["token"] for s in g.steps] == g.ids[::-1] and g.prompt_ids == ids and g.text == Letters().decode(g.ids)


def test_long_texts_are_read_in_windows():
    lm = any_lm("transformer")
    lm.tokenizer = Letters()
    n = lm.context_length - 1
    ids = torch.randint(VOCAB, (2 * n + 3,), generator=torch.Generator().manual_seed(0)).tolist()
    whole = arrow_score.surprisal(lm, ids, "backward")
    parts = [arrow_score.surprisal(lm, ids[i:i + n], "backward") for i in range(0, len(ids), n)]
    assert np.allclose(whole, np.concatenate(parts), atol=1e-6) and len(whole) == len(ids)


def test_pairs_of_batches():
    data = aot.language_data(aot.PrimeProducts(1), 16)
    for step in range(3):
        f, b = (data.batches(d, 5)(step, torch.Generator().manual_seed(step)) for d in ("forward", "backward"))
        assert torch.equal(f[:, 1:].flip(1), b[:, 1:]) and (f[:, 0] == data.bos).all() and (b[:, 0] == data.bos).all()
    lm = aot.small_model(d_model=8, n_heads=2)(data)
    nll = string_losses(lm, data, "forward")
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(string_losses(lm, data, "forward", data.test[order]), nll[order], atol=1e-5)


def test_one_seed_warns():
    data = aot.language_data(aot.LinearLanguage(2, 1), 16)
    with pytest.warns(UserWarning, match="fewer than 2 seeds"): aot.arrow_of_time(aot.small_model("gru", 8), data, steps=1, seeds=(0,))


bpe = Tokenizer.train(["a text of some words, to be cut"], "bpe", 260)
backward_bpe = Tokenizer.train(["a text of some words, to be cut"[::-1]], "bpe", 260)
table = TableLM.random(3, 1)
table.tokenizer = Tokenizer.from_symbols(["a", "b", "c"])
other = TableLM.random(3, 1)
other.tokenizer = Tokenizer.from_symbols(["b", "a", "c"])


@pytest.mark.parametrize("call, says", [
    (lambda: aot.LinearLanguage(matrix=[[1, 1], [1, 1]]), "singular matrix: rank 1 of 2"),
    (lambda: aot.LinearLanguage(matrix=[[1, 1]]), "square matrix, got shape"),
    (lambda: aot.LinearLanguage(3, 4), "weight must be in 1..n = 3, got 4"),
    (lambda: aot.LinearLanguage(0), "n must be >= 1, got 0"),
    (lambda: aot.LinearLanguage(17, 2).reads(), "n <= 16, got n = 17"),
    (lambda: aot.LinearLanguage(21, 2).all(), "n <= 20, got n = 21"),
    (lambda: aot.PrimeProducts(0), "digits must be in 1..4, got 0"),
    (lambda: aot.arrow_data("a text", bpe, 64), "context must not be larger than the text"),
    (lambda: aot.arrow_data(["a text"] * 9, bpe, 2, spelled="up"), "direction must be forward or backward, got 'up'"),
    (lambda: aot.reverse_windows(torch.arange(4), 0), "context must be >= 1, got 0"),
    (lambda: aot.score_directions(table, other, ["a b"], bos=0), "need one tokenizer"),
    (lambda: aot.score_directions(table, table, ["a b"]), "has no start token"),
    (lambda: aot.ngram_arrow([1, 2, 3] * 100, 2, -1.0), "alpha must be > 0"),
    (lambda: aot.load_run("prime"), "nearest: primes"),
    (lambda: aot.decode_row(torch.arange(3), bpe, "up"), "direction must be forward or backward, got 'up'"),
    (lambda: aot.text_corpus("poems"), "text must be docs or code, got 'poems'"),
    (lambda: aot.growth(aot.load_sweep()["base"], aot.load_sweep()["code"]), "measured on the same pieces"),
    (lambda: aot.small_model("mamba"), "kind must be gpt, gru or lstm"),
])
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says): call()
