"""The tuned lens on every shape of model: our own Transformer and Hugging Face families; half precision; resumed fits; bad input."""
import json
import math

import numpy as np
import pytest
import torch

from tests.models import FAMILIES, FLAGSHIP, VOCAB, any_lm, hf_model, transformer

from arlm_nb.interp import tuned_lens as tl
from arlm_nb.interp.lens import LogitLens, TunedLens, last_residual, residuals
from arlm_nb.interp.lens_loss import LensLoss

IDS = torch.randint(VOCAB, (4, 12), generator=torch.Generator().manual_seed(3))
EVERY = ["transformer", *FAMILIES]
MAIN = ["transformer", *FLAGSHIP]
CARD = (
    "LogitLens TunedLens fit_lens evaluate_lens LensReport transfer_matrix residual_statistics ResidualStats Trajectory causal_basis CausalBasis influence "
    "ablate_layer ablate_subspace stimulus_response Alignment aitchison js_divergence total_variation invert_unembedding Inversion trajectory_features "
    "anomaly_auroc Anomaly lens_early_exit"
).split()


def test_every_name_of_the_card():
    assert [name for name in CARD if not hasattr(tl, name)] == []


@pytest.mark.parametrize("family", EVERY)
def test_reading_the_last_stream_is_the_model(family):
    "A missed or doubled final norm, a soft-cap, a bias or tied weights would show."
    lm = any_lm(family)
    lens = LogitLens(lm)
    with torch.no_grad(): want = lm(IDS).logits
    torch.testing.assert_close(lens.read(last_residual(lm, IDS)), want, atol=1e-5, rtol=1e-5)
    streams, final = residuals(lm, IDS)
    torch.testing.assert_close(lens.unembed(final), want, atol=1e-5, rtol=1e-5)
    untrained = TunedLens(lm)
    for layer in range(lm.n_layers):
        torch.testing.assert_close(
            untrained.logits(streams["resid_pre"][layer], layer), lens.logits(streams["resid_pre"][layer], layer), atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("family", MAIN)
def test_fit_measure_and_follow(family, tmp_path):
    lm = any_lm(family)
    before, rows = lm.hash(), torch.randint(VOCAB, (64, 12), generator=torch.Generator().manual_seed(5))
    lens, metrics = tl.fit_lens(lm, rows, steps=20, tokens_per_step=96, length=12, optimizer="adam", lr=3e-3, init="ridge")
    assert lm.hash() == before
    own, logit = (tl.evaluate_lens(lm, l, rows[:16]).kl.mean() for l in (lens, LogitLens(lm)))
    assert own < logit
    lens.save(tmp_path)
    again = TunedLens.load(tmp_path, lm)
    t = tl.Trajectory.from_lm(again, lm, IDS)
    assert (t.forward_kl()[-1] == 0).all() and ((0 <= t.prediction_depth()) & (t.prediction_depth() <= lm.n_layers)).all()
    with pytest.raises(ValueError, match="another model"): TunedLens.load(tmp_path, any_lm(family, seed=1))
    assert TunedLens.load(tmp_path, any_lm(family, seed=1), transfer=True).note["lm_hash"] == before


@pytest.mark.parametrize("family", MAIN)
def test_causes(family):
    lm = any_lm(family)
    lens, h = LogitLens(lm), residuals(lm, IDS)[0]["resid_pre"][1]
    basis = tl.causal_basis(lens, h.flatten(0, 1), 1, 2, max_evaluations=8)
    torch.testing.assert_close(basis.vectors @ basis.vectors.T, torch.eye(2), atol=1e-5, rtol=0)
    on_model = tl.influence(lm, basis.vectors, 1, IDS)
    with torch.no_grad():
        clean = lm(IDS).logits.log_softmax(-1)
        with tl.ablate_subspace(lm, basis.vectors[0], 1): moved = lm(IDS).logits.log_softmax(-1)
    torch.testing.assert_close(on_model[0], (clean.exp() * (clean - moved)).sum(-1).mean(), atol=1e-4, rtol=1e-3)
    with torch.no_grad(), tl.ablate_layer(lm, lm.n_layers - 1, "zero"): skipped = lm(IDS).logits
    torch.testing.assert_close(skipped, lens.read(residuals(lm, IDS)[0]["resid_pre"][-1]), atol=1e-4, rtol=1e-4)
    assert -1 <= tl.stimulus_response(lm, lens, 1, IDS, basis.vectors).mean <= 1


@pytest.mark.parametrize("family", MAIN)
def test_a_patched_run_differs_from_the_patch_on(family):
    lm = any_lm(family)
    lens = LogitLens(lm)
    with torch.no_grad(), lm.record("resid_pre") as cache: clean = tl.Trajectory.from_cache(lens, cache, lm(IDS).logits, IDS)
    turn = torch.linspace(-1, 1, lm.d_model)  # a common factor or shift would be undone by LayerNorm
    with torch.no_grad(), lm.record("resid_pre") as cache, lm.patch({"blocks.1.hook_resid_post": lambda h: h * turn}):
        patched = tl.Trajectory.from_cache(lens, cache, lm(IDS).logits, IDS)
    gap = (clean.log_probs - patched.log_probs).abs().amax((1, 2, 3))
    assert (gap[:2] < 1e-5).all() and (gap[2:] > 1e-3).all() and (clean.js(patched) <= math.log(2)).all()


@pytest.mark.parametrize("family", MAIN)
def test_early_exit_that_never_fires_is_greedy(family):
    from arlm_nb.core.generation import greedy
    lm, prompt = any_lm(family), [3, 14, 15]
    ours = tl.lens_early_exit(lm, prompt, lens=LogitLens(lm), rule="confidence", threshold=2.0, max_new_tokens=6, stop=False)
    plain = greedy(lm, prompt, max_new_tokens=6, stop=False)
    assert ours.ids == plain.ids
    np.testing.assert_allclose(ours.logprobs, plain.logprobs, atol=1e-3)
    json.dumps(ours.to_dict())


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi"])
def test_reading_weights(family):
    lm = any_lm(family)
    lens, x = LogitLens(lm), torch.randn(3, lm.d_model)
    assert tl.mlp_rows(lm, 0).shape[1] == lm.d_model and len(tl.top_tokens(lens, tl.mlp_rows(lm, 0)[:2], 0, 3)) == 2
    with torch.no_grad(), lm.record("attn_out", layers=[1]) as cache: lm.forward_layers(x[:, None], 1, 2)
    bias = lm.b_O(1)
    want = cache["attn_out", 1][:, 0] - (0 if bias is None else bias)
    torch.testing.assert_close(tl.ov_circuit(lm, 1, x).sum(0), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite(dtype):
    from arlm_nb.core.hflm import HFLM
    lm = HFLM(hf_model("llama").to(dtype))
    rows = torch.randint(VOCAB, (16, 12), generator=torch.Generator().manual_seed(5))
    lens, metrics = tl.fit_lens(lm, rows, steps=10, tokens_per_step=48, length=12, optimizer="adam", lr=3e-3)
    assert metrics.loss.notna().all() and all(p.isfinite().all() and p.dtype == torch.float32 for p in lens.parameters())
    assert np.isfinite(tl.evaluate_lens(lm, lens, rows).kl).all()


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"])
def test_sites(site):
    lm = any_lm("llama")
    rows = torch.randint(VOCAB, (16, 12), generator=torch.Generator().manual_seed(5))
    lens, metrics = tl.fit_lens(lm, rows, steps=15, tokens_per_step=96, length=12, optimizer="adam", lr=3e-3, sites=site, init="ridge")
    report = tl.evaluate_lens(lm, lens, rows)
    assert report.site == site and report.kl.mean() < tl.evaluate_lens(lm, LogitLens(lm, sites=site), rows).kl.mean()


@pytest.mark.parametrize(
    "options",
    [
        dict(constant=True),
        dict(bias=False),
        dict(rank=2),
        dict(rank=2, init="ridge"),
        dict(loss="ce"),
        dict(layerwise=True),
        dict(optimizer="sgd"),
        dict(precision="bfloat16"),
        dict(batch_tokens=48),
        dict(sites=("resid_pre", "mlp_out")),
    ],
)
def test_variants_learn(options):
    lm = transformer()
    rows = torch.randint(VOCAB, (32, 12), generator=torch.Generator().manual_seed(5))
    given = dict(steps=12, tokens_per_step=96, length=12, optimizer="adam", lr=3e-3, log_every=1) | options
    if given["optimizer"] == "sgd": given.pop("lr")
    _, metrics = tl.fit_lens(lm, rows, **given)
    assert metrics.loss.iloc[-4:].mean() < metrics.loss.iloc[:2].mean()


def test_early_stop_keeps_the_best():
    lm = transformer()
    rows = torch.randint(VOCAB, (8, 12), generator=torch.Generator().manual_seed(5))
    other = torch.randint(VOCAB, (32, 12), generator=torch.Generator().manual_seed(6))
    lens, metrics = tl.fit_lens(
        lm, rows, steps=200, tokens_per_step=96, length=12, optimizer="adam", lr=0.1, valid=other, patience=2, evaluate_every=4
    )
    assert metrics.step.max() < 200
    with torch.no_grad(): now = float(LensLoss()(lens, other).value) / lm.n_layers
    assert now <= metrics.held_out.min() + 1e-5


def test_memory_of_a_step():
    "At 6 layers, width 384, vocabulary 50,257 and 512 tokens a step needs less than 200 MB beside the model."
    from arlm_nb.interp.lens_bench import bench_model, our_step, peak_extra_memory
    lm = bench_model(n_layers=6)
    lens = TunedLens(lm)
    optimiser, objective = torch.optim.SGD(lens.parameters(), lr=0.1), LensLoss(precision="bfloat16")
    ids = torch.randint(lm.vocab_size, (2, 256))
    our_step(lens, objective, optimiser, ids[:, :4])  # imports, compilation, the translators' gradients
    assert peak_extra_memory(lambda: our_step(lens, objective, optimiser, ids)) < 200e6


BAD = {
    "layer": (lambda lm, lens: lens.logits(torch.zeros(32), 3), "layer must be in 0..2, got 3"),
    "width": (lambda lm, lens: lens.logits(torch.zeros(31), 0), r"h must be \[..., 32\], got \[31\]"),
    "site": (lambda lm, lens: LogitLens(lm, sites="resid"), "sites must be of resid_pre"),
    "targets": (lambda lm, lens: tl.Trajectory.from_lm(lens, lm, IDS, targets=IDS[:, 1:]), "targets must be as long as ids"),
    "step": (lambda lm, lens: tl.fit_lens(lm, IDS, tokens_per_step=100, length=12), "multiple of the sequence length 12, got 100"),
    "mean of one": (lambda lm, lens: tl.causal_basis(lens, torch.zeros(1, 32), 0, 1), "at least 2 vectors, got 1"),
    "ce without shift": (lambda lm, lens: LensLoss("ce", 0), "shift >= 1, got 0"),
    "text without tokenizer": (lambda lm, lens: tl.Trajectory.from_lm(lens, lm, "a text"), "no tokenizer"),
    "post-norm": (lambda lm, lens: LogitLens(transformer(norm_position="post")), "post-norm"),
    "wrong norm": (lambda lm, lens: LogitLens(lm, final_norm=torch.nn.Identity()), "do not give transformer's logits"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    lm = transformer()
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message): call(lm, LogitLens(lm))


def test_tour_section_on_any_model():
    from arlm_nb.core.tokenizer import Tokenizer
    tokenizer = Tokenizer.train(["a plain text of some words"], "byte", 300)
    lm = transformer(tokenizer=tokenizer, vocab_size=tokenizer.vocab_size)
    part = tl.tour_section(lm, LogitLens(lm))
    assert set(part) == {"title", "markdown", "rows", "figures"} and len(part["rows"]) == 4 and len(part["figures"]) == 3
