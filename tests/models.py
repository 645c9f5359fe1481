"""Small randomly initialised Hugging Face models of ten families, and our own, for parity tests."""
import torch

from arlm_nb.core.transformer import Transformer, TransformerConfig

VOCAB, CONTEXT = 61, 48
COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=CONTEXT,
    bos_token_id=0,
    eos_token_id=0,
    pad_token_id=0,
)


def _build(config_name: str, **sizes):
    import transformers
    config = getattr(transformers, config_name + "Config")(**sizes)
    model = {"GPT2": "GPT2LMHeadModel"}.get(config_name, config_name + "ForCausalLM")
    return getattr(transformers, model)(config).eval()


FAMILIES = {
    "gpt2": lambda: _build("GPT2", vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=CONTEXT, bos_token_id=0, eos_token_id=0),
    "gpt_neox": lambda: _build("GPTNeoX", **COMMON, intermediate_size=64, rotary_pct=0.5),
    "llama": lambda: _build("Llama", **COMMON, intermediate_size=64, num_key_value_heads=2),
    "opt": lambda: _build("OPT", **COMMON, ffn_dim=64, word_embed_proj_dim=32),
    "qwen2": lambda: _build("Qwen2", **COMMON, intermediate_size=64, num_key_value_heads=2),
    "qwen3": lambda: _build("Qwen3", **COMMON, intermediate_size=64, num_key_value_heads=2, head_dim=16),
    "mistral": lambda: _build("Mistral", **COMMON, intermediate_size=64, num_key_value_heads=2, sliding_window=8),
    "gemma2": lambda: _build(
        "Gemma2", **COMMON, intermediate_size=64, num_key_value_heads=2, head_dim=16, sliding_window=8, query_pre_attn_scalar=16
    ),
    "phi": lambda: _build("Phi", **COMMON, intermediate_size=64),
    "bloom": lambda: _build("Bloom", vocab_size=VOCAB, hidden_size=32, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0),
}
FLAGSHIP = ("gpt2", "gpt_neox", "llama", "qwen3", "gemma2")  # the shapes that every flagship's main calls are tested on


def hf_model(family: str, seed: int = 0, scale: float = 4.0):
    """A model of a family whose weights are large enough that a wrong mask or position shows."""
    torch.manual_seed(seed)
    model = FAMILIES[family]()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() >= 2:
                p.mul_(scale)
            elif p.std() == 0:  # norms and biases start constant: make them count
                p.add_(0.1 * torch.randn_like(p))
    return model


def hflm(family: str, seed: int = 0, **kwargs):
    from arlm_nb.core.hflm import HFLM
    return HFLM(hf_model(family, seed), **kwargs)


def transformer(seed: int = 0, tokenizer=None, **changes) -> Transformer:
    torch.manual_seed(seed)
    config = dict(vocab_size=VOCAB, d_model=32, n_layers=3, n_heads=4, context_length=CONTEXT) | changes
    return Transformer(TransformerConfig(**config), tokenizer).eval()


def any_lm(name: str, seed: int = 0):
    """`transformer` or a family's name."""
    return transformer(seed) if name == "transformer" else hflm(name, seed)
