"""Mask tokens and gated LoRA on Hugging Face families: the model itself is unchanged, and so is its text."""
import pytest
import torch

from arlm_nb.core.generation import greedy
from arlm_nb.core.hflm import HFLM
from arlm_nb.core.lora import lora_layers, remove_lora
from arlm_nb.speculative.masked_mtp import MaskedMTP
from arlm_nb.speculative.multi_token_prediction import AcceptanceByOffset, mtp_decode

SIZES = dict(vocab_size=50, bos_token_id=0, eos_token_id=1)


def family(name):
    import transformers as t
    torch.manual_seed(0)
    if name == "gpt2": model = t.GPT2LMHeadModel(t.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, **SIZES))
    elif name == "neox": model = t.GPTNeoXForCausalLM(t.GPTNeoXConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64, **SIZES))
    else: model = t.Qwen2ForCausalLM(t.Qwen2Config(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, **SIZES))
    return HFLM(model.eval())


@pytest.mark.parametrize("name", ["gpt2", "neox", "qwen2"])
def test_family(name):
    prompts, ids = [[5, 6, 7, 8], [9, 2, 3]], torch.randint(50, (2, 10), generator=torch.Generator().manual_seed(0))
    lm = family(name)
    with torch.no_grad(): logits = lm(ids).logits
    text = [g.ids for g in greedy(lm, prompts, max_new_tokens=12, stop=False)]
    mtp = MaskedMTP(lm, k=3, rank=2)
    g = torch.Generator().manual_seed(1)
    for layer in mtp.adapters: layer.B.data = torch.randn(layer.B.shape, generator=g) * 0.2
    with torch.no_grad(): assert torch.equal(mtp(ids).logits, logits)
    for mode in ("linear", "quadratic"):
        found = mtp_decode(lm, prompts, mtp=mtp, mode=mode, max_new_tokens=12, stop=False)
        assert [f.ids for f in found] == text
        rate = AcceptanceByOffset.of(found).rate
        assert ((rate >= 0) & (rate <= 1)).all()
    assert len(lora_layers(lm)) == len(mtp.adapters) and not lora_layers(remove_lora(lm))


def test_acceptance_without_guesses():
    lm = family("gpt2")
    found = mtp_decode(lm, [5, 6, 7], mtp=MaskedMTP(lm, k=0, rank=2), max_new_tokens=5, stop=False)
    assert len(AcceptanceByOffset.of([found]).rate) == 0 and found.cost.forward_passes == 5


def test_sampling_repeats_by_seed():
    lm = family("qwen2")
    mtp = MaskedMTP(lm, k=2, rank=2)
    a, b, c = (mtp_decode(lm, [5, 6, 7], mtp=mtp, temperature=1.0, top_k=20, max_new_tokens=15, seed=s, stop=False).ids for s in (0, 0, 1))
    assert a == b != c
