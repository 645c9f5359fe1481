"""Next-X prediction and the image tokenizers: names of the cards, bad input, any partition, leaks, memorising, saved and loaded, interrupted."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arlm_nb.core.generation import decoders, get_decoder
from arlm_nb.core.training import fit
from arlm_nb.vision import next_x as X
from arlm_nb.vision import tokenizers as K
from arlm_nb.core.checkpoints import load_module, save_checkpoint
from arlm_nb.train_checkpoints import make_module

TINY = dict(d_model=16, n_layers=1, n_heads=2)


def tiny(kind="cell", **kw):
    torch.manual_seed(0)
    model = X.NextXModel(kind=kind, **TINY, **kw).eval()
    for p in model.parameters(): torch.nn.init.normal_(p, std=0.2)
    return model


def test_names_of_the_cards():
    names = "to_entities from_entities Entities NextXModel next_x_objective generate_next_x exposure".split()
    assert [n for n in names if not hasattr(X, n)] == []
    names = "ImageVAE VQImageTokenizer MultiScaleTokenizer ImageLM ScaleLM generate_image generate_scales frechet_distance frechet_floor kernel_distance inception_score precision_recall".split()
    assert [n for n in names if not hasattr(K, n)] == []
    assert {"next_x", "image_raster", "next_scale"} <= set(decoders()) and get_decoder("next_x") is X.generate_next_x


@pytest.mark.parametrize("make, match", [
    (lambda: X.layout((4, 4), "cell", k=3), r"k must divide the grid \[4, 4\], got \[3, 3\]"),
    (lambda: X.layout((4, 4), "subsample", d=(2, 3)), r"stride d must divide the grid"),
    (lambda: X.layout((4, 4), "scale", scales=(1, 2, 3)), "end at the grid's side 4"),
    (lambda: X.layout((4, 8), "scale"), "equal sides"),
    (lambda: X.layout((4, 4), "partition", parts=[range(15)]), r"missing: \[15\]"),
    (lambda: X.layout((4, 4), "partition", parts=[range(16), [0]]), r"twice: \[0\]"),
    (lambda: X.layout((4, 4), "partition", parts=[range(16), []]), "none empty"),
    (lambda: X.layout((2, 2, 2, 2)), "1 to 3 sides"),
    (lambda: X.layout((4, 4), "celll"), "nearest: cell"),
    (lambda: X.to_entities(torch.zeros(1, 4, 4, 8), X.layout((4, 4))), r"layout is for a grid \[4, 4\], got \[4, 8\]"),
    (lambda: X.from_entities(X.Entities(torch.zeros(1, 15, 4), X.layout((4, 4)))), r"tokens must be \[B, 16, C\]"),
    (lambda: X.context_times(2, 1, "increasing", torch.Generator()), "at least 2 of them, got 1"),
    (lambda: X.next_x_objective("increasing")(tiny("image"), {"latents": torch.zeros(1, 4, 4, 4), "classes": torch.zeros(1, dtype=torch.long)}, torch.Generator()), "at least 2"),
    (lambda: X.next_x_objective("cleann"), "nearest: clean"),
    (lambda: X.generate_next_x(tiny(), None, 0, steps=0), "steps must be >= 1, got 0"),
    (lambda: X.generate_next_x(tiny(), None, 99), "classes must be in 0..24"),
    (lambda: X.generate_next_x(tiny(), None, "a red box above a blue box"), "one object is needed"),
    (lambda: X.NextXModel(d_model=24, n_heads=4), "multiple of 4 numbers"),
    (lambda: X.load_next_x("next-x-cells"), "unknown checkpoint 'vision/next-x-cells'; nearest: vision/next-x-cell"),
    (lambda: X.load_next_x("shapes-vae"), "holds a 'ImageVAE', not a NextXModel"),
    (lambda: K.ImageVAE(16, 3, 6), "image_size must be a multiple of factor"),
    (lambda: K.ImageVAE().encode(torch.zeros(1, 1, 16, 16)), r"must be \[B, 3, 16, 16\]"),
    (lambda: K.VQImageTokenizer().embed(torch.tensor([128])), "ids must be in 0..127, got 128..128"),
    (lambda: K.MultiScaleTokenizer((1, 1, 4)), "scales must increase"),
    (lambda: K.frechet_distance(torch.zeros(8, 2), torch.zeros(9, 2)), "of one size"),
    (lambda: K.generate_image(K.ImageLM(4, (2, 2), 2, d_model=8, n_layers=1, n_heads=2), 3), "0..2"),
])
def test_bad_input(make, match):
    with pytest.raises(ValueError, match=match): make()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_any_partition_of_any_grid(grid, rnd):
    n = int(torch.tensor(grid).prod())
    places = list(range(n)); rnd.shuffle(places)
    cuts = sorted({0, n, *(rnd.randint(0, n) for _ in range(3))})
    parts = [places[a:b] for a, b in zip(cuts, cuts[1:])]
    z = torch.arange(2.0 * n).view(2, 1, *grid)
    e = X.to_entities(z, "partition", parts=parts)
    assert torch.equal(X.from_entities(e), z)
    for i, part in enumerate(parts): assert sorted(e.tokens[0, e.entity_id == i, 0].tolist()) == sorted(float(p) for p in part)


@pytest.mark.parametrize("grid, axes", [((8,), 1), ((2, 2, 4), 3)])
def test_frames_of_speech_and_tubes_of_video(grid, axes):
    torch.manual_seed(0)
    model = X.NextXModel(grid, 3, "cell", size={"k": 2}, n_classes=2, d_model=24, n_layers=1, n_heads=2).eval()
    out = X.generate_next_x(model, None, [0, 2], steps=2)
    assert out[0].latent.shape == (3, *grid) and model.layout.positions.shape[1] == axes


def test_a_learned_picture_comes_back():
    "A model that learns one picture by each context draws it."
    z, y = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([3])
    for context in X.CONTEXTS:
        torch.manual_seed(0)
        model = X.NextXModel(kind="subsample", d_model=32, n_layers=2, n_heads=2)
        run = fit(model, lambda step, rng: {"latents": z.expand(16, -1, -1, -1), "classes": y.expand(16)}, X.next_x_objective(context), steps=150, lr=1e-2, optimizer="muon", progress=False)
        drawn = X.generate_next_x(run.model.eval(), None, 3, steps=10).latent
        assert float((drawn - z[0]).square().mean()) < 0.15, context


def test_times_are_uniform_and_independent():
    from scipy.stats import kstest
    t = X.context_times(20_000, 3, "random", torch.Generator().manual_seed(7))
    assert kstest(t[:, 1].numpy(), "uniform").pvalue > 1e-3 and float((torch.corrcoef(t.T) - torch.eye(3)).abs().max()) < 0.05


def test_saved_and_loaded(tmp_path):
    model = tiny("scale")
    save_checkpoint(model, tmp_path / "m", dtype=torch.float32)
    again = X.load_next_x(tmp_path / "m")
    a, b = (X.sample_tokens(m, torch.tensor([1, 2]), steps=2, rng=torch.Generator().manual_seed(0)) for m in (model, again))
    assert torch.equal(a, b) and again.layout.kind == "scale"
    with pytest.raises(ValueError, match="not a ImageVAE"): load_module(tmp_path / "m", K.ImageVAE, "ImageVAE")


def test_an_interrupted_training_saves_nothing_as_finished(tmp_path, monkeypatch):
    from arlm_nb import train_checkpoints
    monkeypatch.setattr(train_checkpoints, "run_folder", lambda name: tmp_path / "run" / name)
    monkeypatch.setattr(train_checkpoints, "writable_path", lambda *parts: tmp_path.joinpath("out", *parts))
    data = X.latent_batches(4)
    def stops(step, rng):
        if step == 3: raise KeyboardInterrupt
        return data(step, rng)
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt): make_module("vision/t", tiny(), stops, X.next_x_objective(), steps=6, lr=1e-3, about="", progress=False)
    assert not (tmp_path / "out").exists()
    folder = make_module("vision/t", tiny(), data, X.next_x_objective(), steps=6, lr=1e-3, about="", progress=False)
    assert X.load_next_x(folder).layout.n == 4


def test_the_shipped_models_are_what_their_notes_say():
    from arlm_nb.vision import next_x_train
    from arlm_nb.core.checkpoints import checkpoint_path, read_note
    for name in X.STUDY.values():
        model, note = X.load_next_x(name), read_note(checkpoint_path(f"vision/{name}"))
        assert note["steps"] == next_x_train.STEPS and note["parameters"] == sum(p.numel() for p in model.parameters())
        assert name == f"next-x-{model.layout.kind}" + ("" if model.context == "random" else f"-{model.context}")


def test_moving_what_is_given_keeps_it():
    "Entities that are given stay as they are; the rest is drawn behind them."
    model = tiny()
    given = torch.randn(2, 8, 4)
    out = X.sample_tokens(model, torch.tensor([0, 1]), steps=2, rng=torch.Generator().manual_seed(0), given=given)
    assert torch.equal(out[:, :8], given) and out.shape == (2, 16, 4)
