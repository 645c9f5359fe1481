"""`score_continuations` on every kind of model: with masks (a trie) and without (rows), it equals one pass for each continuation."""

import pytest
import torch
from tests.models import any_lm
from tests.test_spacebyte import small

from arlm_nb.architectures.hla_mixer import HLAMixer
from arlm_nb.core.generation import greedy, sample
from arlm_nb.core.lm import TableLM
from arlm_nb.core.ngram import NgramLM
from arlm_nb.core.transformer import Transformer, TransformerConfig
from arlm_nb.decode.contrastive_search import contrastive_search
from arlm_nb.decode.hmm import HMM, HMMLM
from arlm_nb.objectives.xlnet_model import XLNet
from arlm_nb.theory.arrow_fit import RecurrentLM
from arlm_nb.theory.markov_table import ChainLM
from arlm_nb.theory.model_zoo import Tempered
from arlm_nb.timeseries.companion_mixer import CompanionTransformer
from arlm_nb.translation.gnmt_model import GNMT

V = 12


def rows(n, seed=0):
    return torch.rand(n, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).add(0.05).softmax(-1)


KINDS = {
    "gpt2": (lambda: any_lm("gpt2"), True),
    "transformer": (lambda: any_lm("transformer"), True),
    "xlnet": (lambda: XLNet(V, 16, 2, 2), True),
    "hla": (lambda: Transformer(TransformerConfig(V, 16, 2, 2, context_length=32), mixer=HLAMixer), False),
    "companion": (lambda: CompanionTransformer(TransformerConfig(V, 16, 2, 2, context_length=32, positions="none")), False),
    "gru": (lambda: RecurrentLM(V), False),
    "lstm, tempered": (lambda: Tempered(RecurrentLM(V, cell="lstm").eval(), 2.0), False),
    "gnmt": (lambda: GNMT(V, 16, 2).eval().given([3, 4, 5]), False),
    "spacebyte": (lambda: small("utf8"), False),
    "megabyte": (lambda: small("megabyte"), False),
    "table": (lambda: TableLM.random(V, 2), False),
    "chain": (lambda: ChainLM([rows(V), rows(V * V, 1)]), False),
    "hmm": (lambda: HMMLM(HMM(3, V)), False),
    "n-gram": (lambda: NgramLM.fit([[1, 2, 3, 4, 5, 6, 7, 8, 9, 3, 2, 1] * 3], order=3, vocab_size=V).as_lm(), False),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("continuations", [[[5, 6, 7], [5, 6, 2], [9], [5, 6]], [[4, 8]], [[3], [7]]], ids=["shared", "one", "single tokens"])
@torch.no_grad()
def test_scores_are_those_of_single_passes(kind, continuations):
    torch.manual_seed(0)
    make, masks = KINDS[kind]
    lm, prompt = make(), [2, 3, 4]
    if hasattr(lm, "eval"): lm.eval()
    assert lm.reads_masks is masks
    for c, score in zip(continuations, lm.score_continuations(prompt, continuations), strict=True):
        logp = lm(torch.tensor([prompt + c])).logits.log_softmax(-1)[0, len(prompt) - 1:-1]
        assert torch.allclose(score, logp.gather(-1, torch.tensor(c)[:, None]).sum(), atol=1e-5)


@pytest.mark.parametrize("kind", [k for k, (_, masks) in KINDS.items() if not masks])
def test_a_model_without_masks_says_so(kind):
    lm = KINDS[kind][0]()
    with pytest.raises(ValueError, match="mask"): lm(torch.tensor([[1, 2]]), mask=torch.ones(2, 2, dtype=torch.bool))
    for bad, message in (([], "prompt must hold"), ([1], "continuation must hold")):
        with pytest.raises(ValueError, match=message): lm.score_continuations(bad, [[]])
    for decode in (greedy, sample, contrastive_search):
        with pytest.raises(ValueError, match=r"takes no padding.*\[1, 2\]"): decode(lm, [[1], [1, 2]], max_new_tokens=2)
