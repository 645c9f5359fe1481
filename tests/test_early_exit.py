"""Early exits on every shape of model: exactness at the deep exit, the two limits, the veto; bad input."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import FLAGSHIP, any_lm

from arlm_nb.core.generation import decoders, get_decoder, greedy
from arlm_nb.efficiency import early_exit as E

CARD = ("ShallowDeep shallow_deep_loss weighted_exit_loss margin_confidence MetaConfidence BetaMixture free calm static_exit ExitReport").split()
PROMPT = [3, 14, 15, 9, 26]


def test_names_of_the_card():
    assert [n for n in CARD if not hasattr(E, n)] == []
    assert {"free", "calm", "static_exit"} <= set(decoders()) and get_decoder("calm") is E.calm


def replay(lm, g, layer, level):
    text, out = list(g.prompt_ids), []
    for _ in g.ids:
        with torch.no_grad(): s, d, _ = E.ShallowDeep(lm, layer)(torch.tensor([text]))
        sure = float(E.margin_confidence(s[0, -1])) > level
        out.append((int((s if sure else d)[0, -1].argmax()), sure))
        text.append(out[-1][0])
    return out


@pytest.mark.parametrize("name", ["transformer", *FLAGSHIP])
def test_every_family(name):
    lm, n = any_lm(name), 10
    full = greedy(lm, PROMPT, max_new_tokens=n, stop=False).ids
    shared = dict(exit_layer=1, max_new_tokens=n, stop=False)
    assert E.free(lm, PROMPT, threshold=1.0, **shared).ids == full
    assert E.free(lm, PROMPT, threshold=-1.0, rollback=0.0, **shared).ids == full
    assert E.calm(lm, PROMPT, threshold=2.0, max_new_tokens=n, stop=False).ids == full
    always = E.free(lm, PROMPT, threshold=-1.0, **shared)
    assert always.deep_passes == 0 and always.ids == E.static_exit(lm, PROMPT, layer=1, max_new_tokens=n, stop=False).ids
    with torch.no_grad(): s, _, _ = E.ShallowDeep(lm, 1)(torch.tensor([PROMPT + always.ids]))
    level = float(E.margin_confidence(s[0, len(PROMPT) - 1:]).median())
    g = E.free(lm, PROMPT, threshold=level, **shared)
    want = replay(lm, g, 1, level)
    assert g.ids == [t for t, _ in want] and [x["layers"] == 1 for x in g.steps] == [sure for _, sure in want]


@settings(max_examples=20, deadline=None)
@given(st.floats(0.0, 0.2), st.floats(0.0, 3.0), st.integers(1, 12), st.booleans())
def test_any_threshold_and_veto(level, rollback, n, flush):
    lm = any_lm("transformer")
    g = E.free(lm, PROMPT, exit_layer=2, threshold=level, rollback=rollback, max_new_tokens=n, stop=False)
    assert len(g.ids) == n == len(g.steps)
    with torch.no_grad(): logp = lm(torch.tensor([PROMPT + g.ids])).logits[0, len(PROMPT) - 1:-1].log_softmax(-1)
    for row, token in zip(logp, g.ids):  # nothing that the deep exit finds more surprising than the veto is left
        assert int(row.argmax()) == token or float(-row[token]) <= rollback + 1e-4
    h = E.free(lm, PROMPT, exit_layer=2, threshold=level, flush=flush, max_new_tokens=n, stop=False)
    assert h.ids == [t for t, _ in replay(lm, h, 2, level)]


def test_thresholds_between_texts_and_other_confidence():
    lm, moving = any_lm("transformer"), E.AdaptiveThreshold(0.0)
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(4): E.free(lm, [i + 1, 5, 9], exit_layer=1, adaptive=moving, flush=True, max_new_tokens=12, stop=False)
    assert len(moving.conf) == 48 and (0.3 <= moving.value <= 0.9 or not moving.history)
    meta = E.MetaConfidence(lm.d_model)
    assert len(E.free(lm, PROMPT, exit_layer=1, confidence=meta, threshold=0.5, max_new_tokens=3, stop=False).ids) == 3


@pytest.mark.parametrize("call, message", [
    (lambda lm: E.free(lm, PROMPT, exit_layer=0, max_new_tokens=2), "1..2, got 0"),
    (lambda lm: E.free(lm, PROMPT, exit_layer=1, threshold=float("nan"), max_new_tokens=2), "got nan"),
    (lambda lm: E.free(lm, [PROMPT, PROMPT], exit_layer=1, max_new_tokens=2), "one text at a time"),
    (lambda lm: E.free(lm, PROMPT, exit_layer=1, fill="copy", rollback=0.0, max_new_tokens=2), "rollback must be None"),
    (lambda lm: E.calm(lm, PROMPT, min_layer=3, max_new_tokens=2), "1..2, got 3"),
    (lambda lm: E.shallow_deep_loss(1, "middle"), "known: dyna, last, unif"),
    (lambda lm: E.BetaMixture().threshold(0.0), "zeta"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message): call(any_lm("transformer"))
