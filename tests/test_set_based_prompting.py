"""Set-based prompting on every shape of model, on random prompts with sets inside sets, and in half precision."""
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import FAMILIES, any_lm

from arlm_nb.core.generation import decoders, get_decoder
from arlm_nb.prompting import set_based_prompting as sbp
from arlm_nb.prompting.set_prompt import END, SPLIT, START, SetPrompt


class Letters:
    eos_id = None
    def encode(self, text): return [ord(c) - 96 for c in text]
    def decode(self, ids): return "".join(chr(96 + i) for i in ids)


PROMPT = SetPrompt(["ab", ("cd", "efg", "h", "ijkl"), "mn", ("o", "pq"), "r"])


def reader(name):
    lm = any_lm(name)
    lm.tokenizer = Letters()
    return lm


def last(lm, prompt):
    ids, positions, mask = prompt.to_tensors(lm.tokenizer)
    with torch.no_grad(): return lm(ids, positions=positions, mask=mask).logits[0, -1]


def test_names_of_the_card():
    names = "SetPrompt set_parallel_mask set_positions set_based_prompting score_set_options order_dependence OrderReport".split()
    assert [n for n in names if not hasattr(sbp, n)] == []
    assert "set_based_prompting" in decoders() and get_decoder("set_based_prompting") is sbp.set_based_prompting


@pytest.mark.parametrize("name", ["transformer", *FAMILIES])
def test_all_orders_agree(name):
    lm = reader(name)
    want = last(lm, PROMPT)
    for order in itertools.permutations(range(4)): torch.testing.assert_close(last(lm, PROMPT.permute(order)), want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(last(lm, PROMPT.permute([1, 0], which=1)), want, atol=1e-4, rtol=1e-4)
    sbp.check_honours_sets(lm)


@pytest.mark.parametrize("name", ["transformer", "gpt2", "llama"])
def test_generation_scores_and_store(name):
    lm = reader(name)
    a, b = (sbp.set_based_prompting(lm, p, max_new_tokens=4) for p in (PROMPT, PROMPT.permute([2, 0, 3, 1])))
    assert a.ids == b.ids and a.cost.forward_passes == 4
    assert sbp.set_based_prompting(lm, str(PROMPT), max_new_tokens=4).ids == a.ids
    scores = sbp.score_set_options(lm, PROMPT, ["s", "tu", "tuv"], normalize="none")
    for option, score in zip(["s", "tu", "tuv"], scores):
        ids, positions, mask = SetPrompt([*PROMPT.parts, option]).to_tensors(lm.tokenizer)
        with torch.no_grad(): logp = lm(ids, positions=positions, mask=mask).logits[0].log_softmax(-1)
        n = len(option)
        torch.testing.assert_close(score, logp[-n - 1:-1].gather(1, ids[0, -n:, None]).sum(), atol=1e-4, rtol=1e-4)
    one = SetPrompt(["ab", ("cd", "efg", "h"), "mn"])
    cache, end = sbp.MemberStore(lm, "ab").cache(["h", "cd", "efg"])
    with torch.no_grad(): got = lm(torch.tensor([Letters().encode("mn")]), cache=cache, positions=torch.tensor([[end, end + 1]])).logits[0, -1]
    torch.testing.assert_close(got, last(lm, one), atol=1e-4, rtol=1e-4)


def test_half_precision_is_not_refused():
    lm = reader("transformer").bfloat16()
    sbp.check_honours_sets(lm)


member = st.text("abcdefg", min_size=1, max_size=3)
nested = st.recursive(member, lambda inner: st.lists(st.one_of(inner, st.lists(inner, min_size=1, max_size=3).map(tuple)), min_size=1, max_size=3), max_leaves=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(member, st.lists(nested, min_size=1, max_size=3).map(tuple)), min_size=1, max_size=4))
def test_written_form_and_mask(parts):
    prompt = SetPrompt(parts)
    text = str(prompt)
    again = SetPrompt.parse(text)
    assert str(again) == text and text.count(START) == text.count(END)
    ids, positions, mask = prompt.to_tensors(Letters())
    T = ids.shape[1]
    assert Letters().decode(ids[0].tolist()) == text.replace(START, "").replace(SPLIT, "").replace(END, "")
    seen = mask.dense(T)[0, 0]
    assert seen.diagonal().all() and not seen.triu(1).any()
    for i in range(T):  # what a token reads has the positions 0, 1, ... without a gap where it reads no set, and none beyond its own
        assert positions[0][seen[i]].max() == positions[0, i]


@pytest.mark.parametrize("text", [START, f"a{START}b{SPLIT}c", f"a{END}", f"{SPLIT}", f"a{START}b{END}{END}", f"{START}{END}", f"{START}a{SPLIT}{END}"])
def test_bad_markers(text):
    with pytest.raises(ValueError, match="markers|empty"): SetPrompt.parse(text)
