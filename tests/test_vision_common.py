"""The shared vision blocks: names of the card, bad input, orders of any grid, pictures as a pure function of their arguments."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arlm_nb.vision import images as V


def test_names_of_the_card():
    names = """digits glyph_font render_text word_images PatchViT grid_positions scan_order show_images captioned_shapes scene_oracle caption_alignment
    coverage Shape CaptionedImages SceneReport""".split()
    assert [n for n in names if not hasattr(V, n)] == []


@pytest.mark.parametrize("make, match", [
    (lambda: V.render_text("tab\t"), r"got \['\\t'\]"),
    (lambda: V.render_text("a", scale=0), "scale >= 1"),
    (lambda: V.render_text("a", gap=-1), "gap >= 0"),
    (lambda: V.word_images(0), "need n >= 1 words, got 0"),
    (lambda: V.word_images([]), r"need n >= 1 words, got \[\]"),
    (lambda: V.word_images(3, min_len=0), "1 <= min_len <= max_len"),
    (lambda: V.word_images(["UPPER"]), "must be of the characters"),
    (lambda: V.word_images(3, blur=-0.1), "must be >= 0"),
    (lambda: V.word_images(["word"], size=(6, 56)), "do not fit in 6 x 56"),
    (lambda: V.word_images(3, split="valid"), "split must be train, test or all"),
    (lambda: V.PatchViT((8, 56), (3, 4)), "does not divide into patches of 3 x 4"),
    (lambda: V.PatchViT((8, 8), 4)(torch.zeros(8, 8)), "images must be"),
    (lambda: V.patchify(torch.zeros(1, 1, 5, 8), (4, 4)), "5 x 8 pixels does not divide"),
    (lambda: V.scan_order(4, 4, "hilbrt"), "unknown scan 'hilbrt'; known: raster, snake"),
    (lambda: V.captioned_shapes(0), "need n >= 1"),
    (lambda: V.captioned_shapes(1, split="dev"), "got 'dev'"),
    (lambda: V.parse_caption(" "), "must not be empty"),
    (lambda: V.parse_caption("a mauve ring"), "no word 'mauve'"),
    (lambda: V.parse_caption("a red ring at the window"), "unknown place 'window'; known: top left"),
    (lambda: V.caption_of([V.shape_at(0), V.shape_at(1)], torch.Generator()), "no relation that has a word"),
    (lambda: V.scene_oracle(torch.zeros(1, 3, 16, 12)), r"must be \[N, 3, size, size\], got \[1, 3, 16, 12\]"),
    (lambda: V.scene_oracle(torch.full((1, 3, 16, 16), 255.0)), r"about \[-1, 1\], got values up to 255"),
    (lambda: V.scene_oracle(torch.zeros(1, 3, 16, 16), objects=0), "objects must be 1 or 2"),
    (lambda: V.caption_alignment(torch.zeros(1, 3, 16, 16), []), "got 0 and 1"),
    (lambda: V.render([], size=3), "size must be >= 8"),
    (lambda: V.Shape("ring", "mauve", "big", 0, 0), "got 'mauve'; known: red"),
    (lambda: V.coverage(V.scene_oracle(torch.zeros(1, 3, 16, 16)), ("weight",)), r"got \['weight'\]"),
    (lambda: V.show_images(torch.zeros(4, 4)), r"must be \[N, 1 or 3, H, W\]"),
])
def test_bad_input(make, match):
    with pytest.raises(ValueError, match=match): make()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(V.SCANS))
def test_orders_of_any_grid(h, w, kind):
    order, inverse = V.scan_order(h, w, kind)
    assert torch.equal(order[inverse], torch.arange(h * w)) and torch.equal(order.sort().values, torch.arange(h * w))
    steps = V.grid_positions(h, w)[order].diff(dim=0).abs().sum(1)
    if kind in ("snake", "spiral"): assert bool((steps == 1).all())


def test_pictures_are_a_function_of_the_seed():
    a, b = (V.word_images(20, seed=3) for _ in range(2))
    assert a.words == b.words and torch.equal(a.images, b.images) and a.words != V.word_images(20, seed=4).words
    upper = V.word_images(20, charset=V.LETTERS.upper(), seed=3)
    assert [w.lower() for w in upper.words] == a.words


def test_letters_stand_where_the_boxes_say():
    d = V.word_images(50, jitter=1, slant=0, blur=0, noise=0, seed=1)
    for image, word, boxes in zip(d.images, d.words, d.boxes):
        assert int((~boxes.isnan()).sum()) == len(word)
        ink = ((image[0] + 1) > 0.05).any(0)
        inside = torch.zeros(56, dtype=torch.bool)
        for x in boxes[:len(word)].tolist(): inside[int(x):int(x) + 7] = True
        assert not bool((ink & ~inside).any())


def test_encoders_and_photographs_are_offered():
    assert all(hasattr(V, n) for n in ("FeatureNet", "DualEncoder", "CaptionEncoder", "infonce_loss", "sigmoid_loss", "photo_patches"))


def test_photo_patches_are_a_pure_function_and_keep_to_their_part():
    a = V.photo_patches(6, 24, seed=2)
    assert torch.equal(a[2:5], V.photo_patches(3, 24, seed=2, start=2)) and not torch.equal(a, V.photo_patches(6, 24, seed=2, split="test"))
    assert a.shape == (6, 3, 24, 24) and float(a.abs().max()) <= 1
    with pytest.raises(ValueError, match="size in 1..214, got 1 and 215"): V.photo_patches(1, 215)


def test_pair_losses_agree_with_brute_force_and_do_not_depend_on_the_order():
    g = torch.Generator().manual_seed(0)
    logits, p = torch.randn(7, 7, generator=g, dtype=torch.float64), torch.randperm(7, generator=g)
    for loss in (V.infonce_loss, V.sigmoid_loss):
        torch.testing.assert_close(loss(logits), loss(logits[p][:, p]))
    assert float(V.infonce_loss(100 * torch.eye(7))) < 1e-6 and float(V.infonce_loss(torch.zeros(7, 7))) == pytest.approx(1.945910, abs=1e-5)
    assert float(V.sigmoid_loss(200 * torch.eye(7) - 100)) < 1e-6


def test_the_shipped_encoders(tmp_path):
    from arlm_nb.vision.dual_encoder import load_pair, retrieval
    from arlm_nb.vision.features import digit_accuracy, load_features
    from arlm_nb.core.checkpoints import save_checkpoint
    found = retrieval(load_pair(), 64, seed=5)
    assert found["caption"] > 0.8 and found["picture"] > 0.7 and found["chance"] < 0.1
    net = load_features()
    assert digit_accuracy(net) > 0.95
    again = load_features(save_checkpoint(net, tmp_path / "net", dtype=torch.int8))
    assert digit_accuracy(again) > 0.95
    with pytest.raises(ValueError, match="not a FeatureNet"): load_features("shapes-clip")
