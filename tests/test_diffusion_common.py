"""Diffusion's common ground: the names of its card, Hugging Face families as denoisers, properties of processes and counts, bad input."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import VOCAB, hflm

from arlm_nb.core.generation import decoders, get_decoder
from arlm_nb.core.masks import causal
from arlm_nb.diffusion import common as C

CARD = """Schedule schedule GaussianSchedule gaussian_schedule Absorbing Uniform Hybrid GaussianProcess MaskedLM DiffusionTransformer masked_diffusion_loss
score_entropy_loss nelbo NELBO exact_nelbo denoise Ancestral TopK Threshold Remask num_transfer_tokens gumbel_argmax masked_diffusion two_stream
settled_active_worthless MarkovSource OracleDenoiser sample_quality Quality""".split()
MASK = VOCAB - 1


def rng(seed=0): return torch.Generator().manual_seed(seed)


def test_names_of_the_card():
    assert [n for n in CARD if not hasattr(C, n)] == []
    assert [n for n in C.__all__ if not hasattr(C, n)] == []
    assert "masked_diffusion" in decoders() and get_decoder("masked_diffusion") is C.masked_diffusion


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_hugging_face_families_as_denoisers(family):
    lm = hflm(family)
    x = torch.randint(1, MASK, (1, 9), generator=rng(1))
    x[0, [2, 5]] = MASK
    d = C.MaskedLM(lm, mask_id=MASK)
    with torch.no_grad():
        p = d.log_probs(x).exp()
        later = x.clone()
        later[0, 7] = (later[0, 7] + 1) % MASK
        assert not torch.allclose(d.log_probs(later)[0, 2], d.log_probs(x)[0, 2])  # the full mask is honoured
        shifted = C.MaskedLM(lm, mask_id=MASK, shift=True).log_probs(x, mask=causal())
        want = lm(x).logits.index_fill(-1, torch.tensor([MASK]), -torch.inf).log_softmax(-1)
    torch.testing.assert_close(shifted[0, [2, 5]], want[0, [1, 4]], atol=1e-4, rtol=1e-4)
    assert (p[..., MASK] == 0).all() and torch.equal(p.argmax(-1)[x != MASK], x[x != MASK])
    g = C.masked_diffusion(lm, [1, 2, 3], max_new_tokens=8, steps=4, block_length=4, mask_id=MASK)
    assert len(g.ids) == 8 and MASK not in g.ids and len(g.logprobs) == 8 and g.decoder == "masked_diffusion"
    assert g.cost.forward_passes == 4 and g.cost.positions == 4 * 11


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["gamma", "epsilon"]), st.integers(0, 99))
def test_posteriors_are_distributions(V, a, b, amount, kind, seed):
    s, t = sorted((a, b))
    if t < 1e-6 or s == t: return
    process = C.Hybrid(V, V, C.schedule("linear"), kind, amount)
    x = torch.randint(V + 1, (2, 6), generator=rng(seed))
    log_p = torch.randn(2, 6, V, generator=rng(seed), dtype=torch.float64).log_softmax(-1)
    reachable = process.transition(0, t)[:V].sum(0)[x] > 0
    p = process.posterior(x, log_p, s, t)
    torch.testing.assert_close(p.sum(-1)[reachable], torch.ones(int(reachable.sum()), dtype=torch.float64), atol=1e-9, rtol=0)
    assert (p >= 0).all() and p.isfinite().all()
    q = process.step_kl(torch.randint(V, (2, 6), generator=rng(seed + 1)), x, log_p, s, t)
    assert q.isfinite().all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 200), st.integers(1, 60), st.sampled_from(["uniform", "linear", "cosine", "ascending"]))
def test_transfer_counts(n, steps, kind):
    counts = C.num_transfer_tokens(n, steps, kind)
    assert counts.shape == (steps,) and int(counts.min()) >= 0 and int(counts.sum()) == n


def test_a_level_for_each_token_is_a_level_for_each_row():
    process, x = C.Uniform(5), torch.randint(5, (3, 4), generator=rng())
    log_p = torch.randn(3, 4, 5, generator=rng(), dtype=torch.float64).log_softmax(-1)
    s, t = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    each = process.posterior(x, log_p, s[:, None].expand(3, 4), t[:, None].expand(3, 4))
    torch.testing.assert_close(process.posterior(x, log_p, s, t), each)
    torch.testing.assert_close(process.posterior(x[1:2], log_p[1:2], 0.2, 0.6), each[1:2], atol=1e-6, rtol=1e-6)
    assert torch.equal(process.sample(x, t, rng(3)), process.sample(x, t[:, None].expand(3, 4), rng(3)))


def test_a_cache_is_asked_in_the_models_place():
    oracle = C.OracleDenoiser(C.MarkovSource.random(4, 1, seed=0))

    class Half:
        asked = 0

        def logits(self, denoiser, x, masked, t):
            Half.asked += 1
            return denoiser.logits(x, t), int(masked.sum())
    g = C.denoise(oracle, torch.full((6,), 4), policy=C.TopK("random"), steps=6, cache=Half())
    assert Half.asked == 6 and g.cost.positions == 6 + 5 + 4 + 3 + 2 + 1
    plain = C.denoise(oracle, torch.full((6,), 4), policy=C.TopK("random"), steps=6)
    assert plain.ids == g.ids and plain.cost.positions == 36


def test_training_objectives_train():
    from arlm_nb.core.training import fit
    torch.manual_seed(0)
    data = lambda step, g: {"ids": torch.cat([torch.full((16, 2), 3), torch.randint(2, (16, 1), generator=g).expand(16, 4)], 1), "prompt": torch.full((16,), 2)}
    for objective in (C.masked_diffusion_loss(C.Absorbing(5), answer_only=True), C.score_entropy_loss(C.Hybrid(5, amount=0.1)), C.block_diffusion_loss(C.Absorbing(5), 2)):
        torch.manual_seed(0)
        run = fit(C.DiffusionTransformer(5, 16, 1, 2, time=False), data, objective, steps=25, lr=1e-2, log_every=1, progress=False)
        assert run.metrics.loss.iloc[-5:].mean() < run.metrics.loss.iloc[:5].mean()


oracle = C.OracleDenoiser(C.MarkovSource.random(4, 1, seed=0))
small = C.DiffusionTransformer(5, 16, 1, 2)
blank = torch.full((8,), 4)
BAD = {
    "mask_id must be a new id >= 5": lambda: C.Absorbing(5, 2),
    "vocab_size must be >= 1": lambda: C.Absorbing(0),
    "t must be in": lambda: C.Absorbing(5).sample(blank[:, None] * 0, 1.5, rng()),
    "must decrease": lambda: C.Schedule("up", lambda t: 0.5 + 0 * t, torch.zeros_like),
    "alpha_bar of schedule": lambda: C.GaussianSchedule(torch.tensor([0.9, 0.95]), torch.zeros(2)),
    "p must be > 0": lambda: C.schedule("polynomial", p=0.0),
    "sigma must grow": lambda: C.schedule("geometric", low=2.0, high=1.0),
    "unknown Gaussian schedule": lambda: C.gaussian_schedule("triangle", 10),
    "d must be > 0": lambda: C.gaussian_schedule("tan", 10, d=-1.0),
    "kind must be 'gamma' or 'epsilon'": lambda: C.Hybrid(5, kind="delta"),
    "amount of epsilon must be in": lambda: C.Hybrid(5, kind="epsilon", amount=-0.1),
    "t must be a number": lambda: C.Absorbing(5).sample(torch.zeros(2, 3, dtype=torch.long), torch.zeros(4), rng()),
    "x0 must hold real tokens": lambda: C.Absorbing(5).sample(torch.full((1, 2), 5), 0.5, rng()),
    "steps must be >= 1": lambda: C.denoise(oracle, blank, policy=C.TopK(), steps=0),
    "block_length must be >= 1 and divide": lambda: C.denoise(oracle, blank, policy=C.TopK(), steps=8, block_length=3),
    "multiple of the 4 blocks": lambda: C.denoise(oracle, blank, policy=C.TopK(), steps=6, block_length=2),
    "temperature must be >= 0": lambda: C.gumbel_argmax(torch.zeros(3), -1.0),
    "tau must be in": lambda: C.Threshold(1.5),
    "score must be one of": lambda: C.denoise(oracle, blank, policy=C.TopK("luck"), steps=8),
    "n_masked must be >= 0": lambda: C.num_transfer_tokens(-1, 4),
    "unknown kind": lambda: C.num_transfer_tokens(4, 4, "square"),
    "the first token": lambda: C.MaskedLM(small, shift=True).log_probs(torch.full((1, 3), 5)),
    "at most 12 editable": lambda: C.exact_nelbo(oracle, torch.zeros(13, dtype=torch.long)),
    "quadrature must be": lambda: C.nelbo(oracle, torch.zeros(1, 4, dtype=torch.long), C.Absorbing(4), quadrature="simpson"),
    "n_times must be >= 1": lambda: C.nelbo(oracle, torch.zeros(1, 4, dtype=torch.long), C.Absorbing(4), n_times=0),
    "parametrization must be": lambda: C.score_entropy_loss(C.Absorbing(5), parametrization="x0"),
    "block_length must be >= 1 and divide the length 6": lambda: C.two_stream(4, 6),
    "n_settled and n_active must be >= 0": lambda: C.settled_active_worthless(-1, 2),
    "that is a real token": lambda: C.OracleDenoiser(C.MarkovSource.random(4, 1), mask_id=2),
    "ids must be real tokens": lambda: C.sample_quality(torch.full((2, 5), 4), C.MarkovSource.random(4, 1)),
    "mask, positions and cache must be None": lambda: oracle.log_probs(torch.zeros(1, 4, dtype=torch.long), mask=causal()),
    "unknown policy": lambda: C.masked_diffusion(small, [1], max_new_tokens=2, policy="beam"),
    "has no mask token": lambda: C.MaskedLM(hflm("gpt2")),
    "mask_id must be one of the model's ids": lambda: C.MaskedLM(small, mask_id=99),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")): BAD[message]()


def test_blocks_behind_a_prompt():
    from arlm_nb.diffusion.plans import blocks_of
    editable = torch.arange(14) >= 5
    x = torch.zeros(1, 14, dtype=torch.long)
    assert blocks_of(x, editable[None], 6, 3) == ([(5, 8), (8, 11), (11, 14)], 2)
    assert blocks_of(x, editable[None], 18, 1) == ([(i, i + 1) for i in range(5, 14)], 2)
    assert blocks_of(x, editable[None], 4, None) == ([(5, 14)], 4)
    with pytest.raises(ValueError, match="multiple of the 3 blocks"): blocks_of(x, editable[None], 4, 3)


@pytest.mark.parametrize("kind", ["ar", "mdlm"])
def test_the_shipped_text_models_are_what_their_notes_say(kind):
    from arlm_nb.core.checkpoints import checkpoint_path, read_note
    noted = read_note(checkpoint_path(f"diffusion/{kind}-docs"))["measured"]
    found = C.docs_bits(C.load_docs(kind), 48, n_times=2)
    assert abs(found.value - noted["test_bits_per_byte"]) < 5 * found.stderr and found.stderr < 0.1
    assert (noted["test_bits_per_byte"] < noted["kneser_ney_3_bits_per_byte"]) == (kind == "ar")


def test_two_models_write_the_step_problems():
    from arlm_nb.core.generation import greedy
    from arlm_nb.diffusion.step_tasks import ANSWER, problems, right, tokenizer
    from arlm_nb.diffusion.sampling import stack
    prompts = problems(10, seed=9)
    assert float(right(prompts, stack(greedy(C.load_tasks("ar"), tokenizer().encode_batch(prompts), max_new_tokens=ANSWER, stop=False))).double().mean()) >= 0.9
    assert isinstance(C.load_tasks(), C.MaskedLM)
