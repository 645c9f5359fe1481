"""Decoders that look at several continuations at once, on models that read no masks: branches are rows of their own, and every identity holds."""

import pytest
import torch
from tests.test_scoring_contract import KINDS, V

from arlm_nb.core.draft_tree import DraftTree, Follower
from arlm_nb.core.generation import Cost, greedy
from arlm_nb.core.speculative import speculative
from arlm_nb.core.transformer import Transformer, TransformerConfig
from arlm_nb.decode.contrastive_search import Copies, Siblings, contrastive_search, degeneration_penalty
from arlm_nb.speculative.opt_tree import opt_tree
from arlm_nb.speculative.spectr import spectr

PROMPT, PLAIN = [2, 3, 4], [k for k, (_, masks) in KINDS.items() if not masks]


def make(kind, seed=0):
    torch.manual_seed(seed)
    lm = KINDS[kind][0]()
    return lm.eval() if hasattr(lm, "eval") else lm


@pytest.mark.parametrize("kind", PLAIN)
@torch.no_grad()
def test_every_node_of_a_tree_has_the_logits_of_its_text(kind):
    lm = make(kind)
    follower = Follower(lm, PROMPT, Cost())
    def check(tree, out):
        logits, hidden = out
        for node in range(-1, len(tree)):
            plain = lm(torch.tensor([[*follower.ids, *(tree.ids[i] for i in tree.path(node))]]))
            torch.testing.assert_close(logits[node + 1], plain.logits[0, -1], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(hidden[node + 1], plain.hidden[0, -1], atol=1e-5, rtol=1e-4)
    for ids, parents, accepted, after in (([5, 6, 7, 8], [-1, 0, 0, -1], [0, 2], [5, 7, 9]), ([1, 2], [-1, 0], [], [3]), ([6], [-1], [0], [6, 5]), ([], [], [], [2]), ([4, 4], [-1, -1], [1], [4, 1])):
        tree = DraftTree(follower.root, ids, parents, [0.0] * len(ids))
        check(tree, follower.look(tree))
        follower.accept(accepted, after)
    tree = DraftTree(follower.root, [5, 6, 7], [-1, 0, -1], [0.0] * 3)
    parts = [follower.more([tree.root], [-1]), follower.more([5], [0]), follower.more([6, 7], [1, 0])]
    check(tree, tuple(torch.cat(p) for p in zip(*parts)))


@pytest.mark.parametrize("kind", PLAIN)
def test_drafts_change_nothing(kind):
    lm, draft = make(kind), make(kind, 1)
    plain = greedy(lm, PROMPT, max_new_tokens=10, stop=False).ids
    for helper in (lm, draft):
        assert opt_tree(lm, PROMPT, draft=helper, nodes=6, threshold=0.0, max_depth=3, max_new_tokens=10, stop=False).ids == plain
        assert speculative(lm, PROMPT, draft=helper, temperature=0, max_new_tokens=10, stop=False).ids == plain
    assert all(s["accepted"] == 3 for s in spectr(lm, PROMPT, draft=lm, k=2, length=3, max_new_tokens=8, stop=False).steps)


def test_sampled_drafts_give_the_text_that_a_tree_in_one_row_gives():
    "The same seeds, the same texts: what is proved of the one (20,000 draws in its notebook) is true of the other."
    def pair():
        for seed in (0, 1):
            torch.manual_seed(seed)
            yield Transformer(TransformerConfig(V, 16, 2, 2, context_length=32)).eval()
    texts = {}
    for masks in (True, False):
        lm, draft = pair()
        lm.reads_masks = draft.reads_masks = masks
        runs = [(speculative, {"length": 3}), (spectr, {"k": 3, "length": 2}), (opt_tree, {"nodes": 5, "threshold": 0.0, "max_depth": 3, "temperature": 1.0})]
        texts[masks] = [[fn(lm, PROMPT, draft=draft, max_new_tokens=8, stop=False, seed=seed, **how).ids for seed in range(6)] for fn, how in runs]
    assert texts[True] == texts[False] and len({tuple(t) for t in texts[True][0]}) > 3


@pytest.mark.parametrize("kind", PLAIN)
@torch.no_grad()
def test_contrastive_search_equals_the_naive_rule(kind):
    lm = make(kind)
    assert contrastive_search(lm, PROMPT, max_new_tokens=6, alpha=0.0, stop=False).ids == greedy(lm, PROMPT, max_new_tokens=6, stop=False).ids
    prompts = [PROMPT, [7, 1, 5]]
    for prompt, g in zip(prompts, contrastive_search(lm, prompts, max_new_tokens=5, k=4, stop=False)):
        ids = list(prompt)
        for s in g.steps:
            p, tokens = lm(torch.tensor([ids])).logits[0, -1].softmax(-1).topk(4)
            h = [lm(torch.tensor([[*ids, t]])).hidden[0] for t in tokens.tolist()]
            score = 0.4 * p - 0.6 * torch.stack([degeneration_penalty(x[-1:], x[:-1])[0] for x in h])
            torch.testing.assert_close(torch.tensor(s["score"]).double(), score.double(), atol=1e-4, rtol=1e-3)
            ids.append(s["token"])


def test_copies_are_siblings_for_a_model_with_masks():
    torch.manual_seed(0)
    lm, found = KINDS["transformer"][0](), []
    with torch.inference_mode():
        for kind in (Siblings, Copies):
            texts = kind(lm, [PROMPT, [7, 1, 5]], Cost())
            texts.first()
            logits, hidden = texts.look(torch.tensor([[1, 2, 3], [4, 5, 6]]))
            texts.choose(torch.tensor([2, 0]), 3)
            found.append((logits, hidden, *texts.look(torch.tensor([[9, 8], [7, 6]]))))
    for a, b in zip(*found): torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
