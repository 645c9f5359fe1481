"""Codecs of speech: what ships, any cut of a stream, fewer books, training, saved models."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arlm_nb.core.checkpoints import checkpoint_path, load_checkpoint, read_note, save_checkpoint
from arlm_nb.core.training import fit
from arlm_nb.speech.codec import CausalConv1d, ConvCodec, ConvCodecConfig, MelCodec
from arlm_nb.speech.codec_train import CodecWithCritic, adversarial_loss, codec_error, codec_loss, used_dimensions
from arlm_nb.speech.codec_view import books_study
from arlm_nb.speech.synthesis import corpus

SMALL = ConvCodecConfig(widths=(4, 6, 8, 8, 12), latent=8, n_books=4, n_codes=16)


def small(config=SMALL):
    torch.manual_seed(0)
    return ConvCodec(config).eval()


@pytest.fixture(scope="module")
def shipped(): return ConvCodec.load()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 2), st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_a_causal_convolution_in_pieces(kernel, stride, dilation, pieces):
    if (kernel - 1) * dilation + 1 < stride: return  # would skip inputs
    torch.manual_seed(0)
    conv, memory = CausalConv1d(2, 3, kernel, stride, dilation), {}
    x = torch.randn(1, 2, stride * sum(pieces))
    whole = conv(x)
    assert whole.shape[-1] == sum(pieces)
    parts = torch.cat([conv(p, memory) for p in x.split([stride * n for n in pieces], -1)], -1)
    assert torch.allclose(parts, whole, atol=1e-6)
    padded = torch.nn.functional.pad(x, (conv.back, 0))
    assert torch.allclose(whole, torch.nn.functional.conv1d(padded, conv.weight, conv.bias, stride, 0, dilation), atol=1e-6)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(1, 4))
def test_any_cut_of_a_stream_is_the_whole(pieces, books):
    codec = small()
    codes = torch.randint(16, (books, sum(pieces)), generator=torch.Generator().manual_seed(sum(pieces)))
    stream = codec.stream()
    made = torch.cat([stream.decode(p) for p in codes.split(pieces, -1)], -1)
    assert torch.allclose(made, codec.decode(codes), atol=1e-5)


def test_fewer_books_are_the_first_ones(shipped):
    wave = torch.from_numpy(corpus(1, speakers=range(200, 250), seed=3)[0].wave)
    codes = shipped.encode(wave)
    for n in (1, 3, 8):
        assert torch.equal(shipped.encode(wave, n), codes[:n])
        z = sum(shipped.quantizer.stages[q].codebook[codes[q]] for q in range(n))
        assert torch.allclose(shipped.looked_up(codes[:n]), z, atol=1e-6)
    both = shipped.encode(torch.stack([wave, wave.flip(0)]))
    assert (both[0] == codes).double().mean() > 0.99 and both.shape == (2, *codes.shape)


def test_what_ships_is_what_its_note_says(shipped):
    noted = read_note(checkpoint_path("speech/codec"))["measured"]
    found = codec_error(shipped, 12, (1, 8))
    assert all(abs(found[k] - noted[k]) < 0.03 for k in found) and found["mel_8"] < found["mel_1"]
    assert used_dimensions(shipped, 5) > 1 and shipped.frame_rate == 50 and shipped.bit_rate == pytest.approx(2400)


def test_training_lowers_the_loss_and_places_the_books():
    model = CodecWithCritic(ConvCodec(SMALL))
    wave = torch.stack([torch.from_numpy(u.wave[:4800]) for u in corpus(12, seed=1) if len(u.wave) >= 4800][:6])
    with torch.no_grad(): before = codec_loss(model.codec.eval(), wave, quantized=False).value
    run = fit(model.train(), lambda step, rng: wave, adversarial_loss(start=50, free=30), steps=60, lr=4e-3, log_every=10, progress=False)
    model = run.model.eval()
    with torch.no_grad(): assert codec_loss(model.codec, wave).value < 0.85 * before
    assert all(float(s.ready) == 1 for s in model.codec.quantizer.stages) and "features" in run.rows[-1] and int(model.steps) == 60


def test_saved_and_loaded(tmp_path):
    codec = small()
    codec.config.to_dict()
    again = load_checkpoint(save_checkpoint(codec, tmp_path / "codec", {"model": "ConvCodec"}, torch.float32))
    assert again.config == codec.config
    wave = torch.randn(1600)
    assert torch.equal(again.encode(wave), codec.encode(wave)) and torch.equal(again.decode(again.encode(wave)), codec.decode(codec.encode(wave)))


def test_more_books_leave_less_and_bring_back_more():
    some, test = corpus(40), corpus(6, speakers=range(200, 250), seed=9)
    codec = MelCodec.fit(some, n_books=4, n_codes=32)
    errors = codec_error(codec, 10, (1, 2, 4))
    assert errors["mel_1"] > errors["mel_2"] > errors["mel_4"]
    table = books_study({"mel": codec}, test, books=(1, 4)).groupby("books").sim.mean()
    assert table[4] > table[1] and MelCodec.fit(some, n_books=2, n_codes=8, r=4).frame_rate == 25


@pytest.mark.parametrize("call, says", [
    (lambda: ConvCodec(ConvCodecConfig(widths=(4, 4))), "one more than strides"),
    (lambda: MelCodec(torch.zeros(2, 8, 40), r=2), r"2 \* 40"),
    (lambda: MelCodec.fit([torch.zeros(8000)], n_codes=500), "at least as many frames"),
    (lambda: small().decode(torch.zeros(2, 3, 4, 5, dtype=torch.long)), "integers"),
    (lambda: small().encode(torch.zeros(2, 2, 800)), "at least 256 samples"),
    (lambda: small().stream().decode(torch.full((1, 2), -1)), "0..15"),
    (lambda: codec_loss(small(), torch.zeros(2, 1000)), "multiple of 160"),
])
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says): call()
