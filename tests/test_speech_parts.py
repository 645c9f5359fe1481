"""The speech blocks: properties over many seeds, both sample rates, bad input."""
import numpy as np
import pytest
import torch

from arlm_nb.speech import alignment, ctc_judge, front_end, phones, pitch, synthesis, voices, wave_view


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("fs", (8000, 16000))
def test_labels_tile_the_wave(seed, fs):
    u = synthesis.one_utterance(seed, range(250), 77, max_words=3, fs=fs)
    assert u.durations.sum() == len(u.wave) == u.spans[-1, 1] and u.spans[0, 0] == 0 and (u.spans[1:, 0] == u.spans[:-1, 1]).all()
    assert len(u.f0) == len(u.wave) // (fs // 200) and np.isfinite(u.wave).all() and np.abs(u.wave).max() <= 1
    voiced = np.repeat([phones.PHONES[s].voiced for s in u.phones], u.durations // (fs // 200))
    assert ((u.f0 > 0) == voiced).all()
    assert front_end.mel(u.wave, fs).shape == (len(u.wave) // (fs // 100), 40)


def test_text_and_sounds_are_one():
    for w in phones.LEXICON: assert "".join(phones.sounds(w)) == w
    for i in range(50):
        text = phones.sample_sentence(i)
        assert "".join(s for s in phones.text_phones(text) if s != "sil") == text.replace(" ", "")


def test_a_batch_is_analysed_like_its_rows():
    x = torch.randn(3, 4000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(front_end.mel(x)[1], front_end.mel(x[1]))
    assert front_end.mel_to_wave(front_end.mel(x), rounds=2).shape == (3, 4000)


@pytest.mark.parametrize("call,says", [
    (lambda: synthesis.speak("shum helo", voices.Speaker.draw(0)), "nearest in the lexicon"),
    (lambda: synthesis.speak("", voices.Speaker.draw(0)), "at least one word"),
    (lambda: synthesis.speak("shum", voices.Speaker.draw(0), fs=22050), "8000 or 16000"),
    (lambda: synthesis.speak("shum", voices.Speaker.draw(0), style="loud"), "statement, question"),
    (lambda: voices.Speaker.draw(-2), ">= 0"),
    (lambda: phones.sample_sentence(0, max_words=9), "2..6"),
    (lambda: front_end.mel(np.zeros(90)), "at least one window"),
    (lambda: front_end.mel_to_wave(torch.zeros(9, 39)), "40"),
    (lambda: front_end.stack(torch.zeros(4, 40), 0), ">= 1"),
    (lambda: pitch.pitch(np.zeros(90)), "at least"),
    (lambda: ctc_judge.wer("", "shum"), "reference"),
    (lambda: synthesis.corpus(0), ">= 1"),
    (lambda: wave_view.player({}), "at least one wave"),
    (lambda: alignment.ctc_path(np.zeros((2, 4)), [1, 2, 3], 0), "do not fit"),
])
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says): call()


def test_the_judge_is_not_moved_by_padding():
    torch.manual_seed(0)
    judge, x = ctc_judge.CTCJudge(8).eval(), torch.randn(2, 41, 40)
    with torch.no_grad(): torch.testing.assert_close(judge(x, torch.tensor([41, 33]))[1, :17], judge(x[1:, :33])[0], atol=1e-5, rtol=1e-4)


def test_a_tone_has_its_pitch_at_both_rates():
    for fs in (8000, 16000):
        f = pitch.pitch(np.sin(2 * np.pi * 200 * np.arange(fs) / fs), fs)
        assert abs(np.median(f[f > 0]) - 200) < 1
