"""The LM contract on ten Hugging Face families: the wrapper changes nothing, and mask, positions, cache and hooks are honoured."""
import copy

import pytest
import torch
from tests.models import CONTEXT, FAMILIES, VOCAB, hf_model, hflm

from arlm_nb.core.hflm import HFLM
from arlm_nb.core.masks import causal, tree
from arlm_nb.core.training import fit, next_token

CLOSE = dict(atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request):
    return hflm(request.param)


@pytest.fixture
def ids():
    return torch.randint(1, VOCAB, (2, 14), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_wrapper_changes_nothing(lm, ids):
    out = lm(ids)
    torch.testing.assert_close(out.logits, lm.model(input_ids=ids).logits, **CLOSE)
    torch.testing.assert_close(lm.unembed(out.hidden), out.logits, **CLOSE)
    torch.testing.assert_close(
        lm(embeds=lm.model.get_input_embeddings()(ids)).logits, lm.model(inputs_embeds=lm.model.get_input_embeddings()(ids)).logits, **CLOSE
    )
    assert lm.model.config._attn_implementation != "arlm" and not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


@torch.no_grad()
def test_cached_equals_uncached(lm, ids):
    whole, cache = lm(ids).logits, lm.new_cache(2, capacity=4)
    parts = [lm(ids[:, :5], cache=cache).logits] + [lm(ids[:, t:t + 1], cache=cache).logits for t in range(5, 14)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, **CLOSE)
    cache.crop(6)
    torch.testing.assert_close(lm(ids[:, 6:], cache=cache).logits, whole[:, 6:], **CLOSE)
    cache.crop(9).select([1, 0, 1])
    torch.testing.assert_close(lm(ids[[1, 0, 1], 9:], cache=cache).logits, whole[[1, 0, 1], 9:], **CLOSE)


@torch.no_grad()
def test_tree_of_two_branches_equals_two_runs(lm, ids):
    prefix, left, right = ids[:1, :10], ids[1:, :3], ids[1:, 5:8]
    cache = lm.new_cache()
    lm(prefix, cache=cache)
    out = lm(
        torch.cat([left, right], 1), cache=cache, positions=torch.tensor([[10, 11, 12] * 2]), mask=tree([-1, 0, 1, -1, 3, 4], start=10)
    ).logits
    for branch, got in ((left, out[:, :3]), (right, out[:, 3:])):
        torch.testing.assert_close(got, lm(torch.cat([prefix, branch], 1)).logits[:, 10:], **CLOSE)
    cache.keep([*range(10), 13, 14, 15])  # accept the right branch and go on
    nxt = lm(ids[:1, 13:], cache=cache, positions=torch.tensor([[13]]), mask=causal()).logits
    torch.testing.assert_close(nxt, lm(torch.cat([prefix, right, ids[:1, 13:]], 1)).logits[:, 13:], **CLOSE)


@torch.no_grad()
def test_left_padding_by_mask_and_positions(lm, ids):
    short = ids[:1, 4:]
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), short], 1)
    valid = torch.arange(14)[None] >= 4
    mask = causal().dense(14)[0, 0] & valid[:, None, None, :]
    out = lm(padded, positions=(torch.arange(14) - 4).clamp(min=0)[None], mask=mask).logits
    torch.testing.assert_close(out[:, 4:], lm(short).logits, **CLOSE)


@torch.no_grad()
def test_score_continuations(lm, ids):
    prompt, continuations = ids[0, :5].tolist(), [[3, 4], [3, 5, 6], [7]]
    for c, s in zip(continuations, lm.score_continuations(prompt, continuations)):
        logp = lm(torch.tensor([prompt + c])).logits[0, 4:-1].log_softmax(-1)
        torch.testing.assert_close(s, logp.gather(-1, torch.tensor(c)[:, None]).sum(), **CLOSE)


