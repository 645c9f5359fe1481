"""Fill in the middle: Hugging Face families with and without sentinels, spelled sentinels in a user's text, random documents and contexts, bad input."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import hf_model

from arlm_nb.core.datasets import pack
from arlm_nb.core.generation import get_decoder
from arlm_nb.core.hflm import HFLM
from arlm_nb.core.tokenizer import Tokenizer, as_hf
from arlm_nb.objectives import fill_in_middle as M
from arlm_nb.objectives.fim_sandbox import Refused, passes, run_program

CARD = "Split split_document psm spm unfim fim fim_context fill_in_middle infill infill_benchmark Infilling".split()
BYTES = Tokenizer.train(["x"], "byte")
FIM = M.add_sentinels(BYTES)


def family(name: str, vocab: int, tokenizer) -> HFLM:
    "A random model of a family whose vocabulary fits the tokenizer."
    model = hf_model(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.resize_token_embeddings(vocab, mean_resizing=False)
    return HFLM(model, as_hf(tokenizer))


def test_names_of_the_card_and_the_decoder():
    assert [n for n in CARD if not hasattr(M, n)] == []
    assert get_decoder("fill_in_middle") is M.infill


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_sentinels_are_added_to_a_hugging_face_model(name):
    lm = family(name, BYTES.vocab_size, BYTES)
    with pytest.raises(ValueError, match="has no sentinels: add <PRE>"): M.infill(lm, "a", suffix="b", max_new_tokens=3)
    ids = torch.tensor([BYTES.encode("def f(x)")])
    with torch.no_grad(): before = lm(ids).logits
    grown = M.with_sentinels(lm)
    assert grown.vocab_size == BYTES.vocab_size + 3
    with torch.no_grad(): torch.testing.assert_close(grown(ids).logits[..., :BYTES.vocab_size], before, atol=1e-4, rtol=1e-4)
    rows = pack(BYTES, [f"x = {i % 10}" for i in range(32)]).long()[:192].view(4, 48)
    loss = M.fill_in_middle(grown, rows, torch.Generator().manual_seed(0), rate=1.0)
    loss.value.backward()
    assert {"prefix", "suffix", "middle", "eot"} <= set(loss.parts)
    assert float(grown.model.get_input_embeddings().weight.grad[-3:].abs().sum()) > 0
    out = M.infill(grown, "x = ", suffix="\n", max_new_tokens=4, mode="psm")
    assert isinstance(out, M.Infill) and len(out.ids) <= 4 and not {"<PRE>", "<SUF>", "<MID>"} & set(map(grown.tokenizer.token, out.ids))


def test_typing_on_a_hugging_face_model():
    lm = family("llama", FIM.vocab_size, FIM)
    typing = M.Typing(lm, ")\n")
    for prefix in ("p", "pr", "pri", "prx", ""):
        typing.type(prefix)
        assert typing.middle(5).ids == M.infill(lm, prefix, suffix=")\n", max_new_tokens=5).ids


@pytest.mark.parametrize("tok", [FIM, "hf"])
def test_spelled_sentinels_stay_text(tok):
    from arlm_nb.core.tokenizer import wrap_hf
    tok = wrap_hf(as_hf(FIM)) if tok == "hf" else tok
    split = M.Split("a<PRE>b", "<MID><eos>", "<SUF> c")
    s = M.sentinels(tok)
    for ids in (M.psm(split, tok), M.spm(split, tok), M.spm(split, tok, variant=1)):
        assert [ids.count(i) for i in (s.pre, s.suf, s.mid, s.eot)] == [1, 1, 1, 1] and M.unfim(ids, tok) == split.text


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), min_size=1, max_size=6), st.integers(0, 10_000))
def test_contexts_hold_the_same_documents(docs, seed):
    packed, eot = pack(FIM, docs).long(), M.sentinels(FIM).eot
    row = M.fim_context(packed, FIM, torch.Generator().manual_seed(seed), rate=0.7, context=len(packed) + 40).tolist()
    pieces, piece = [], []
    for i in row:
        if i == eot: pieces, piece = pieces + [piece], []
        else: piece.append(i)
    assert [M.unfim(p, FIM) for p in pieces if p][:len(docs)] == docs and not any(pieces[len(docs) + 1:])


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.integers(0, 10_000), st.sampled_from(["char", "token", "line"]))
def test_splits_come_back(text, seed, span):
    split = M.split_document(text, torch.Generator().manual_seed(seed), span=span, tok=FIM)
    assert {split.text, M.unfim(M.psm(split, FIM), FIM), M.unfim(M.spm(split, FIM), FIM), M.unfim(M.spm(split, FIM, variant=1), FIM)} == {text}


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="fx=+-*%[]():' \n01aif", max_size=40))
def test_any_program_ends(source):
    try: run_program(source)
    except Refused: pass
    assert passes(source, ["assert 1 == 2\n"]) is False


@pytest.mark.parametrize("call, message", [
    (lambda g: M.fim("a", FIM, g, rate=-0.1), "rate must be in"),
    (lambda g: M.fim("a", FIM, g, psm_share=1.1), "psm_share must be in"),
    (lambda g: M.split_document("a", g, span="word"), "span must be one of char, token, line"),
    (lambda g: M.fim_context(torch.arange(5), FIM, g, context=4), "context must be >= 5"),
    (lambda g: M.fim_context(torch.full((6,), M.sentinels(FIM).mid), FIM, g), "holds a sentinel"),
    (lambda g: M.psm(M.Split("a", "b", "c"), BYTES), "has no sentinels"),
    (lambda g: M.spm(M.Split("a", "b", "c"), FIM, variant=0), "variant must be 1 or 2"),
    (lambda g: M.tasks("holes", 1, 0), "kind must be one of"),
    (lambda g: M.train_reference("fim-10"), "unknown reference model"),
    (lambda g: M.unfim([M.sentinels(FIM).pre, 5], FIM), "not one whole example"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message): call(torch.Generator())
