"""GNMT: what no notebook shows: bad input, the sampler's law, leaks, Hugging Face models, saved and quantized models."""
import json
import math

import pytest
import torch

from arlm_nb.core.generation import decoders, get_decoder, sample
from arlm_nb.core.statistics import exact_sequence_distribution, influence, same_distribution
from arlm_nb.translation import gnmt as G
from arlm_nb.translation.gleu_reward import sample_targets, target_logprobs
from tests.models import FLAGSHIP, hf_model


def tiny(**how):
    torch.manual_seed(0)
    model = G.GNMT(12, d_model=8, n_layers=3, **how)
    with torch.no_grad(): model.tok.weight.mul_(3), model.bias.normal_()
    return model.eval()


def marian(seed: int = 0):
    from transformers import MarianConfig, MarianMTModel
    torch.manual_seed(seed)
    return MarianMTModel(MarianConfig(vocab_size=20, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
                                      max_position_embeddings=32, pad_token_id=19, eos_token_id=0, decoder_start_token_id=19, forced_eos_token_id=None, init_std=0.4))


def test_names_of_the_card():
    names = "GNMT wordpieces mixed_words gleu maximum_likelihood expected_reward length_penalty coverage_penalty gnmt_beam quantize quantization_report wavefront Schedule".split()
    assert [n for n in names if not hasattr(G, n)] == []
    assert "gnmt" in decoders() and get_decoder("gnmt") is G.gnmt_beam


def test_samples_follow_the_model():
    torch.manual_seed(1)
    model = G.GNMT(4, d_model=4, n_layers=2, pad=0, bos=1, eos=2).eval()
    with torch.no_grad(): model.tok.weight.mul_(4), model.bias.normal_()
    lm = model.given([3, 1, 2])
    sequences, p = exact_sequence_distribution(lm, lm.prompt, 3)
    prompt = torch.ones(20_000, 1, dtype=torch.long)
    drawn = sample_targets(model, prompt, model.encode([3, 1, 2]).select([0] * 20_000), -1, 3, torch.Generator().manual_seed(0))  # no end token
    assert same_distribution(drawn, sequences, p).p_value > 1e-3
    got = torch.tensor([g.ids for g in sample(lm, [lm.prompt] * 20_000, max_new_tokens=3, stop=False, seed=2)])
    assert same_distribution(got, sequences, p).p_value > 1e-3


def test_no_leak_through_padding_or_rows():
    model = tiny()
    source = torch.tensor([[5, 6, 7, 2, 0, 0], [8, 9, 10, 11, 4, 2]])
    target = torch.randint(3, 12, (2, 5))
    both = model(target, cache=model.encode(source)).logits
    for b, n in ((0, 4), (1, 6)): torch.testing.assert_close(model(target[b:b + 1], cache=model.encode(source[b:b + 1, :n])).logits[0], both[b])
    for how in ({}, {"attention": "top"}, {"clip": 1.0}):
        m = tiny(**how).double()
        seen = influence(lambda ids: m(ids, cache=m.encode(source[:1].expand(len(ids), -1))).logits, target[0], 12, 1e-9)
        assert seen.tolist() == torch.ones(5, 5).tril().bool().tolist()


@pytest.mark.parametrize("family", FLAGSHIP)
def test_causal_models(family):
    from arlm_nb.core.generation import beam
    from arlm_nb.core.hflm import HFLM
    lm, prompt = HFLM(hf_model(family)), [3, 5, 7, 9]
    plain = beam(lm, prompt, num_beams=3, length_penalty=0.0, max_new_tokens=6, stop=1)
    assert G.gnmt_beam(lm, prompt, beam=3, alpha=0, beta=0, beam_size=math.inf, max_new_tokens=6, stop=1).ids == plain.ids
    g = G.gnmt_beam(lm, [prompt, prompt[:2]], beam=3, max_new_tokens=5, stop=1)
    h = g[1].steps[-1]["hypotheses"][0]
    assert len(h.attention) == len(h.ids) and h.attention[0].shape == (2,) and abs(float(sum(a.sum() for a in h.attention)) - len(h.ids)) < 1e-4
    batch = {"prompt": torch.tensor([prompt]), "target": torch.tensor([[4, 6, 1]]), "eos": 1}
    assert math.isfinite(float(G.expected_reward(lm, batch, torch.Generator().manual_seed(0), samples=3).value.detach()))
    with pytest.raises(ValueError, match="no end token"): G.expected_reward(lm, {k: v for k, v in batch.items() if k != "eos"}, samples=3)