@torch.no_grad()
def test_residual_stream_adds_up_and_identity_patch_changes_nothing(lm, ids):
    clean = lm(ids).logits
    names = lm.site_names()
    with lm.record([n for n in names]) as acts:
        torch.testing.assert_close(lm(ids).logits, clean, **CLOSE)
    assert set(acts) == set(names)
    for l in range(lm.n_layers):
        torch.testing.assert_close(acts["resid_pre", l] + acts["attn_out", l] + acts["mlp_out", l], acts["resid_post", l], **CLOSE)
        heads = torch.einsum("bthe,hed->btd", acts["z", l], lm.W_O(l))
        if not lm.name.startswith("Gemma2"):  # Gemma-2 norms the attention's output before it is added
            torch.testing.assert_close(heads + (0 if lm.b_O(l) is None else lm.b_O(l)), acts["attn_out", l], **CLOSE)
        if "blocks.0.attn.hook_pattern" in names:
            torch.testing.assert_close(acts["pattern", l].sum(-1), torch.ones_like(acts["pattern", l].sum(-1)), **CLOSE)
        if l:
            torch.testing.assert_close(acts["resid_pre", l], acts["resid_post", l - 1])
    with lm.patch({n: lambda x: x for n in names}):
        torch.testing.assert_close(lm(ids).logits, clean, **CLOSE)
    assert torch.equal(lm(ids).logits, clean)


@torch.no_grad()
def test_patches_reach_the_output(lm, ids):
    clean = lm(ids).logits
    for name in ("attn_out", "mlp_out", "resid_post", "z"):
        with lm.patch({lm_site(name): lambda x: x.flip(-1)}):
            assert not torch.allclose(lm(ids).logits, clean, atol=1e-3), name
    with lm.patch({lm_site("attn_out"): torch.zeros_like}), lm.record(["resid_pre", "mlp_out", "resid_post"], [1]) as acts:
        lm(ids)
    torch.testing.assert_close(acts["resid_pre", 1] + acts["mlp_out", 1], acts["resid_post", 1], **CLOSE)


def lm_site(name):
    return f"blocks.1.attn.hook_{name}" if name == "z" else f"blocks.1.hook_{name}"


@torch.no_grad()
def test_forward_layers_is_the_middle_of_the_model(lm, ids):
    with lm.record("resid_pre") as acts:
        out = lm(ids)
    resid = lm.forward_layers(acts["resid_pre", 1], 1, lm.n_layers)
    torch.testing.assert_close(lm.unembed(lm.final_norm(resid)), out.logits, **CLOSE)
    half = lm.forward_layers(acts["resid_pre", 0], 0, 1)
    torch.testing.assert_close(lm.forward_layers(half, 1, lm.n_layers), resid, **CLOSE)
    assert len(lm.parts.blocks) == lm.n_layers == len(getattr(lm.parts.parent, lm.parts.attribute))


def test_gradients_pass(lm, ids):
    with lm.record("resid_post", [0], detach=False) as acts:
        loss = lm(ids).logits.square().mean()
    assert torch.autograd.grad(loss, acts["resid_post", 0])[0].abs().sum() > 0


def test_fit_trains_what_the_wrapper_holds(lm, ids, tmp_path):
    def rows(step, rng): return ids if step < 2 else ids.flip(1)
    def still(model):  # no dropout: two runs can be compared
        for m in model.model.modules():
            if isinstance(m, torch.nn.Dropout): m.p = 0.0
            elif isinstance(getattr(m, "dropout", None), float): m.dropout = 0.0
        return model
    one, two, three = (still(copy.deepcopy(lm)) for _ in range(3))
    how = dict(lr=1e-3, schedule="constant", optimizer="sgd", progress=False, log_every=1)
    whole = fit(one, rows, steps=4, evaluate=lambda model: {"wrapper": float(model is one)}, **how)
    inner = fit(two.model, rows, lambda _, batch, rng: next_token(two, batch, rng), steps=4, **how)
    assert whole.model is one and whole.rows[-1]["wrapper"] == 1 and not one.model.training
    assert [r["loss"] for r in whole.rows] == pytest.approx([r["loss"] for r in inner.rows], rel=1e-5) and whole.rows[-1]["grad_norm"] > 0
    fit(three, rows, steps=2, checkpoint=tmp_path, **how)
    again = fit(still(copy.deepcopy(lm)), rows, steps=4, checkpoint=tmp_path, **how)
    torch.testing.assert_close(again.model(ids).logits, one(ids).logits, **CLOSE)
    with pytest.raises(ValueError, match="need a torch module, got HFLM"): fit(one, rows, steps=1, compile=True)


