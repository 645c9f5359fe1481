"""SpaceByte: any cut of a stream, samples that follow the model's law, no leak, interrupted training, Hugging Face models, saved models, bad input."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arlm_nb.architectures.byte_flops import n_mult_add
from arlm_nb.architectures.byte_frontier import bits_per_byte, compute_frontier, text_bits, token_nats
from arlm_nb.architectures.byte_patches import BOS, byte_tokenizer, in_room, patch_starts, text_bytes
from arlm_nb.architectures.megabyte import MegaByteConfig, MegaByteTransformer
from arlm_nb.architectures.spacebyte_model import SpaceByteConfig, SpaceByteTransformer, patch_objective, stop_at_overflow
from arlm_nb.core.checkpoints import load_checkpoint, load_lm, save_checkpoint
from arlm_nb.core.statistics import exact_sequence_distribution, influence, same_distribution

SMALL = dict(d_model=16, d_local=8, n_layers=2, n_local_layers=2, context=40, global_context=8, window=5, d_head=4)


def small(kind="utf8", scale=8.0, **more):
    torch.manual_seed(0)
    if kind == "megabyte": lm = MegaByteTransformer(MegaByteConfig(16, 8, 2, 1, patch=4, context=40, d_head=4), byte_tokenizer())
    else: lm = SpaceByteTransformer(SpaceByteConfig(**(SMALL | {"rule": kind} | more)), byte_tokenizer())
    for p in lm.parameters(): p.data.mul_(scale) if p.dim() > 1 else None
    return lm.double().eval()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.text(st.sampled_from("ab1 ,.\n_é東🙂"), max_size=14), st.lists(st.integers(1, 9), max_size=6), st.sampled_from(["utf8", "periodic", "megabyte"]))
def test_any_cut_of_a_stream_is_the_whole(text, cuts, kind):
    lm, ids = small(kind), text_bytes(text)[None, :40]
    whole, cache, at, parts = lm(ids).logits, lm.new_cache(), 0, []
    for n in [*cuts, 40]:
        if at < ids.shape[1]: parts.append(lm(ids[:, at:at + n], cache=cache).logits)
        at += n
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-8, rtol=1e-8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.binary(min_size=1, max_size=40), st.integers(1, 6))
def test_starts_depend_on_the_past_alone(data, room):
    ids = torch.tensor(list(data))
    starts = patch_starts(ids)
    assert torch.equal(starts[:-1], patch_starts(ids[:-1]) if len(ids) > 1 else starts[:-1])
    spacelike = [not (chr(b).isalnum() and b < 128 or 0x80 <= b < 0xC0) for b in data]
    assert starts.tolist() == [s and not (i and spacelike[i - 1]) for i, s in enumerate(spacelike)]
    seen = 0
    for start, kept in zip(starts.tolist(), in_room(starts, room).tolist()):
        seen += start
        assert kept == (seen <= room)


@pytest.mark.parametrize("kind", ["utf8", "periodic", "megabyte"])
def test_no_leak(kind):
    lm = small(kind)
    reach = influence(lambda x: lm(x).logits, text_bytes("a b_c, d (e) fgh ij k")[:22], 257, changes=4, tolerance=1e-12)
    assert not reach.triu(1).any() and reach.diagonal().all()


def test_a_later_start_is_no_news_when_the_room_is_used_up():
    lm = small(global_context=3)
    ids = text_bytes("a b c d e f g h")[None]
    other = ids.clone()
    other[0, 12] = ord("x")                       # a start less, behind the overflow
    assert torch.equal(lm(ids).logits[:, :12], lm(other).logits[:, :12])
    plan = lm.starts(ids).cumsum(1) <= 3
    assert patch_objective(lm, ids).parts["ignored"] == pytest.approx(1 - float(plan[:, :-1].float().mean()), abs=1e-6)


def test_samples_follow_the_law():
    from arlm_nb.core.generation import sample
    lm = small(scale=14.0).float()
    prompt = text_bytes("if x").tolist()
    sequences, probabilities = exact_sequence_distribution(lm, prompt, 2)
    drawn = [g.ids for seed in range(4) for g in sample(lm, [prompt] * 5000, max_new_tokens=2, seed=seed, stop=False)]
    assert len(drawn) == 20_000 and same_distribution(drawn, sequences, probabilities).p_value > 0.001


def test_interrupted_training_goes_on(tmp_path):
    from arlm_nb.core.training import fit
    data = lambda step, rng: torch.randint(32, 127, (4, 30), generator=rng)
    calls = []
    def stopped(model, batch, rng):
        calls.append(1)
        if len(calls) == 4: raise KeyboardInterrupt
        return patch_objective(model, batch, rng)
    def run(objective, folder=None): return fit(small(scale=1.0).float(), data, objective, steps=6, lr=1e-2, optimizer="muon", progress=False, checkpoint=folder)
    half = run(stopped, tmp_path)
    assert half.interrupted and half.steps_done == 3
    with pytest.raises(KeyboardInterrupt): half.whole()
    for a, b in zip(run(patch_objective).model.parameters(), run(patch_objective, tmp_path).whole().model.parameters()): torch.testing.assert_close(a, b)


def random_hf(tokenizer):
    import transformers

    from arlm_nb.core.hflm import HFLM
    torch.manual_seed(0)
    return HFLM(transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                                                                       max_position_embeddings=64)).eval(), tokenizer)


def test_hugging_face_models_are_counted_in_bytes():
    from arlm_nb.core.tokenizer import Tokenizer
    text = "naïve words, some words twice, some words three times: words."
    for specials in (("<eos>",), ()):                                    # with a begin token, and without one: then the first token has no score
        tok = Tokenizer.train([text] * 3, "bpe", 290, specials=specials)
        lm, ids = random_hf(tok), tok.encode(text)
        begin = [tok.bos_id] if specials else []
        with torch.no_grad(): logp = lm(torch.tensor([begin + ids])).logits[0].log_softmax(-1)
        want = -sum(float(logp[i, t]) for i, t in enumerate((begin + ids)[1:]))
        n_bytes = len(text.encode()) - (0 if specials else tok.bytes_of(ids[:1]))
        assert bits_per_byte(lm, text) == pytest.approx(want / math.log(2) / n_bytes, rel=1e-4)
    table = compute_frontier({"llama": lm, "ours": small().float()}, text)
    assert set(table.names) == {"llama", "ours"} and (table.flops > 0).all()
    assert n_mult_add(lm, 10).total > 10 * 16 * tok.vocab_size


def test_long_texts_are_read_whole_whatever_the_room():
    text = "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 4
    for room in (2, 5, 12, 40):
        lm = small(global_context=room).float()
        nats = token_nats(lm, [text])[0]
        assert len(nats) == len(text) and bool((nats > 0).all())
    assert text_bits(lm, [text, text[:50]])[0] == pytest.approx(bits_per_byte(lm, text), rel=1e-6)


@pytest.mark.parametrize("kind, name", [("utf8", "SpaceByteTransformer"), ("periodic", "SpaceByteTransformer"), ("megabyte", "MegaByteTransformer")])
def test_saved_models_come_back(kind, name, tmp_path):
    lm = small(kind, scale=1.0).float()
    again = load_lm(str(save_checkpoint(lm, tmp_path / "m", {"model": name}, dtype=torch.float32)))
    ids = text_bytes("saved, and loaded")[None]
    assert type(again) is type(lm) and again.config == lm.config and torch.equal(again(ids).logits, lm(ids).logits)
    assert again.tokenizer.decode(ids[0, 1:].tolist()) == "saved, and loaded"


def test_a_damaged_configuration_is_refused(tmp_path):
    folder = save_checkpoint(small().float(), tmp_path / "m", {"model": "SpaceByteTransformer"})
    note = (folder / "note.json").read_text()
    (folder / "note.json").write_text(note.replace('"d_local": 8', '"d_local": 12'))
    with pytest.raises(ValueError, match="does not fit"): load_checkpoint(folder)


def test_shipped_models():
    for name in ("", "-periodic", "-bytes"):
        lm = load_lm(f"architectures/spacebyte{name}")
        assert bits_per_byte(lm, "the number of elements in the list, and the list of numbers in the sequence") < 4.5
    assert load_lm("architectures/spacebyte-periodic").config.rule == "periodic"


def test_generation_ends_with_the_room():
    from arlm_nb.core.generation import sample
    lm = small(global_context=3).float()
    prompt = text_bytes("a b").tolist()
    for seed in range(5):
        out = sample(lm, prompt, max_new_tokens=30, seed=seed, stop=stop_at_overflow(lm, prompt))
        assert int(lm.starts(torch.tensor([prompt + out.ids[:-1]])).sum()) <= 3


def test_sites_and_caches():
    lm, ids = small(), text_bytes("hooks at patches")[None]
    with lm.record(["blocks.1.hook_patches", "blocks.1.hook_resid_post"]) as seen: lm(ids)
    assert seen["blocks.1.hook_patches"].shape == (1, 8, 16) and seen["blocks.1.hook_resid_post"].shape == (1, 8, 16)
    plain = lm(ids).logits
    with lm.patch({"blocks.1.hook_patches": lambda y: y * 0}): assert not torch.equal(lm(ids).logits, plain)
    rows = torch.cat([ids, ids.flip(1)])
    cache, other = lm.new_cache(2), lm.new_cache(1)
    lm(rows, cache=cache), lm(ids, cache=other)
    cache.join(other).fork(2)
    got = lm(torch.full((6, 1), 97), cache=cache).logits
    torch.testing.assert_close(got[4], lm(torch.cat([ids, torch.tensor([[97]])], 1)).logits[0, -1:], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("call, message", [
    (lambda: SpaceByteConfig(d_model=16, d_local=32), "d_local must be <= d_model = 16, got 32"),
    (lambda: SpaceByteConfig(rule="periodic", context=50, global_context=8), "multiple of global_context, got 50 and 8"),
    (lambda: SpaceByteConfig(n_local_layers=2, n_initial_layers=3), "n_initial_layers must be in 0..n_local_layers = 2, got 3"),
    (lambda: SpaceByteConfig(n_layers=-1), "n_layers must be >= 0, got -1"),
    (lambda: SpaceByteConfig(window=0), "window must be >= 1, got 0"),
    (lambda: SpaceByteConfig(d_model=50), "multiples of d_head"),
    (lambda: SpaceByteConfig(rule="space"), "unknown rule"),
    (lambda: small()(torch.tensor([[BOS + 1]])), r"ids must be in 0..256, got 257"),
    (lambda: small()(torch.zeros(1, 41, dtype=torch.long)), "41 tokens do not fit the context of 40"),
    (lambda: small()(None), "takes ids only"),
    (lambda: small("megabyte")(torch.zeros(1, 41, dtype=torch.long)), "41 tokens do not fit the context of 40"),
    (lambda: small("megabyte")(torch.zeros(1, 4, dtype=torch.long), positions=torch.zeros(1, 4)), "causal order"),
    (lambda: MegaByteConfig(patch=0), "patch must be >= 1, got 0"),
    (lambda: patch_starts(torch.tensor([-1])), "BOS = 256"),
    (lambda: in_room(torch.ones(3, dtype=torch.bool), 0), "room must be >= 1, got 0"),
    (lambda: n_mult_add(small(), 41), "seq_len must be in 1..40, got 41"),
    (lambda: bits_per_byte(small().float(), []), "must not be empty"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message): call()


def test_a_model_without_a_tokenizer_is_refused():
    lm = small().float()
    lm.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer"): bits_per_byte(lm, "text")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["utf8", "periodic"])
def test_the_pass_is_what_the_paper_says(kind):
    "Row by row, patch by patch, with masks written out."
    lm = small(kind)
    ids = torch.stack([text_bytes(t)[:36] for t in ("one two, three four five six seven eight nine ten", "a b c d e f g h i j k l m n o p q r s t u v w x")])
    c, (a, b), at = lm.config, lm._cut, torch.arange(36)
    near = (at[:, None] >= at) & (at[:, None] - at < c.window)
    def run(block, x, mask):
        m, places = block.mixer, torch.arange(x.shape[1])[None]
        q, k, v = m._heads(block.norm1(x))
        scores = m.rotary(q, places) @ m.rotary(k, places).transpose(-1, -2) / m.d_head**0.5
        x = x + m.out((scores.masked_fill(~mask, -math.inf).softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + block.ffn(block.norm2(x))
    for row, got in zip(ids, lm(ids).logits):
        x = (lm.tok(row) + lm.pos(at))[None]
        for l in range(a): x = run(lm.blocks[l], x, near)
        places = patch_starts(row, c.rule, c.period).nonzero()[:, 0][: c.global_context]
        y = torch.cat([torch.zeros(len(places), c.d_model - c.d_local, dtype=x.dtype), x[0, places]], 1) + lm.pos_global(torch.arange(len(places)))
        y = y[None]
        for l in range(a, b): y = run(lm.blocks[l], y, torch.ones(len(places), len(places), dtype=torch.bool).tril())
        for n, p in enumerate(places.tolist()): x[0, p] += y[0, n, c.d_model - c.d_local:]
        for l in range(b, lm.n_layers): x = run(lm.blocks[l], x, near)
        assert torch.allclose(lm.head(lm.norm(x))[0], got, atol=1e-9)
