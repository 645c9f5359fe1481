"""Contrastive search, momentum decoding, draft trees, SpecTr and constrained search on Hugging Face models: the same code, the same identities."""
import pytest
import torch
from tests.models import any_lm, hflm

from arlm_nb.core.constraints import CNF, Literal
from arlm_nb.core.speculative import speculative
from arlm_nb.core.generation import beam, decoders, get_decoder, greedy
from arlm_nb.decode.contrastive_search import contrastive_search, degeneration_penalty, isotropy
from arlm_nb.decode.momentum_decoding import momentum_decoding
from arlm_nb.decode.neurologic_astar import neurologic_astar
from arlm_nb.speculative.opt_tree import opt_tree
from arlm_nb.speculative.spectr import spectr

PROMPT = [5, 9, 2, 33]
FAMILIES = ["transformer", "llama", "bloom"]


def test_decoders_are_found_by_key():
    keys = {"contrastive_search", "diverse_contrastive_search", "momentum_decoding", "no_repeat_ngram", "repetition_penalty", "neurologic_astar", "opt_tree", "spectr", "speculative"}
    assert keys <= set(decoders())
    for key in keys: assert callable(get_decoder(key))


@pytest.mark.parametrize("family", FAMILIES)
def test_contrastive_search_equals_the_naive_rule(family):
    lm = any_lm(family)
    assert contrastive_search(lm, PROMPT, max_new_tokens=6, alpha=0.0, stop=False).ids == greedy(lm, PROMPT, max_new_tokens=6, stop=False).ids
    found = contrastive_search(lm, [PROMPT, PROMPT[:2]], max_new_tokens=6, k=4, stop=False)
    for prompt, g in zip([PROMPT, PROMPT[:2]], found):
        ids = list(prompt)
        for s in g.steps:
            with torch.no_grad():
                p, tokens = lm(torch.tensor([ids])).logits[0, -1].softmax(-1).topk(4)
                h = lm(torch.tensor([[*ids, t] for t in tokens.tolist()])).hidden
            score = 0.4 * p - 0.6 * degeneration_penalty(h[:, -1], h[0, :-1])
            torch.testing.assert_close(torch.tensor(s["score"]), score, atol=1e-4, rtol=1e-3)
            ids.append(s["token"])
    assert found[0].cost.forward_passes == 7


@pytest.mark.parametrize("family", FAMILIES)
def test_draft_trees_are_lossless(family):
    lm, draft = any_lm(family), any_lm(family, seed=1)
    plain = greedy(lm, PROMPT, max_new_tokens=10, stop=False).ids
    assert opt_tree(lm, PROMPT, draft=draft, nodes=6, threshold=0.0, max_depth=3, max_new_tokens=10, stop=False).ids == plain
    assert opt_tree(lm, PROMPT, draft=lm, nodes=6, threshold=0.0, max_depth=3, max_new_tokens=10, stop=False).ids == plain
    assert speculative(lm, PROMPT, draft=draft, temperature=0, max_new_tokens=10, stop=False).ids == plain
    assert all(s["accepted"] == 3 for s in spectr(lm, PROMPT, draft=lm, k=2, length=3, max_new_tokens=8, stop=False).steps)


@pytest.mark.parametrize("family", ["transformer", "gpt2"])
def test_constrained_search(family):
    lm = any_lm(family)
    free = neurologic_astar(lm, PROMPT, constraint=CNF([]), lookahead=0, beam=3, pool=6, length_penalty=1.0, max_new_tokens=6, stop=False)
    assert free.ids == beam(lm, PROMPT, max_new_tokens=6, num_beams=3, length_penalty=1.0, stop=False).ids
    formula = CNF([[Literal((7,))], [Literal((free.ids[0],), False)]])
    for rollout in ("greedy", "soft", "beam", "sample"):
        g = neurologic_astar(lm, PROMPT, constraint=formula, beam=3, pool=6, lookahead=2, rollout=rollout, width=2, max_new_tokens=8, stop=False)
        assert formula.start().read(g.ids).satisfied


def test_momentum_and_isotropy_on_a_wrapped_model():
    lm = hflm("gpt2")
    assert momentum_decoding(lm, PROMPT, max_new_tokens=8, alpha=0, stop=False).ids == greedy(lm, PROMPT, max_new_tokens=8, stop=False).ids
    found = isotropy(lm, [PROMPT, [1, 2, 3]])
    with torch.no_grad(): h = torch.nn.functional.normalize(lm(torch.tensor([PROMPT])).hidden[0], dim=-1)
    assert len(found.per_layer) == lm.n_layers + 1
    assert abs(found.per_text[0] - (1 - float((h @ h.T).sum() - 4) / 12)) < 1e-5
