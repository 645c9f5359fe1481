"""The plain decoders against transformers on the same weights: token for token (greedy, beam), in distribution (samplers)."""
import itertools

import pytest
import torch
from tests.models import VOCAB, hf_model, hflm

from arlm_nb.core.generation import beam, greedy, sample
from arlm_nb.core.hf_formats import from_hf
from arlm_nb.core.lm import TableLM
from arlm_nb.core.sampling import warp
from arlm_nb.core.statistics import same_distribution

PROMPT = [5, 9, 2, 33]


def theirs(model, n, **options):
    ids = torch.tensor([PROMPT])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, pad_token_id=0, **options)
    return out[0, len(PROMPT):].tolist()


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_greedy_and_beam_equal_transformers(family):
    model = hf_model(family)
    for eos in (None, 7):
        model.generation_config.eos_token_id = eos
        stop = False if eos is None else eos
        for lm in (hflm(family), from_hf(model)):
            assert greedy(lm, PROMPT, max_new_tokens=20, stop=stop).ids == theirs(model, 20, do_sample=False)
            for beams, penalty in ((2, 1.0), (4, 0.0), (4, 1.5), (5, -1.0)):
                ours = beam(lm, PROMPT, max_new_tokens=16, num_beams=beams, length_penalty=penalty, stop=stop).ids
                assert ours == theirs(model, 16, do_sample=False, num_beams=beams, length_penalty=penalty)


@pytest.mark.parametrize(
    "options",
    [
        dict(temperature=0.7),
        dict(top_k=2),
        dict(top_p=0.8),
        dict(min_p=0.3),
        dict(typical_p=0.7),
        dict(temperature=1.5, top_k=3, top_p=0.9),
    ],
)
def test_samplers_have_the_warped_distribution(options):
    table = TableLM.random(4, order=1, seed=1)
    sequences = torch.tensor(list(itertools.product(range(4), repeat=2)))
    logp = warp(table.table.log(), **options).log_softmax(-1)
    truth = (logp[2][sequences[:, 0]] + logp[sequences[:, 0], sequences[:, 1]]).exp()
    draws = sample(table, [[2]] * 20_000, max_new_tokens=2, seed=11, **options)
    assert same_distribution(torch.tensor([d.ids for d in draws]), sequences, truth).p_value > 1e-3
    if "temperature" not in options:  # the test can fail: the plain distribution is another one
        plain = (table.table[2][sequences[:, 0]] * table.table[sequences[:, 0], sequences[:, 1]])
        assert same_distribution(torch.tensor([d.ids for d in draws]), sequences, plain).p_value < 1e-3


def test_seeds_batches_and_streaming_on_hugging_face_models():
    lm = hflm("llama")
    prompts = [PROMPT, [1, 2], [3, 4, 5, 6, 7]]
    first = sample(lm, prompts, max_new_tokens=10, seed=3)
    assert [g.ids for g in first] == [g.ids for g in sample(lm, prompts, max_new_tokens=10, seed=3)]
    assert [g.ids for g in first] != [g.ids for g in sample(lm, prompts, max_new_tokens=10, seed=4)]
    assert [g.ids for g in greedy(lm, prompts, max_new_tokens=10)] == [greedy(lm, p, max_new_tokens=10).ids for p in prompts]
    seen = []
    g = greedy(lm, PROMPT, max_new_tokens=10, callback=seen.append, stop=lambda ids: len(ids) == 6)
    assert [s["token"] for s in seen] == g.ids and len(g.ids) == 6
    assert g.cost.forward_passes == 6 and g.cost.positions == len(PROMPT) + 5


def test_token_outside_the_vocabulary():
    with pytest.raises(ValueError, match=f"0..{VOCAB - 1}"):
        greedy(from_hf(hf_model("gpt2")), [1, VOCAB + 3], max_new_tokens=2)
