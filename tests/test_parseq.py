"""PARSeq: names of the card, bad input, encoders of Hugging Face, orders and masks for any length."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arlm_nb.core.generation import decoders, get_decoder
from arlm_nb.vision import parseq as P
from arlm_nb.vision.patches import PatchViT


def reader(**kw):
    torch.manual_seed(0)
    return P.TextRecognizer(PatchViT((8, 16), 4, 1, 16, 1, 2), "abc", **{"max_length": 4, **kw}).eval()


def test_names_of_the_card():
    names = "TextRecognizer PermutedDecoder sample_permutations permutation_masks plm_objective read recognition_report leaderboard".split()
    assert [n for n in names if not hasattr(P, n)] == []
    assert "parseq" in decoders() and get_decoder("parseq") is P.read


@pytest.mark.parametrize("make, match", [
    (lambda: P.Charset(""), "must be given and differ"),
    (lambda: P.Charset("abc").labels(["abc", "aXb#"], 8), "outside the charset: '#', 'X'"),
    (lambda: P.Charset("abc").labels(["abcabc"], 5), "must have 1..5 characters, got 6: 'abcabc'"),
    (lambda: P.sample_permutations(4, 5, rng=torch.Generator()), "k must be 1 or even, got 5"),
    (lambda: P.sample_permutations(4, 0, rng=torch.Generator()), "must be >= 1, got 4 and 0"),
    (lambda: P.plm_objective(7), "k must be 1 or even, got 7"),
    (lambda: P.permutation_masks(torch.tensor([0, 2, 2, 3])), "once a row"),
    (lambda: P.PermutedDecoder(10, 4), "multiple of n_heads, got 10 and 4"),
    (lambda: P.PermutedDecoder(8, 2, 0), "depth must be >= 1"),
    (lambda: reader(decoder="ctc"), "unknown decoder 'ctc'"),
    (lambda: reader(max_length=0), "max_length must be >= 1"),
    (lambda: P.read(reader(), torch.zeros(1, 8, 12)), r"images must be \[B, 1, 8, 16\], got \[1, 1, 8, 12\]"),
    (lambda: P.read(reader(), torch.zeros(1, 8, 16), refine=-2), "refine must be >= 0, got -2"),
    (lambda: P.read(reader(), torch.zeros(1, 8, 16), mode="AR"), "mode must be one of ar, nar, got 'AR'"),
    (lambda: P.load_recognizer("parseq-k2"), "unknown checkpoint 'vision/parseq-k2'; nearest: vision/parseq-k"),
    (lambda: P.paper_model("large"), "unknown size 'large'"),
    (lambda: P.load_lmdb("nowhere"), "nowhere holds no data.mdb"),
    (lambda: P.augment(torch.zeros(1, 1, 8, 8), torch.Generator(), layers=-1), "layers must be >= 0"),
    (lambda: P.order_masks_figure(torch.arange(5), "ab"), "does not fit the word 'ab'"),
])
def test_bad_input(make, match):
    with pytest.raises(ValueError, match=match): make()


@pytest.mark.parametrize("mode, refine, warned", [("ar", 0, False), ("ar", 1, True), ("nar", 0, True)])
def test_a_left_to_right_reader_warns(mode, refine, warned, recwarn):
    P.read(reader(trained_orders=1), torch.zeros(1, 8, 16), mode=mode, refine=refine)
    assert warned == any("never saw" in str(w.message) for w in recwarn)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.sampled_from([1, 2, 4, 6, 8, 12]), st.integers(0, 99))
def test_orders_and_masks(n, k, seed):
    z = P.sample_permutations(n, k, rng=torch.Generator().manual_seed(seed))
    assert z[0].tolist() == list(range(n + 2)) and 1 <= len(z) <= k
    for i, row in enumerate(z):
        rank = row.argsort()
        content, query = P.permutation_masks(row)
        assert torch.equal(query, rank[1:, None] > rank[None, :n + 1]) and torch.equal(content, rank[:n + 1, None] >= rank[None, :n + 1])
        assert int(rank[n + 1]) == (1 if i == 1 and n > 1 else n + 1)
    if k > 1 and n > 1: assert torch.equal(z[0::2, 1:-1].flip(1)[1:], z[1::2, 1:-1][1:])


@pytest.mark.parametrize("depth", [1, 2])
def test_the_loss_learns_a_memory(depth):
    "Steps on three fixed pictures: both streams are trained."
    model = reader(depth=depth).train()
    g = torch.Generator().manual_seed(0)
    batch = {"images": torch.randn(3, 1, 8, 16, generator=g), "labels": model.charset.labels(["abc", "ca", "b"], 4)}
    opt, objective = torch.optim.Adam(model.parameters(), 1e-2), P.plm_objective(6)
    for _ in range(90):
        opt.zero_grad(); loss = objective(model, batch, g).value; loss.backward(); opt.step()
    assert float(loss.detach()) < 0.1
    for mode, refine in (("ar", 0), ("nar", 0), ("nar", 1)):
        assert [r.text for r in P.read(model.eval(), batch["images"], mode=mode, refine=refine)] == ["abc", "ca", "b"]


@pytest.mark.parametrize("family", ["ViT", "DeiT", "Dinov2"])
def test_encoders_of_hugging_face(family):
    import transformers
    config = getattr(transformers, f"{family}Config")(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8)
    torch.manual_seed(0)
    model = P.TextRecognizer(P.HFEncoder(getattr(transformers, f"{family}Model")(config)), "abc", max_length=3).eval()
    found = P.read(model, torch.randn(2, 3, 16, 16))
    assert len(found) == 2 and all(len(r.ids) <= 4 and 0 < r.confidence <= 1 for r in found)
    loss = P.plm_objective(2)(model, {"images": torch.randn(2, 3, 16, 16), "labels": model.charset.labels(["ab", "c"], 3)}, torch.Generator())
    assert torch.isfinite(loss.value)
