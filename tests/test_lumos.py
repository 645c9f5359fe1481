"""Lumos on small random Hugging Face models, and what its functions refuse."""
import pytest
import torch

from arlm_nb.video.captions import video_offset, video_tokenizer
from arlm_nb.video.frame_masks import frame_causal, masking, tube_mask
from arlm_nb.video.lumos_model import Lumos, lumos_backbone
from arlm_nb.video.mm_rope import SCHEMES, mm_rope, naive_3d_rope, rope_spectrum, scheme_pairs
from arlm_nb.video.packing import text_video_ids


def tiny(family: str):
    import transformers as t
    torch.manual_seed(0)
    size = dict(vocab_size=400, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32)
    config = {"llama": t.LlamaConfig, "qwen2": t.Qwen2Config, "qwen3": t.Qwen3Config, "mistral": t.MistralConfig}[family](**size)
    return t.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("scheme", ["mm", "naive3d", "mrope"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_hugging_face_families(family, scheme):
    "Text is untouched to the last bit, no later frame leaks, the cache equals one pass."
    from arlm_nb.core.hflm import HFLM
    model, words = tiny(family), torch.tensor([video_tokenizer().encode("a red square moves right")])
    p = text_video_ids(words[0].tolist(), torch.randint(256, (3, 2, 2), generator=torch.Generator().manual_seed(1)), pictures=True)
    with torch.no_grad():
        before = HFLM(model)(words).logits
        lm = Lumos(HFLM(model), scheme=scheme, codes=256)
        assert torch.equal(lm(words).logits, before)
        h = lm.read(p)
        later = p.but(ids=torch.where((p.frame == 2) & p.code, video_offset + 5, p.ids))
        assert torch.equal(lm.read(later)[:, p.frame[0] < 2], h[:, p.frame[0] < 2]) and not torch.equal(lm.read(later), h)
        mask, at, cut = frame_causal(p.segment, p.frame).dense(p.ids.shape[1]), lm.place(p), int((p.frame[0] < 1).sum())
        cache = lm.new_cache()
        first = lm(p.ids[:, :cut], cache=cache, positions=at[:, :cut], mask=mask[:, :, :cut, :cut]).hidden
        rest = lm(p.ids[:, cut:], cache=cache, positions=at[:, cut:], mask=mask[:, :, cut:]).hidden
    torch.testing.assert_close(torch.cat([first, rest], 1), h, atol=1e-5, rtol=1e-4)


def test_no_rotary_module():
    from arlm_nb.core.hflm import HFLM
    from transformers import GPT2Config, GPT2LMHeadModel
    with pytest.raises(ValueError, match="no rotary module"):
        Lumos(HFLM(GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=32, n_layer=1, n_head=2))), codes=256)


@pytest.mark.parametrize("dim, layout", [(8, "interleaved"), (24, "interleaved"), (16, "half"), (48, "half"), (80, "half")])
def test_head_sizes(dim, layout):
    with pytest.raises(ValueError, match=f"multiple of {16 if layout == 'interleaved' else 32} in layout {layout}, got {dim}"):
        mm_rope(torch.zeros(1, 3), dim, layout=layout)


@pytest.mark.parametrize("dim", [32, 64, 96, 128])
def test_every_deal_is_two_three_three(dim):
    for scheme in SCHEMES[1:]:
        pairs = scheme_pairs(scheme, dim)
        assert [pairs.count(a) * 16 for a in range(3)] == [2 * dim, 3 * dim, 3 * dim] and rope_spectrum(scheme, dim).share(0) == 0.25
    assert [t.shape[-1] for t in naive_3d_rope(torch.zeros(2, 3), dim)] == [dim, dim]


@pytest.mark.parametrize("rho", [0.0, -0.1, 1.01, float("nan")])
def test_rates(rho):
    for call in (lambda: tube_mask(torch.Generator(), 5, 16, rho), lambda: masking("random", torch.Generator(), 2, 5, 16, rho=rho)):
        with pytest.raises(ValueError, match=r"rho must be in \(0, 1\]"): call()


def test_small_shares_hide_one_code():
    assert (~tube_mask(torch.Generator().manual_seed(0), 5, 16, 1e-6)).sum(1).tolist() == [1] * 5
    assert not tube_mask(torch.Generator().manual_seed(0), 5, 16, 1.0).any()


def test_scheme_one_d_is_no_wrapper_for_hugging_face():
    from arlm_nb.core.hflm import HFLM
    with pytest.raises(ValueError, match="1d needs nothing put"): Lumos(HFLM(tiny("llama")), scheme="1d", codes=256)
    assert Lumos(lumos_backbone("1d"), scheme="1d").place(text_video_ids([1, 2], torch.zeros(1, 2, 2).long())).shape == (1, 9)


def test_the_hidden_share_grows_evenly_to_the_last_frame():
    from arlm_nb.video.frame_masks import masking
    kept = masking("tube_growing", torch.Generator().manual_seed(0), 5, 5, 16, rho=0.25)
    assert ((~kept).sum(-1) == torch.tensor([4, 7, 10, 13, 16])).all()
    assert (kept[:, :-1] | ~kept[:, 1:]).all()  # what one frame hides, the next ones hide