@torch.no_grad()
def test_hooks_leave_nothing_behind_after_an_error(lm, ids):
    with (
        pytest.raises(ZeroDivisionError),
        lm.patch({"blocks.1.hook_resid_mid" if not lm.parts.parallel else "blocks.1.hook_resid_pre": lambda x: 1 / 0}),
    ):
        lm(ids)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules()) and not lm._attention_fns
    assert lm.model.config._attn_implementation != "arlm"


def test_what_cannot_be_found_is_named():
    model = hf_model("llama")
    model.model.norm = torch.nn.Identity()
    with pytest.raises(ValueError, match="no final norm"):
        HFLM(model)
    assert HFLM(model, final_norm=model.model.norm).n_layers == 3


def test_bad_input(lm, ids):
    with pytest.raises(ValueError, match="ids must be in 0"):
        lm(torch.tensor([[VOCAB + 5]]))
    with pytest.raises(ValueError, match="positions must be"):
        lm(ids, positions=torch.arange(3)[None])
    with pytest.raises(ValueError, match="broadcastable"):
        lm(ids, mask=torch.ones(3, 3).bool())
    if lm.context_length == CONTEXT:
        with pytest.raises(ValueError, match=f"positions must be in 0..{CONTEXT - 1}"):
            lm(torch.ones(1, CONTEXT + 1, dtype=torch.long))


def test_model_folder_errors(tmp_path):
    model = hf_model("gpt2")
    model.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="has no tokenizer"):
        HFLM(str(tmp_path / "plain"))
    weights = next((tmp_path / "plain").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{weights.name} in plain/ is corrupted.*nothing was loaded"):
        HFLM(str(tmp_path / "plain"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no config.json"):
        HFLM(str(tmp_path / "empty"))


@torch.no_grad()
def test_activations_equal_transformer_lens(ids, tmp_path):
    bridge = pytest.importorskip(
        "transformer_lens.model_bridge", reason="TransformerLens 4 is not installed (pip install transformer-lens)"
    )
    from arlm_nb.core.tokenizer import Tokenizer, as_hf
    lm = hflm("gpt2")
    lm.model.save_pretrained(tmp_path)
    as_hf(Tokenizer.from_symbols([str(i) for i in range(VOCAB - 3)], specials=("<unk>", "<eos>", "a"))).save_pretrained(tmp_path)
    _, theirs = bridge.TransformerBridge.boot_transformers(str(tmp_path)).run_with_cache(ids)
    names = [n for n in lm.site_names() if "normalized" not in n]  # version 4 takes a norm's output before its gain and bias, we after
    with lm.record(names) as ours:
        lm(ids)
    for name in names:
        torch.testing.assert_close(ours[name], theirs[name], **CLOSE)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@torch.no_grad()
def test_a_copy_is_a_model_of_its_own(family):
    import copy
    from tests.models import hflm
    lm, ids = hflm(family), torch.tensor([[3, 5, 7]])
    other = copy.deepcopy(lm)
    before = lm(ids).logits
    assert torch.equal(other(ids).logits, before) and other.name == lm.name
    with other.record("resid_post") as seen: other(ids)
    assert seen
    for p in other.parameters(): p.mul_(0.5)
    assert torch.equal(lm(ids).logits, before) and not torch.allclose(other(ids).logits, before)
    assert torch.allclose(other.unembed(other(ids).hidden), other(ids).logits, atol=1e-5)
