"""The video area's shared parts beyond their notebooks: other sizes, other seeds, fakes of decoders and of the Hub, what is refused."""
import io
import sys
import types

import numpy as np
import pytest
import torch

from arlm_nb.video import common
from arlm_nb.video.captions import COLOURS, SHAPES, attributes, captions_of
from arlm_nb.video.denoiser import VideoDenoiser
from arlm_nb.video.load_videos import load_videos, read_clip
from arlm_nb.core.checkpoints import save_checkpoint
from arlm_nb.video.probe import StateProbe, load_probe, targets
from arlm_nb.video.sprites import draw_script, moving_sprites
from arlm_nb.video.token_sprites import appearance, appearance_codes, cells, read_tokens, token_sprites
from arlm_nb.video.tokenizer3d import load_vq
from arlm_nb.video.video_metrics import caption_accuracy, motion_accuracy, paired, persistence, position_error, state_accuracy, video_metrics


def test_one_door():
    for name in ("token_sprites", "TokenVideos", "load_videos", "StateProbe", "VideoDenoiser", "motion_accuracy", "position_error", "video_metrics", "filmstrip", "video_player", "scripts", "text_video_ids"):
        assert callable(getattr(common, name)), name


# exact tokens

@pytest.mark.parametrize("grid, frames, appearances", [(3, 1, 1), (4, 7, 24), (5, 12, 96), (9, 20, 50)])
def test_tokens_are_read_back(grid, frames, appearances):
    videos = token_sprites(40, frames, grid=grid, appearances=appearances, seed=grid)
    assert videos.codes.shape == (40, frames, grid, grid) and len(videos.text_ids) == len(videos) == 40
    read, s = read_tokens(videos.codes), videos.state
    for name in ("shape", "colour", "background"): assert (read[name].to_numpy() == s[name].to_numpy()).all()
    assert (cells(read.x, grid) == cells(s.x, grid)).all() and (cells(read.y, grid) == cells(s.y, grid)).all()
    allowed = {tuple(appearance(a).values()) for a in range(appearances)}
    assert set(zip(s["shape"], s.colour, s.background)) <= allowed and persistence(read).min() == 1
    said = caption_accuracy(read, videos.captions)
    assert np.nanmin(said["colour"]) == np.nanmin(said["shape"]) == 1


def test_tokens_are_a_function_of_the_appearance():
    videos = token_sprites(300, 2, seed=3)
    thing = videos.codes[videos.codes >= 4].view(300, 2, 4)  # row by row: the four tokens of the object
    names = list(zip(*(videos.state[videos.state.frame == 0][k] for k in ("shape", "colour", "background"))))
    number = {tuple(appearance(a).values()): a for a in range(96)}
    assert torch.equal(thing[:, 0], thing[:, 1]) and torch.equal(thing[:, 0], appearance_codes()[[number[n] for n in names]].flatten(1))


# the probe

@pytest.fixture(scope="module")
def probe(): return load_probe()


@pytest.mark.parametrize("seed", [101, 202])
def test_probe_on_held_out_frames(probe, seed):
    clips = moving_sprites(96, seed=seed)
    found = state_accuracy(probe.read(clips.video), clips.state)
    assert found["shape"] >= 0.97 and found["colour"] >= 0.97 and found["position_error"] <= 0.6
    vq = load_vq()
    assert state_accuracy(probe.read(vq.decode(vq.encode(clips.video))), clips.state)["colour"] >= 0.93


