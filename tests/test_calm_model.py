"What the notebooks of the chunk language model do not show."
import pytest
import torch

from arlm_nb.architectures.calm_decode import decode_calm
from arlm_nb.architectures.calm_model import CALM, calm_objective
from arlm_nb.architectures.chunk_autoencoder import ChunkAutoencoder
from arlm_nb.core.training import fit
from arlm_nb.core.transformer import TransformerConfig


def model(**options):
    torch.manual_seed(0)
    auto = ChunkAutoencoder(5, k=2, latent=4, d=8).requires_grad_(False)
    return CALM(TransformerConfig(5, 16, 1, 2, context_length=8), auto, **options)


def test_training_leaves_the_autoencoder_alone():
    m, ids = model(), torch.randint(5, (8, 8))
    before = {k: v.clone() for k, v in m.autoencoder.state_dict().items()}
    found = fit(m, lambda step, rng: ids, calm_objective, steps=20, lr=3e-3, progress=False)
    assert found.steps_done == 20 and not m.autoencoder.training
    assert all(torch.equal(before[k], v) for k, v in m.autoencoder.state_dict().items())


def test_the_energy_falls():
    m, ids = model(), torch.tensor([[1, 2, 3, 4, 1, 2, 3, 4]] * 16)
    first = calm_objective(m, ids, torch.Generator().manual_seed(0)).value.item()
    fit(m, lambda step, rng: ids, calm_objective, steps=100, lr=3e-3, progress=False)
    assert calm_objective(m, ids, torch.Generator().manual_seed(0)).value.item() < first


def test_seeds_decide():
    m = model().eval()
    a, b = (decode_calm(m, [1, 2], max_new_tokens=8, seed=4).ids for _ in range(2))
    assert a == b


def test_bad_input():
    with pytest.raises(ValueError, match="one vocabulary"):
        CALM(TransformerConfig(6, 16, 1, 2), ChunkAutoencoder(5, k=2, latent=4, d=8).requires_grad_(False))
    with pytest.raises(TypeError, match="sample_next"): model()(torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="multiple of 2"): decode_calm(model(), [1], max_new_tokens=2)
