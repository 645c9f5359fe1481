"""Hyperschedules: the names of the card, tables of any size, Hugging Face families along a table, bad input."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import VOCAB, hflm

from arlm_nb.core.generation import decoders, get_decoder, greedy
from arlm_nb.diffusion import hyperschedules as H
from arlm_nb.diffusion.hyper_loss import shift_groups
from arlm_nb.diffusion.hyper_tables import groups, level_times
from arlm_nb.diffusion.processes import Hybrid

CARD = """Hyperschedule flat autoregressive block slide hybrid hyper_mask hybrid_loss hyper_decode hyper_nelbo repair_test Repair""".split()
MASK = VOCAB - 1
MAKERS = {"flat": lambda w, tau: H.flat(tau), "block": H.block, "slide": H.slide, "hybrid": H.hybrid}


def rng(seed=0): return torch.Generator().manual_seed(seed)


def test_names_of_the_card():
    assert [n for n in (*CARD, *H._all_) if not hasattr(H, n)] == []
    assert "hyperschedules" in decoders() and get_decoder("hyperschedules") is H.hyper_decode


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(MAKERS)), st.integers(1, 9), st.integers(1, 9), st.integers(1, 20))
def test_tables_of_any_size(name, width, tau, length):
    made = MAKERS[name](width, tau)
    plan = H.plan_of(made, length, 3)
    assert (plan.settles.sum(0)[3:] == 1).all() and not plan.settles[:, :3].any() and not plan.active[:, :3].any()
    assert (plan.times[0, 3:] == 1 - 1e-4).all() and (plan.times[-1] == 1e-4).all()
    changed = plan.settles & ~plan.active
    assert not changed.any()
    for g in groups(made, length):
        levels = made.at(g.step, length)
        assert (levels[: g.start] == 0).all() and (levels[g.stop :] == made.tau).all()
    covered = torch.zeros(length, dtype=torch.long)
    for found in H.passes(made, length):
        for g in found: covered[g.start : g.stop] += 1
    assert (covered >= 1).all()


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_hugging_face_families(family):
    lm = hflm(family)
    run = dict(max_new_tokens=8, mask_id=MASK, seed=3)
    a = H.hyper_decode(lm, [1, 2, 3], schedule=H.autoregressive(), sampler="original", temperature=0.0, block="causal", **run)
    plain = greedy(lm, [1, 2, 3], max_new_tokens=8, stop=False)
    if MASK not in plain.ids: assert a.ids == plain.ids[: len(a.ids)]
    for schedule in (H.block(4, 3), H.slide(4, 4)):
        ids = [H.hyper_decode(lm, [1, 2, 3], schedule=schedule, use_cache=use, **run).ids for use in (True, False)]
        assert ids[0] == ids[1] and MASK not in ids[0]
    loss = H.hybrid_loss("epsilon", 0.1, schedule=H.slide(4, 4), vocab_size=MASK, first=0, shifted=True)
    ids = torch.randint(MASK, (2, 12), generator=rng())
    assert float(loss(lm, ids, rng()).value.detach()) > 0


def test_prompts_of_two_lengths():
    lm = hflm("llama")
    run = dict(max_new_tokens=6, mask_id=MASK, schedule=H.block(3, 3), context="block_causal", seed=1)
    both = H.hyper_decode(lm, [[1, 2], [3, 4, 5]], **run)
    assert [len(g.ids) for g in both] == [6, 6] and both[1].ids == H.hyper_decode(lm, [3, 4, 5], **run).ids


def test_one_noise_level_for_each_position():
    "Noise at the levels of a table: share of masks, and of wrong ones among the visible."
    levels = H.slide(8, 8).at(10, 16)
    t, process, ids = level_times(levels, 8), Hybrid(12, 12, kind="epsilon", amount=0.3), torch.zeros(20_000, 16, dtype=torch.long)
    x = process.sample(ids, t[None], rng())
    masked = (x == 12).double().mean(0)
    assert (masked - t).abs().max() < 0.02
    wrong = ((x != 0) & (x != 12)).double().sum(0) / (x != 12).double().sum(0).clamp(min=1)
    assert (wrong[t < 0.9] - 0.3 * 11 / 12).abs().max() < 0.02


BAD = [
    (lambda: H.block(0, 2), "width must be >= 1, got 0"),
    (lambda: H.slide(2, 0), "tau must be >= 1, got 0"),
    (lambda: H.Hyperschedule(torch.tensor([[1, 1], [0, 1], [1, 0], [0, 0]])), "must never rise"),
    (lambda: H.Hyperschedule(torch.zeros(4)), "levels must be a table|tau must be >= 1"),
    (lambda: H.hybrid_loss("gamma", 1.01), r"amount of gamma must be in \[0, 1\], got 1.01"),
    (lambda: H.hybrid_loss("epsilon", -0.01), r"amount of epsilon must be in \[0, 1\]"),
    (lambda: H.HyperReader("full"), "cannot be cached"),
    (lambda: H.hyper_mask(3, 3, block="causal"), "aligned readout with a causal active block"),
    (lambda: H.hyper_mask(3, 3, block="round", shifted=True), "block must be one of full, causal"),
    (lambda: H.ACS(-0.1), r"eta must be in \[0, 1\], got -0.1"),
    (lambda: H.ReMDM(2), r"eta must be in \[0, 1\], got 2"),
    (lambda: H.hyper_decode(hflm("llama"), [1], max_new_tokens=4, schedule=H.flat(2), mask_id=VOCAB), "mask_id must be one of the model's ids"),
    (lambda: H.hyper_decode(hflm("llama"), [1], max_new_tokens=4, schedule=H.flat(2)), "has no mask token"),
    (lambda: H.streams(shift_groups(groups(H.slide(3, 3), 6)[:2], 1)[:0]), "min|empty|at least"),
    (lambda: H.tilt(torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.long), 1.0, 3), r"amount must be in \(0, 1\)"),
]


@pytest.mark.parametrize("call, why", BAD)
def test_bad_input(call, why):
    with pytest.raises(ValueError, match=why): call()
