"""FELLE on Hugging Face models of several shapes, in the registry, and its bad input."""
import json

import pytest
import torch

from arlm_nb.core.generation import decoders, get_decoder
from arlm_nb.core.heads import AdaLNMLP, integrate
from arlm_nb.speech import felle_model as M
from arlm_nb.speech.felle_flow import CoarseToFineFlow
from tests.models import FLAGSHIP, hflm


def felle(family: str, **kw) -> M.Felle:
    lm = hflm(family)
    torch.manual_seed(0)
    return M.Felle(lm, 4, placed=False, text_ids=lambda text: [1 + ord(c) % 50 for c in text], flow=CoarseToFineFlow(4, lm.d_model, width=8), **kw).eval()


def test_it_is_a_registered_decoder():
    assert "felle" in decoders() and get_decoder("felle") is M.synthesise_mel


@pytest.mark.parametrize("family", FLAGSHIP)
def test_streaming_is_teacher_forcing_on_hugging_face_models(family):
    model, g = felle(family), torch.Generator().manual_seed(0)
    prompt = ("ab", torch.randn(5, 4, generator=g))
    made = M.synthesise_mel(model, "cdef", prompt, max_new_tokens=6, stop=1.1, dropout=False, guidance=1.0, head="regression")
    ids = model.text_ids("ab cdef")
    batch = {"text": torch.tensor([ids]), "text_len": torch.tensor([len(ids)]), "frames": torch.cat([prompt[1], made.frames])[None],
             "frame_len": torch.tensor([11]), "prompt_len": torch.tensor([5]), "pace": torch.tensor([1.0])}
    with torch.no_grad(): forced = model.project(model.hidden_states(batch).float())[0, 5:]
    torch.testing.assert_close(forced, made.frames, atol=2e-4, rtol=1e-3)
    drawn = M.synthesise_mel(model, "cdef", prompt, max_new_tokens=4, stop=1.1, guidance=1.6)
    assert drawn.frames.shape == (4, 4) and drawn.frames.isfinite().all() and json.loads(json.dumps(drawn.to_dict()))["frames"]


@pytest.mark.parametrize("family", ("llama", "gpt2"))
def test_a_row_of_a_batch_is_what_it_is_alone(family):
    model, g = felle(family), torch.Generator().manual_seed(1)
    prompts = [("ab", torch.randn(5, 4, generator=g)), ("a", torch.randn(2, 4, generator=g))]
    kw = dict(max_new_tokens=4, stop=1.1, dropout=False, guidance=1.0, head="regression")
    both = M.synthesise_mel(model, ["cdef", "g"], prompts, **kw)
    for text, prompt, row in zip(["cdef", "g"], prompts, both):
        torch.testing.assert_close(M.synthesise_mel(model, text, prompt, **kw).frames, row.frames, atol=2e-4, rtol=1e-3)


def test_rows_end_on_their_own():
    model = felle("llama")
    with torch.no_grad(): model.stop.weight.mul_(30)
    texts = ["abc", "de", "fghij", "k", "lmn", "op"]
    made = M.synthesise_mel(model, texts, max_new_tokens=12, guidance=1.6, seed=3)
    for m in made:
        assert len(m.ids) == len(m.frames) == len(m.logprobs) and not any(m.ids[:-1]) and (m.ids[-1] == 1 or len(m.ids) == 12)


def test_a_generation_without_frames_is_as_it_was():
    from arlm_nb.core.generation import Generation
    assert "frames" not in Generation([1], "a", [0.0], []).to_dict()


@pytest.mark.parametrize("call,says", [
    (lambda m: M.synthesise_mel(m, "ab", max_new_tokens=0), "max_new_tokens must be >= 1"),
    (lambda m: M.synthesise_mel(m, "ab", nfe=0), "nfe must be >= 1"),
    (lambda m: M.synthesise_mel(m, "ab", head="x"), "flow or regression"),
    (lambda m: M.synthesise_mel(m, "ab", ("a", torch.zeros(3, 5))), "enrolment frames must be"),
    (lambda m: M.synthesise_mel(m, "ab", ("a", torch.full((3, 4), 5.0))), "normalised"),
    (lambda m: CoarseToFineFlow(5, 4), "even"),
    (lambda m: CoarseToFineFlow(4, 4, prior="x"), "dynamic, vanilla"),
    (lambda m: integrate(lambda x, t: x, torch.zeros(2), 0), "steps must be >= 1"),
    (lambda m: AdaLNMLP(2, 2)(torch.zeros(3, 2), torch.zeros(4), torch.zeros(3, 2)), "expand"),
])
def test_bad_input(call, says):
    with pytest.raises((ValueError, RuntimeError), match=says): call(felle("llama"))


def test_guidance_needs_a_model_that_knows_a_masked_prompt():
    with pytest.raises(ValueError, match="prompt masking"): M.synthesise_mel(felle("llama", prompt_masking=0.0), "ab")


def test_the_losses_are_those_of_the_paper():
    model, g = felle("llama"), torch.Generator().manual_seed(2)
    model.prompt_masking = model.dropout = 0.0
    batch = {"text": torch.randint(1, 50, (2, 3), generator=g), "text_len": torch.tensor([3, 2]), "frames": torch.randn(2, 6, 4, generator=g),
             "frame_len": torch.tensor([6, 4]), "prompt_len": torch.tensor([2, 1]), "pace": torch.ones(2)}
    found = M.felle_loss(model, batch, torch.Generator().manual_seed(5), alpha=0.5, weight=0.1)
    regression = M.regression_loss(model, batch, torch.Generator().manual_seed(5), alpha=0.5)
    z = model.hidden_states(batch).float().detach()
    rows = [(z[b, t], batch["frames"][b, t], float(t == n - 1)) for b, n in enumerate([6, 4]) for t in range(n)]
    with torch.no_grad(): gap, p = torch.stack([model.project(h) - y for h, y, _ in rows]), torch.stack([model.stop(h)[0] for h, _, _ in rows]).sigmoid()
    end = torch.tensor([e for _, _, e in rows])
    cond, stop = gap.abs().mean() + (gap * gap).mean(), 0.5 * -(10 * end * p.log() + (1 - end) * (1 - p).log()).mean()
    assert regression.parts == pytest.approx({"cond": float(cond), "stop": float(stop)}, rel=1e-3)
    assert float(regression.value.detach()) == pytest.approx(float(cond + stop), rel=1e-3)
    assert float(found.value.detach()) == pytest.approx(found.parts["coarse"] + found.parts["fine"] + 0.1 * found.parts["cond"] + found.parts["stop"], rel=1e-4)
