"""Mixtures of experts: seats for any choices, router outputs of Hugging Face's mixtures, bad input."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arlm_nb.architectures.moe_cost import CurveTable, cost_at, speedup_factor
from arlm_nb.architectures.moe_dispatch import capacity_plan, combine, dispatch, seats
from arlm_nb.architectures.moe_layer import BACKENDS, MoELayer
from arlm_nb.architectures.moe_usage import expert_usage, mutual_information


def seated(index, n_experts, capacity):
    "The rule, one choice after another."
    load, kept, slot = [0] * n_experts, {}, {}
    for j in range(index.shape[1]):
        for t in range(len(index)):
            e = int(index[t, j])
            slot[t, j], kept[t, j] = load[e], load[e] < capacity
            load[e] += 1
    return slot, kept


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 30), st.integers(1, 6), st.data())
def test_seats_are_given_as_the_rule_says(n, n_experts, data):
    k = data.draw(st.integers(1, n_experts))
    capacity, seed = data.draw(st.integers(1, n)), data.draw(st.integers(0, 99))
    g = torch.Generator().manual_seed(seed)
    index = torch.rand(n, n_experts, generator=g).argsort(-1)[:, :k]
    plan, (slot, kept) = capacity_plan(index, n_experts, capacity), seated(index, n_experts, capacity)
    assert all(bool(plan.kept[key]) == v for key, v in kept.items())
    assert all(int(plan.slot[key]) == v for key, v in slot.items() if kept[key])
    x = torch.randn(n, 3, generator=g, dtype=torch.float64)
    weight = torch.rand(n, k, generator=g, dtype=torch.float64)
    torch.testing.assert_close(combine(dispatch(x, plan), plan, weight), x * (weight * plan.kept).sum(-1, keepdim=True))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.sampled_from([0.2, 0.5, 1.0, math.inf]), st.integers(1, 4), st.integers(0, 99))
def test_backends_agree(n, factor, k, seed):
    torch.manual_seed(seed)
    layer, x = MoELayer(4, 6, 4, k, factor).double(), torch.randn(n, 4, dtype=torch.float64)
    found = []
    for name in BACKENDS:
        layer.backend = name
        found.append(layer(x))
    for other in found[1:]: torch.testing.assert_close(other, found[0])


@pytest.mark.parametrize("family, n_experts", [("Mixtral", "num_local_experts"), ("Olmoe", "num_experts"), ("Phimoe", "num_local_experts"), ("Qwen3Moe", "num_experts")])
def test_usage_of_hugging_face_mixtures(family, n_experts):
    import transformers

    from arlm_nb.core.hflm import HFLM
    torch.manual_seed(0)
    sizes = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                 max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, num_experts_per_tok=2)
    if family == "Qwen3Moe": sizes |= {"moe_intermediate_size": 24, "head_dim": 8}
    config = getattr(transformers, family + "Config")(**sizes, **{n_experts: 6})
    lm = HFLM(getattr(transformers, family + "ForCausalLM")(config).eval())
    ids = torch.randint(3, 61, (5, 9))
    table = expert_usage(lm, ids, [0, 0, 1, 1, 1], batch=2)
    assert table.experts.shape == (3, 5, 9) and table.n_experts == 6 and table.layers == (0, 1, 2)
    gates = [m for m in lm.model.modules() if hasattr(m, "weight") and getattr(m, "weight").shape == (6, 32)]
    seen = []
    handles = [g.register_forward_pre_hook(lambda m, a: seen.append(a[0].reshape(-1, 32) @ m.weight.T)) for g in gates]
    with torch.no_grad(): lm(ids)
    for h in handles: h.remove()
    assert len(seen) == 3
    for l, logits in enumerate(seen): assert torch.equal(table.experts[l].flatten(), logits.argmax(-1))


def test_dense_hugging_face_model_is_refused():
    import transformers

    from arlm_nb.core.hflm import HFLM
    c = transformers.LlamaConfig(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
    with pytest.raises(ValueError, match="not a mixture of experts"):
        expert_usage(HFLM(transformers.LlamaForCausalLM(c).eval()), torch.randint(61, (2, 5)), [0, 1])


def test_information_is_that_of_scipy():
    from sklearn.metrics import mutual_info_score
    table = torch.randint(0, 20, (5, 7), generator=torch.Generator().manual_seed(0))
    assert mutual_information(table) == pytest.approx(mutual_info_score(None, None, contingency=table.numpy()) / math.log(2))


@pytest.mark.parametrize("call, message", [
    (lambda: MoELayer(4, 6, 3, 4), "k must be in 1..n_experts = 3, got 4"),
    (lambda: MoELayer(4, 6, -1), "n_experts must be >= 1, got -1"),
    (lambda: MoELayer(4, 6, 3, 0), "k must be in 1"),
    (lambda: seats(10, 4, 2, -0.5), "capacity_factor must be > 0, got -0.5"),
    (lambda: MoELayer(4, 6, 3)(torch.zeros(2, 0, 4)), "empty batch"),
    (lambda: speedup_factor(CurveTable([1, 2], [3, 2]), CurveTable([1, 2], [9, 8])), "do not overlap"),
    (lambda: CurveTable([2, 1], [1, 2]), "rising"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message): call()


def test_cost_between_two_models():
    import numpy as np
    assert cost_at(np.array([1e3, 1e5]), np.array([2.0, 1.0]), 1.5) == pytest.approx(1e4)
    assert math.isnan(cost_at(np.array([1.0, 2.0]), np.array([2.0, 1.0]), 0.5))