def test_encoder_decoder_checkpoints():
    lm = G.HFTranslator(marian())
    sources = [[5, 6, 7, 0], [8, 9, 0]]
    together = G.gnmt_beam(lm, sources, beam=3, max_new_tokens=6)
    assert [g.ids for g in together] == [G.gnmt_beam(lm, s, beam=3, max_new_tokens=6).ids for s in sources]
    batch = {"source": torch.tensor([[5, 6, 7, 0]]), "target": torch.tensor([[8, 9, 0]])}
    loss = G.expected_reward(lm, batch, torch.Generator().manual_seed(0), samples=4)
    loss.value.backward()
    assert any(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in lm.parameters())
    with pytest.raises(ValueError, match="has no encoder"): G.HFTranslator(hf_model("gpt2"))
    with pytest.raises(ValueError, match="does not fit the context of 32"): lm.encode([[5] * 40])
    with pytest.raises(ValueError, match="needs its source"): lm(torch.tensor([[1]]))


def test_training_moves_towards_the_reward():
    "Two dozen steps on one sentence raise the mean GLEU of samples; the likelihood alone is no part of it (alpha = 0)."
    model = tiny()
    batch = {"source": torch.tensor([[5, 6, 2]] * 8), "target": torch.tensor([[6, 5, 2]] * 8)}
    opt, seen = torch.optim.Adam(model.parameters(), 2e-2), []
    for i in range(40):
        opt.zero_grad()
        loss = G.expected_reward(model, batch, torch.Generator().manual_seed(i), alpha=0.0)
        loss.value.backward(), opt.step()
        seen.append(loss.parts["reward"])
    assert sum(seen[-5:]) / 5 > sum(seen[:5]) / 5 + 0.2
    prompt = torch.ones(1, 1, dtype=torch.long)
    assert target_logprobs(model, prompt, torch.tensor([[6, 5, 2, 7, 7]]), 2, model.encode([5, 6, 2]))[0, 3:].tolist() == [0, 0]


def test_saved_and_loaded(tmp_path):
    from arlm_nb.core.checkpoints import load_checkpoint, save_checkpoint
    tok = G.wordpieces(["abab cdcd abcd", "dcba ab"] * 3, 60)
    torch.manual_seed(0)
    model = G.GNMT(tok, d_model=8, n_layers=2, clip=1.0)
    again = load_checkpoint(save_checkpoint(model, tmp_path / "m", {"model": "GNMT"}, torch.float32))
    assert again.hash() == model.hash() and again.delta == 1.0 and again.tokenizer == tok
    assert G.gnmt_beam(again, "abab cd", max_new_tokens=5).ids == G.gnmt_beam(model.eval(), "abab cd", max_new_tokens=5).ids
    note = json.loads((tmp_path / "m" / "note.json").read_text())
    (tmp_path / "m" / "note.json").write_text(json.dumps(note | {"config": note["config"] | {"n_layers": 3}}))
    with pytest.raises(ValueError, match="does not fit its note"): load_checkpoint(tmp_path / "m")


def test_interrupted_training_saves_nothing(tmp_path, monkeypatch):
    from arlm_nb.translation import gnmt_train as T
    data = T.gnmt_corpus.__wrapped__(60)
    torch.manual_seed(0)
    model = G.GNMT(G.wordpieces(T.sentences(data), 160), d_model=8, n_layers=2, clip=1.0)
    monkeypatch.setattr(T, "maximum_likelihood", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt, match="stopped after 0 steps"): T.train_likelihood(model, steps=3, data=data)


def test_quantized_model_decodes():
    model = tiny(clip=1.0)
    q = G.quantize(model)
    assert q.tok.q.dtype == torch.int8 and model.tok.weight.dtype == torch.float32  # the original is untouched
    assert len(G.gnmt_beam(q, [[5, 6, 2], [7, 8, 9, 2]], beam=3, max_new_tokens=5)) == 2
    lm = q.given([5, 6, 2])
    assert sample(lm, lm.prompt, max_new_tokens=4, stop=2).ids
    with pytest.warns(UserWarning, match="saturate"): G.quantize(tiny())
    with pytest.raises(ValueError, match="only bottom attention"): G.quantize(tiny(attention="top"))


