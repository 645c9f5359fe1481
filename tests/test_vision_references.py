"""Vision's reference checkpoints, each against what its note says of it; a saved tokenizer; the critic in an interrupted training."""
import json

import pytest
import torch

from arlm_nb.core.checkpoints import checkpoint_path, makers
from arlm_nb.core.training import fit
from arlm_nb.vision import reference_lms as R
from arlm_nb.vision import tokenizers as K
from arlm_nb.vision.captions import captioned_shapes, smooth_noise
from arlm_nb.vision.features import FeatureNet, band_accuracy, digit_accuracy, digit_pictures, load_features, photo_patches
from arlm_nb.core.checkpoints import save_checkpoint
from arlm_nb.vision.shapes import all_scenes, scene_oracle

NAMES = "shapes-vq128 shapes-vq512 shapes-vae shapes-var shapes-ar shapes-var-lm shapes-clip digits-vq64 digits-features photos-vq512 photos-features".split()


def test_every_reference_of_the_card_ships_and_has_a_recipe():
    for name in NAMES:
        folder = checkpoint_path(f"vision/{name}")
        note = json.loads((folder / "note.json").read_text())
        assert f"vision/{name}" in makers.keys() and note["measured"] and note["command"].endswith(f"vision/{name}") and (folder / "model.safetensors").stat().st_size < 2e6


@pytest.mark.parametrize("name", ["shapes-vq128", "shapes-vq512", "digits-vq64", "photos-vq512"])
@torch.no_grad()
def test_tokenizers_do_what_their_notes_say(name, tmp_path):
    t = K.load_vq(name)
    x = {"shapes": all_scenes()[K.scene_split("test")], "digits": digit_pictures()[2], "photos": photo_patches(1000, split="test")}[name.split("-")[0]]
    ids, note = t.encode(x), json.loads((checkpoint_path(f"vision/{name}") / "note.json").read_text())["measured"]
    back = t.decode(ids)
    assert float((back - x).square().mean()) == pytest.approx(note["test_mse"], rel=0.01) and t.vocab_size == int(name.split("vq")[1])
    if "shapes" in name: assert scene_oracle(back.clamp(-1, 1)).valid_rate > 0.98
    if "digits" in name: assert digit_accuracy(load_features(), lambda x: t.decode(t.encode(x))) > 0.95
    assert torch.equal(t.encode(x[5:6]), ids[5:6])
    again = K.load_vq(save_checkpoint(t, tmp_path / "again", dtype=torch.float32))
    assert torch.equal(again.encode(x), ids)


@torch.no_grad()
def test_generators_draw_what_they_are_asked_for():
    y = torch.arange(96) % R.CONDITIONS
    for model, least in ((K.load_image_lm(), 0.85), (K.load_scale_lm(), 0.45)):
        right = R.judge(R.drawn_pictures(model, y, seed=11), y)["right"]
        turned = R.judge(R.drawn_pictures(model, (y + 7) % R.CONDITIONS, seed=11), y)["right"]
        none = R.judge(R.drawn_pictures(model, torch.full_like(y, R.CONDITIONS), seed=11), y)["right"]
        assert right > least and turned == 0 and none < 0.15, "the condition decides, and without one the picture is anything"


def test_the_least_loss_is_that_of_the_best_table():
    g = torch.Generator().manual_seed(0)
    ids, y = torch.randint(3, (200, 1, 2), generator=g), torch.randint(2, (200,), generator=g)
    by_table = 0.0  # the empirical law of the pair under each condition
    for c in range(2):
        rows = (ids[y == c].flatten(1) * torch.tensor([3, 1])).sum(1)
        p = torch.bincount(rows, minlength=9).double() / len(rows)
        by_table -= len(rows) / 200 * float(torch.xlogy(p, p).sum())
    assert R.least_nats(ids, y) == pytest.approx(by_table / 2) and R.least_nats([ids], y) >= R.least_nats(ids, y)


def test_features_of_photographs_know_where_a_crop_is_from():
    torch.manual_seed(0)
    assert band_accuracy(load_features("photos-features"), seed=9) > 0.25 > band_accuracy(FeatureNet(8, channels=3), seed=9)


def test_texture_is_smooth_and_a_function_of_the_index():
    a = captioned_shapes(4, texture=0.2, seed=3)
    assert torch.equal(a.images[2:], captioned_shapes(2, texture=0.2, seed=3, start=2).images)
    noise = smooth_noise(32, torch.Generator().manual_seed(1))
    assert float((noise * noise.roll(1, 2)).mean()) > 0.6 > 0.1 > abs(float((noise * noise.roll(8, 2)).mean()))


def test_an_interrupted_training_with_a_critic_goes_on(tmp_path):
    def model():
        torch.manual_seed(0)
        return K.WithCritic(K.ImageVAE(width=8), K.PatchDiscriminator(width=4))
    data, goal = K.scene_batches(8), K.critic_objective(K.vae_loss, start=3)
    whole = fit(model(), data, goal, steps=6, progress=False)
    assert [r["against"] == 0.0 for r in fit(model(), data, goal, steps=6, log_every=1, progress=False).rows] == [True] * 3 + [False] * 3
    def stop(step, rng):
        if step == 4: raise KeyboardInterrupt
        return data(step, rng)
    assert fit(model(), stop, goal, steps=6, checkpoint=tmp_path, progress=False).interrupted
    rest = fit(model(), data, goal, steps=6, checkpoint=tmp_path, progress=False)
    for a, b in zip(whole.model.state_dict().values(), rest.model.state_dict().values()): torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make, match", [
    (lambda: K.critic_objective(K.vae_loss, start=-1), "weight and start must be >= 0, got 0.8 and -1"),
    (lambda: K.PatchDiscriminator()(torch.zeros(3, 16, 16)), "images must be"),
    (lambda: K.multi_scale_objective(-0.1), "coarse must be >= 0, got -0.1"),
    (lambda: R.condition_of("a red ring"), "must say small or big"),
    (lambda: K.load_vq("shapes-vq64"), "unknown checkpoint 'vision/shapes-vq64'; nearest: vision/"),
    (lambda: K.load_scale_lm("shapes-ar"), "holds a 'ImageLM', not a ScaleLM"),
    (lambda: K.generate_image(K.load_image_lm(), 49), "classes must be in 0..48"),
    (lambda: K.load_vq().decode(torch.full((1, 4, 4), 128)), "ids must be in 0..127, got 128..128"),
])
def test_bad_input(make, match):
    with pytest.raises(ValueError, match=match): make()
