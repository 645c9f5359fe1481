"Echo embeddings on Hugging Face models, and identities for random templates."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from arlm_nb.core.hflm import HFLM
from arlm_nb.core.tokenizer import Tokenizer
from arlm_nb.interp.echo_embed import CLASSICAL, ECHO, EchoTemplate, contrastive_objective, embed, pool, token_states

TOK = Tokenizer.train(kind="byte")


def _gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel
    return GPT2LMHeadModel(GPT2Config(vocab_size=TOK.vocab_size, n_positions=128, n_embd=32, n_layer=2, n_head=4))


def _llama():
    from transformers import LlamaConfig, LlamaForCausalLM
    return LlamaForCausalLM(LlamaConfig(vocab_size=TOK.vocab_size, max_position_embeddings=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2))


@pytest.fixture(scope="module", params=[_gpt2, _llama], ids=["gpt2", "llama"])
def lm(request):
    torch.manual_seed(0)
    return HFLM(request.param().eval(), TOK)


TEXTS = ["a red fox", "no", "the end of it"]


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("layer", [-1, 0])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_batch_is_one_at_a_time(lm, pooling, layer, bidirectional):
    how = dict(template=ECHO, pooling=pooling, layer=layer, bidirectional=bidirectional)
    together = embed(lm, TEXTS, **how)
    np.testing.assert_allclose(together, np.concatenate([embed(lm, [t], **how) for t in TEXTS]), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_the_end_reaches_the_second_copy_only(lm):
    _, first, second = token_states(lm, "a red fox", EchoTemplate("{!text} again: {text}"))
    _, first_b, second_b = token_states(lm, "a red fog", EchoTemplate("{!text} again: {text}"))
    torch.testing.assert_close(first[:-1], first_b[:-1], atol=1e-6, rtol=0)
    assert (second - second_b).abs().amax(-1).min() > 1e-6
    _, once, _ = token_states(lm, "a red fox", CLASSICAL)
    torch.testing.assert_close(first, once, atol=1e-5, rtol=0)


def test_it_trains(lm):
    objective = contrastive_objective(EchoTemplate("{!text} : {text}"), CLASSICAL)
    loss = objective(lm, {"query": TEXTS, "positive": [t + "!" for t in TEXTS]})
    loss.value.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in lm.parameters())


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["{text}", "{!text}", "{=.}", "{!other}", " words ", "\n"]), min_size=1, max_size=7), st.text("abc ", min_size=1, max_size=9).filter(str.strip), st.integers(1, 4))
def test_what_is_pooled_is_what_the_braces_say(parts, text, limit):
    template = "".join(parts)
    if not {"{text}", "{=.}"} & set(parts):
        with pytest.raises(ValueError, match="pools nothing"): EchoTemplate(template)
        return
    ids, pooled = EchoTemplate(template).build(TOK, text=text, other="zz", max_tokens=limit)
    own, dot = TOK.encode(text)[:limit], TOK.encode(".")
    assert [i for i, p in zip(ids, pooled) if p] == sum((own if p == "{text}" else dot for p in parts if p in ("{text}", "{=.}")), [])


@pytest.mark.parametrize("template, told", [("{text", "unbalanced"), ("text}", "unbalanced"), ("{} {text}", "empty braces"), ("plain", "pools nothing"), ("{!text}", "pools nothing")])
def test_templates_are_checked(template, told):
    with pytest.raises(ValueError, match=told): EchoTemplate(template)


@pytest.mark.parametrize("how, told", [
    (dict(pooling="max"), "mean or last, got 'max'"), (dict(layer=2), "0..1, got 2"), (dict(texts=["x" * 200]), "context is 128"), (dict(texts=[""]), "is empty"), (dict(texts="one"), "a list of texts"),
])
def test_bad_input_is_named(lm, how, told):
    with pytest.raises(ValueError, match=told): embed(lm, **({"texts": TEXTS} | how))


def test_the_last_marked_token_is_taken():
    states = torch.arange(12.0).view(1, 4, 3)
    assert torch.equal(pool(states, [[False, True, True, False]], "last"), states[:, 2])
    assert torch.equal(pool(states, [[False, True, True, False]]), states[:, 1:3].mean(1))
