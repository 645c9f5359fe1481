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


def test_sampling_keeps_the_distribution(monkeypatch):
    "20,000 texts of three tokens against the exact law; passes, laws and layouts are computed once for each text and draft."
    from arlm_nb.core.draft_tree import Follower
    from arlm_nb.core.generation import Cost
    from arlm_nb.core.statistics import exact_sequence_distribution, same_distribution
    from arlm_nb.core.transformer import Transformer, TransformerConfig
    from arlm_nb.speculative import multi_token_prediction as module
    torch.manual_seed(0)
    tiny = Transformer(TransformerConfig(4, 16, 1, 2, context_length=32, positions="rotary")).eval().double()
    for w in tiny.parameters(): w.data.mul_(4 if w.dim() > 1 else 1)
    sequences, exact = exact_sequence_distribution(tiny, [2, 0], 3)
    small, g, seen, laws_of, made, plain = MaskedMTP(tiny, 2, 2), torch.Generator().manual_seed(2), {}, {}, {}, module.mtp_layout
    for layer in small.adapters: layer.B.data = torch.randn(layer.B.shape, generator=g, dtype=torch.float64) * 0.3

    def layout(*key):
        key = tuple(tuple(k) if isinstance(k, list) else k for k in key)
        if key not in made: made[key] = plain(*key)
        return made[key]

    monkeypatch.setattr(module, "mtp_layout", layout)

    class Looked:
        def __init__(self, ids): self.ids = list(ids)
        root = property(lambda self: self.ids[-1])

        def more(self, ids, parents):
            key = (*self.ids, -99, *ids)
            if key not in seen:
                with torch.no_grad(): seen[key] = Follower(small, self.ids, Cost()).more(ids, parents)
            return seen[key]

        def accept(self, nodes, tokens): self.ids += tokens

    class Once:
        block = 2
        def states(self, layout, hidden, kept): return [(*self.text, kept, i, hidden[j]) for i, j in enumerate(layout.block(kept))] or None

        def draft(self, states, last, law, generator):
            tokens, laws = [], []
            for *key, z in states:
                key = (*key, last)
                if key not in laws_of:
                    with torch.no_grad(): laws_of[key] = law(small.fill(z, torch.tensor(last)))
                laws.append(laws_of[key])
                last = int(torch.multinomial(laws[-1], 1, generator=generator))
                tokens.append(last)
            return tokens, torch.stack(laws)

    def draw(generator, keep_all=False):
        mtp, target = Once(), Looked([2, 0])
        step = module.MTPStep(target, mtp, 2, True, lambda x: x.softmax(-1), generator)
        while len(target.ids) < 5:
            mtp.text = (*target.ids, -7, *step.drafts)
            if keep_all and step.drafts:
                target.ids += step.drafts
                step.drafts, step.q = [], None
            else: step()
        return target.ids[2:5]

    gen = torch.Generator().manual_seed(5)
    assert same_distribution(torch.tensor([draw(gen) for _ in range(20_000)]), sequences, exact).p_value > 1e-3
    assert same_distribution(torch.tensor([draw(gen, True) for _ in range(2000)]), sequences, exact).p_value < 1e-6