def test_probe_sees_single_frames(probe):
    video = moving_sprites(3, seed=5).video
    torch.testing.assert_close(probe.features(video.flip(1)), probe.features(video).flip(1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(probe.features(video[1:2, 4:5]), probe.features(video)[1:2, 4:5], atol=1e-5, rtol=1e-4)
    moved = moving_sprites(1, seed=5, motion="right", extent=5.0, speed=0.7, background="plain")
    read = probe.read(moved.video)
    assert (np.diff(read.x) > 0).all() and np.hypot(read.x - moved.state.x, read.y - moved.state.y).max() < 0.6 and motion_accuracy(read, moved.captions).tolist() == [1.0]


def test_probe_comes_back_from_a_folder(tmp_path, probe):
    torch.manual_seed(0)
    own = StateProbe(width=16, depth=1)
    save_checkpoint(own, tmp_path / "own", dtype=torch.int8)
    again, video = load_probe(tmp_path / "own"), torch.rand(1, 2, 3, 16, 16)
    assert again.config == own.config and not again.training
    assert float((again.features(video) - own.features(video)).abs().max()) < 0.05  # int8 rows
    with pytest.raises(ValueError, match="holds a 'CausalVideoVQ', not a StateProbe"): load_probe("video/vq")


def test_probe_targets_leave_out_what_is_covered():
    clips = moving_sprites(80, objects=2, seed=1)
    told, s = targets(clips.state, 16), clips.state.sort_values(["video", "frame", "object"])
    at = s[["x", "y"]].to_numpy().reshape(-1, 2, 2)
    near = np.linalg.norm(at[:, 0] - at[:, 1], axis=-1) < 3
    behind = told["presence"][range(len(near)), [list(COLOURS).index(c) for c in s.colour[0::2]]]
    assert near.any() and (behind[torch.from_numpy(near)] == -1).all() and (behind[torch.from_numpy(~near)] == 1).all()


# metrics

def test_two_objects_in_any_order():
    s = moving_sprites(20, objects=2, seed=2).state
    turned = s.assign(object=1 - s["object"]).sort_values(["video", "frame", "object"])
    a, b = paired(turned, s)
    assert (a[["x", "y", "colour"]].to_numpy() == b[["x", "y", "colour"]].to_numpy()).all()
    assert position_error(turned, s).max() == 0 and state_accuracy(turned, s)["both"] == 1


def test_report_with_the_shipped_probe():
    clips = moving_sprites(24, seed=8)
    report = video_metrics(clips.video, clips, clips.captions)
    found = report.frame.set_index("metric").value
    assert found["motion_accuracy"] == 1 and found["position_error"] < 0.6 and len(report.off) == 17 and abs(found["position_error"] - report.off.mean()) < 1e-9
    assert {t.name for t in report.plot().data} >= {"persistence", "off the path [px]"}
    unnamed = video_metrics(clips.video, clips.video, ["a object moves"] * 24).frame.set_index("metric").value
    assert np.isnan(unnamed["motion_accuracy"]) and "position_error" not in unnamed


# scripts

def test_a_script_is_drawn_as_it_reads():
    script = ["a red circle moves up on a plain background", "a red circle orbits on a checker background"]
    film = draw_script(script, frames=5, seed=1)
    assert film.video.shape[:2] == (1, 10) and film.state.shot.value_counts().to_dict() == {0: 5, 1: 5}
    assert captions_of(film.state[film.state.shot == 0]) == script[:1] and film.captions == script
    with pytest.raises(ValueError, match="'dragon' is no word of captions"): draw_script(["a red dragon"])
    assert attributes("a red circle moves above a blue cross that orbits") == {"colour": "red", "shape": "circle"}


# the denoiser

@pytest.mark.parametrize("channels, shape", [(1, (2, 1, 1, 4, 4)), (3, (1, 9, 3, 16, 8)), (16, (2, 3, 16, 8, 8))])
def test_denoiser_shapes_and_prefix(channels, shape):
    torch.manual_seed(0)
    net = VideoDenoiser(channels, 6, width=8)
    x, cond = torch.randn(shape), torch.randn(shape[0], 5, 6)
    assert net(x, 0.5, cond).shape == x.shape and not net(x, 0.5, cond).any()
    for w in net.parameters(): w.data += 0.1 * torch.randn(w.shape)
    net.loss(x, cond, rng=torch.Generator().manual_seed(0)).backward()
    assert all(w.grad is not None for w in net.parameters())
    for prefix in range(1, shape[1]):
        out = net.sample(cond, shape, steps=2, guidance=2.0, prefix=x[:, :prefix], method="heun", rng=torch.Generator().manual_seed(1))
        assert torch.equal(out[:, :prefix], x[:, :prefix]) and torch.isfinite(out).all()


def test_denoiser_prefix_of_each_video():
    torch.manual_seed(1)
    net, x = VideoDenoiser(3, 4, width=8), torch.randn(2, 4, 3, 8, 8)
    for w in net.parameters(): w.data += 0.1 * torch.randn(w.shape)
    both = net.loss(x, prefix=torch.tensor([1, 3]), rng=torch.Generator().manual_seed(2))
    g = torch.Generator().manual_seed(2)
    noise, t = torch.randn(x.shape, generator=g), torch.rand(2, generator=g)
    at = torch.where(torch.arange(4) < torch.tensor([[1], [3]]), 1.0, t[:, None])
    x_t = noise + at.view(2, 4, 1, 1, 1) * (x - noise)
    off = (net(x_t, at) - (x - noise)).square().mean((2, 3, 4))
    torch.testing.assert_close(both, torch.cat([off[0, 1:], off[1, 3:]]).mean())
    with pytest.raises(ValueError, match=r"prefix must be in 0..3 .* got 4"): net.loss(x, prefix=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="got -1"): net.loss(x, prefix=-1)


# videos of one's own

def test_films_need_a_decoder(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"film")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match="a.mp4 needs a video decoder: pip install av, or save the clips as gif or npz"): load_videos(tmp_path, frames=1, size=16)


def test_films_are_read_where_there_is_one(tmp_path, monkeypatch):
    frames = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    class Film:
        def __enter__(self): return self
        def __exit__(self, *error): return False
        def decode(self, video): return [types.SimpleNamespace(to_ndarray=lambda format, f=f: f) for f in frames]
    monkeypatch.setitem(sys.modules, "av", types.SimpleNamespace(open=lambda source: Film()))
    (tmp_path / "a.mp4").write_bytes(b"film")
    assert torch.equal(load_videos(tmp_path, frames=3, size=16, every=2).video[0], torch.from_numpy(frames[:5:2]).movedim(-1, 1).float() / 255)


@pytest.mark.parametrize("kind", ["array", "pictures", "frames"])
def test_a_data_set(monkeypatch, kind):
    from PIL import Image
    frames = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), np.uint8)
    cell = {"array": frames, "pictures": [Image.fromarray(f) for f in frames], "frames": list(torch.from_numpy(frames).movedim(-1, 1))}[kind]
    def load_dataset(name, split, streaming):
        if name == "org/gone": raise ConnectionError("no network")
        return iter([{"video": cell, "caption": "a clip"}] * 3)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    got = load_videos("org/clips", frames=5, size=16, limit=2)
    assert got.captions == ["a clip"] * 2 and got.state is None
    assert torch.equal(got.video[1], torch.from_numpy(frames).movedim(-1, 1).float() / 255)
    with pytest.raises(ValueError, match="org/clips has no column 'film'; known: video, caption"): load_videos("org/clips", frames=1, size=16, column="film")
    with pytest.raises(ValueError, match="org/gone is neither a folder nor can the Hub be reached"): load_videos("org/gone", frames=1, size=16)


def test_nothing_is_unpickled(tmp_path):
    class Boom:
        def __reduce__(self): return (pytest.fail, ("code of a file was run",))
    held = np.empty(1, object); held[0] = Boom()
    out = io.BytesIO()
    np.savez(out, video=held)
    (tmp_path / "evil.npz").write_bytes(out.getvalue())
    with pytest.raises(ValueError, match="Python objects, which is not loaded"): read_clip(tmp_path / "evil.npz")


def test_broken_files_are_named(tmp_path):
    for name in ("a.npz", "a.gif"):
        (tmp_path / name).write_bytes(b"this is none")
        with pytest.raises(ValueError, match=f"{name} cannot be read as {name[2:]}"): read_clip(tmp_path / name)


def test_shapes_of_the_probe_are_those_of_the_sprites(): assert StateProbe().shape.out_features == len(SHAPES)