@pytest.mark.parametrize("call, message", [
    (lambda: G.gnmt_beam(tiny(), [5, 2], beam=0, max_new_tokens=3), "beam must be >= 1, got 0"),
    (lambda: G.gnmt_beam(tiny(), [5, 2], alpha=-0.2, max_new_tokens=3), "alpha must be >= 0"),
    (lambda: G.gnmt_beam(tiny(), [5, 2], beta=float("nan"), max_new_tokens=3), "beta must be >= 0"),
    (lambda: G.gnmt_beam(tiny(), [5, 2], max_new_tokens=0), "max_new_tokens must be >= 1"),
    (lambda: G.gnmt_beam(tiny(), "a text", max_new_tokens=3), "no tokenizer"),
    (lambda: G.gnmt_beam(tiny(), [5, 99], max_new_tokens=3), "ids must be in 0..11"),
    (lambda: tiny().encode(torch.zeros(1, 3, dtype=torch.long)), "an empty one"),
    (lambda: tiny()(torch.tensor([[1]]), cache=tiny().encode([5]), mask=torch.ones(1)), "must be None"),
    (lambda: G.GNMT(12, d_model=7), "d_model must be even"),
    (lambda: G.GNMT(12, n_layers=0), "n_layers must be >= 1"),
    (lambda: G.gleu("a", "b", 0), "n must be >= 1"),
    (lambda: G.length_penalty(3, -1), "alpha must be >= 0"),
    (lambda: G.coverage_penalty(torch.ones(2, 2), -1), "beta must be >= 0"),
    (lambda: G.wordpieces(["abc def"], 5), "size must be >="),
    (lambda: G.mixed_words(["a"], ["<B>a"]), "marked letter"),
    (lambda: G.rare_accuracy([["a"]], [["a"]], {"a"}), "no rare word"),
    (lambda: G.wavefront(3, 0), "steps must be >= 1"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message): call()


def literal_beam(table, prompt, K, most, alpha, width, eos=0):
    "The search in plain words, for a table: (score, ids) of the ended, best first, and how many tokens were read."
    running, ended = [(0.0, [])], []
    for n in range(1, most + 1):
        options = []
        for total, ids in running:
            logp = table(torch.tensor([[*prompt, *ids]])).logits[0, -1].log_softmax(-1)
            options += [(total + float(logp[t]), [*ids, t]) for t in range(len(logp)) if logp[t] >= logp.max() - width]
        options = sorted(options, reverse=True)[:2 * K]
        ends = [ids[-1] == eos or n == most for _, ids in options]
        ended += [(total / G.length_penalty(n, alpha), ids, total) for (total, ids), over in list(zip(options, ends))[:K] if over]
        ended = sorted(ended, reverse=True)
        ended = [h for h in ended if h[0] >= ended[0][0] - width]
        running = [o for o, over in zip(options, ends) if not over][:K]
        if not running: break
        if ended and running[0][0] / G.length_penalty(most, alpha) < ended[0][0]: break  # none can win any more
        if len(ended) >= K and running[0][0] <= max(h[2] for h in ended): break  # K ended, and the best of all is among them
    return [(s, ids) for s, ids, _ in ended], n


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("width", [0.7, 1.5, math.inf])
@pytest.mark.parametrize("K", [2, 3])
def test_beams_are_those_of_the_plain_search(alpha, width, K):
    from arlm_nb.core.lm import TableLM
    lengths = set()
    for seed in range(12):
        table = TableLM.random(5, order=2, seed=seed, concentration=0.6)
        want, n = literal_beam(table, [1, 2], K, 7, alpha, width)
        g = G.gnmt_beam(table, [1, 2], beam=K, alpha=alpha, beta=0, beam_size=width, max_new_tokens=7, stop=0)
        found = g.steps[-1]["hypotheses"]
        assert [h.ids for h in found] == [ids for _, ids in want] and [h.score for h in found] == pytest.approx([s for s, _ in want])
        assert len(g.steps) == n
        lengths.add(n)
    assert len(lengths) > 1


def test_how_busy_the_devices_are():
    from arlm_nb.translation.wavefront import wavefront
    assert wavefront(4, 6, devices=1).busy == 1
    for devices in (2, 4):
        plan = wavefront(4, 6, devices=devices)
        assert plan.busy == sum(len(plan.running(t)) for t in range(plan.length)) / (devices * plan.length) < 1
