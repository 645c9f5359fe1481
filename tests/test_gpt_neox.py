"""GPT-NeoX: any whitespace through the tokenizer, scales against a plain simulation, any sharding, Hugging Face's Pythia and others, bad input."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arlm_nb.pretrained.loss_scaler import LossScaler
from arlm_nb.pretrained.neox_harness import Task, harness
from arlm_nb.pretrained.neox_model import GPTNeoX, convert_hf, padded_vocab, rotary, small_init_, to_hf, wang_init_
from arlm_nb.pretrained.neox_tasks import episode_tasks, numeral
from arlm_nb.pretrained.neox_tokenizer import neox_tokenizer
from arlm_nb.pretrained.neox_view import size_of
from arlm_nb.pretrained.zero import tensor_parallel_block, zero1

TEXT = ["def f(x):\n    return x  # twice the value\n\n" * 4, "The mean of the values along an axis.\t Then the rest."]
TOKENIZERS = {(w, p): neox_tokenizer(TEXT, 320, whitespace=w, prefix_space=p) for w in (0, 1, 5, 24) for p in (True, False)}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.text(max_size=6), st.integers(1, 60).map(lambda n: " " * n), st.sampled_from(["\t", "\n", "\r\n", "\u00a0", "\u3000", "e\u0301"])), max_size=12).map("".join),
       st.sampled_from(sorted(TOKENIZERS)))
def test_nothing_is_lost(text, kind):
    t = TOKENIZERS[kind]
    text = text.encode("utf-8", "ignore").decode()
    assert t.decode(t.encode(text)) == text


@pytest.mark.parametrize("whitespace", [2, 5, 24, 40])
def test_every_run_up_to_the_longest_is_one_token(whitespace):
    t = neox_tokenizer(TEXT, 320, whitespace=whitespace)
    def runs(text): return [len(t.token(i)) for i in t.encode(text) if set(t.token(i)) == {" "} and len(t.token(i)) > 1]
    for n in range(2, whitespace + 1): assert runs("a" + " " * n + "b") == [n]
    assert runs("a" + " " * (2 * whitespace) + "b") == [whitespace, whitespace]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.booleans(), max_size=40), st.integers(1, 5), st.integers(1, 3))
def test_scale_against_a_plain_simulation(outcomes, window, hysteresis):
    s, scale, forgiven, clean = LossScaler(64, window, hysteresis), 64.0, hysteresis - 1, 0
    for overflow in outcomes:
        if overflow:
            clean = 0
            if forgiven: forgiven -= 1
            else: scale = max(scale / 2, 1.0)
        else:
            clean += 1
            if clean % window == 0: scale, forgiven = scale * 2, hysteresis - 1
        assert s.update(overflow) == scale


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=4), st.sampled_from([torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD]))
def test_shards_change_nothing(ranks, sizes, kind):
    g = torch.Generator().manual_seed(len(sizes))
    a = [torch.nn.Parameter(torch.randn(n, 3, generator=g)) for n in sizes]
    b = [torch.nn.Parameter(p.detach().clone()) for p in a]
    one, many = kind(a, lr=0.01), zero1(kind(b, lr=0.01), ranks)
    for _ in range(3):
        for p, q in zip(a, b):
            p.grad = torch.randn(p.shape, generator=g)
            q.grad = p.grad.clone()
        one.step(), many.step()
    assert all(torch.equal(p, q) for p, q in zip(a, b))


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("pct", [0.25, 1.0])
def test_there_and_back(parallel, pct):
    torch.manual_seed(0)
    lm = GPTNeoX(50, 32, 2, 4, parallel=parallel, rotary_pct=pct, context_length=32).eval()
    back = convert_hf(to_hf(lm))
    assert back.config == lm.config and back.hash() == lm.hash()


def test_rotary_of_rows_with_their_own_positions():
    x, at = torch.randn(2, 3, 5, 8), torch.tensor([[0, 1, 2, 3, 4], [9, 9, 0, 2, 1]])
    both = rotary(x, at, 0.5)
    for b in range(2): torch.testing.assert_close(both[b], rotary(x[b:b + 1], at[b], 0.5)[0])


def test_nope_ignores_positions():
    lm, ids = GPTNeoX(50, 32, 2, 4, rotary_pct=0, context_length=32).eval(), torch.randint(50, (1, 9))
    assert lm.config.positions == "none"
    torch.testing.assert_close(lm(ids).logits, lm(ids, positions=torch.arange(9)[None] * 3).logits)


def test_bases(): assert all(int(numeral(n, b).replace(" ", ""), b) == n for n in range(40) for b in (2, 3, 6, 9))


def test_fewer_shots_are_part_of_more():
    for t in episode_tasks(20, seed=3).values():
        for i in range(20): assert t.examples(i, 5)[:1] == t.examples(i, 1) and not set(e.x for e in t.examples(i, 5)) & {t.test[i].x}


def question(**kw): return Task(**(dict(name="t", prompt=str, choices=lambda d: ("a", "b"), gold=lambda d: 0, test=[1], train=[2]) | kw))


@pytest.mark.parametrize("make, why", [
    (lambda: rotary(torch.zeros(1, 1, 1, 8), torch.zeros(1), -0.5), r"must be in \[0, 1\], got -0.5"),
    (lambda: GPTNeoX(50, 32, 2, 4, rotary_pct=0.4), "gives 3 dimensions"),
    (lambda: GPTNeoX(50, 32, 2, 5), "multiple of n_heads, got 32 and 5"),
    (lambda: GPTNeoX(50, 32, 2, 4, positions="alibi"), "unknown positions 'alibi'"),
    (lambda: small_init_(torch.zeros(2, 2), 0), "d must be >= 1, got 0"),
    (lambda: wang_init_(torch.zeros(2, 2), 0, 4), "L and d must be >= 1, got 0 and 4"),
    (lambda: padded_vocab(0), "must be >= 1"),
    (lambda: neox_tokenizer(TEXT, 320, whitespace=-3), "whitespace must be >= 0, got -3"),
    (lambda: LossScaler(initial=0.5), "initial must be >= 1, got 0.5"),
    (lambda: question(gold=lambda d: 2), r"gold must be in 0..1 \(its choices\), got 2"),
    (lambda: question(gold=lambda d: -1), "got -1"),
    (lambda: question(test=[2]), "examples from its test documents"),
    (lambda: harness(None, [], shots=(0,)), "at least one task"),
    (lambda: tensor_parallel_block(GPTNeoX(50, 32, 1, 4).blocks[0], torch.zeros(1, 2, 32), 5), "must divide 4 heads"),
    (lambda: size_of(tied_norm=True, parallel=False), "needs parallel=True"),
])
def test_refused(make, why):
    with pytest.raises(ValueError, match=why): make()


@pytest.mark.parametrize("kind", ["GPT2", "Llama", "GPTJ"])
def test_other_architectures_are_refused(kind):
    import transformers
    small = dict(vocab_size=20, bos_token_id=None, eos_token_id=None)
    sizes = {"Llama": dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16), "GPT2": dict(n_embd=16, n_layer=1, n_head=2),
             "GPTJ": dict(n_embd=16, n_layer=1, n_head=2, rotary_dim=4)}
    name = {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM")
    model = getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**small, **sizes[kind]))
    with pytest.raises(ValueError, match=f"gpt_neox, got {model.config.model_type}"): convert_hf(model)
