"""Interpreting on Hugging Face models, chunks of any alignment, and what is refused."""
import random

import pytest
import torch
from hypothesis import given, settings, strategies as st

from arlm_nb.core.generation import decoders, get_decoder
from arlm_nb.core.tokenizer import Tokenizer
from arlm_nb.translation import interpreter as I, simultaneous_translation as S
from arlm_nb.translation.chunks import valid_cut
from tests.models import FLAGSHIP, VOCAB, hf_model


def symbols(size: int = VOCAB):
    return Tokenizer.from_symbols([f"w{i}" for i in range(size - 3)], ("<eos>", "<|end-of-read|>", "<|end-of-write|>"))


def test_names_of_the_card():
    names = "monotone_chunks merge interleave interleaved lora interpret average_lagging length_adaptive_average_lagging tradeoff wait_k_prompt Tradeoff".split()
    assert [n for n in names if not hasattr(S, n)] == []
    assert "simultaneous_translation" in decoders() and get_decoder("simultaneous_translation") is S.interpret


@pytest.mark.parametrize("family", FLAGSHIP)
@pytest.mark.parametrize("beam", [1, 3])
def test_families(family, beam):
    from arlm_nb.core.hflm import HFLM
    lm = HFLM(hf_model(family), symbols())
    words = ["w3", "w9", "w4", "w1"]
    how = dict(max_new_tokens=9, template="w5 w6")
    g = S.interpret(lm, iter(words), beam=beam, **how)
    assert [w for c in S.spoken_chunks(g, lm.tokenizer) for w in c.source][: len(words)] == words[: g.steps[-1]["heard"]]
    assert not {lm.tokenizer.token_id(t) for t in ("<|end-of-read|>",)} & set(g.ids) and len(g.ids) <= 9
    if beam > 1: return
    s = I.Stream(lm.tokenizer, lm.tokenizer.encode("w5 w6"), 9)
    I.drive(lm, I.interpreter(s, iter(words)))  # without a cache
    assert s.ids == g.ids and [x["action"] for x in s.steps] == [x["action"] for x in g.steps]
    both = S.interpret(lm, [" ".join(words), "w2 w2"], **how)
    assert both[0].ids == g.ids and both[1].ids == S.interpret(lm, "w2 w2", **how).ids


def test_wait_k_with_hf():
    from arlm_nb.core.hflm import HFLM
    lm = HFLM(hf_model("llama"), symbols())
    g = S.wait_k_prompt(lm, "w1 w2 w3", k=2, max_new_tokens=6, template="w5")
    assert S.word_delays(g, lm.tokenizer) == [min(2 + i, 3) for i in range(len(g.ids))]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 10), st.integers(1, 10), st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_chunks_of_any_alignment(n, m, links):
    "Many-to-many links too: words are kept, nothing is empty, nothing crosses."
    links = [(i, j) for i, j in links if i < n and j < m]
    source, target = [f"s{i}" for i in range(n)], [f"t{j}" for j in range(m)]
    chunks, a, b = S.monotone_chunks(source, target, links), 0, 0
    assert [w for c in chunks for w in c.source] == source and [w for c in chunks for w in c.target] == target
    for c in chunks[:-1]:
        a, b = a + len(c.source), b + len(c.target)
        assert c.source and c.target and valid_cut(links, a, b)


def test_random_chunks_cover():
    rng = random.Random(0)
    for n, m, k in [(1, 1, 1), (2, 9, 2), (9, 2, 5), (6, 6, 6)]:
        chunks = S.random_chunks([f"s{i}" for i in range(n)], [f"t{j}" for j in range(m)], k, rng)
        assert sum(len(c.source) for c in chunks) == n and sum(len(c.target) for c in chunks) == m and all(c.source and c.target for c in chunks)


@pytest.mark.parametrize("call, message", [
    (lambda: S.merge([], "lowest"), "unknown latency level"),
    (lambda: S.control_ids(Tokenizer.from_symbols(["a"], ("<|end-of-read|>",))), "no control token '<|end-of-write|>'".replace("|", r"\|")),
    (lambda: S.monotone_chunks(["a"], [], []), "at least one word"),
    (lambda: S.monotone_chunks(["a"], ["b"], [(-1, 0)]), "out of range"),
    (lambda: S.interleave([S.Chunk(["w1"] * 50, ["w2"])], symbols(), "w1", max_length=20), "do not fit the context of 20"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message): call()


def test_too_long_a_source():
    from arlm_nb.core.hflm import HFLM
    lm = HFLM(hf_model("gpt2"), symbols())
    with pytest.raises(ValueError, match="do not fit the context of 48"): S.interpret(lm, " ".join(["w1"] * 60), max_new_tokens=5, latency="high", template="w5")
    with pytest.raises(ValueError, match="source is empty"): S.interpret(lm, [], max_new_tokens=5)


def test_world_is_the_same_everywhere():
    from arlm_nb.translation.common import World
    a, b = World(concepts=120, lengths=(4, 30), clauses=3), World(concepts=120, lengths=(4, 30), clauses=3)
    assert a.pairs(20, "train") == b.pairs(20, "train") and max(len(p.source) for p in a.pairs(200)) > 14
    assert a.pairs(5, direction=("bri", "sol"))[0].target == a.pairs(5)[0].source
    assert torch.tensor([len(p.alignment) for p in a.pairs(50)]).min() > 0
