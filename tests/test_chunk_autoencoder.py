"What the notebook of the chunk autoencoder does not show."
import pytest
import torch

from arlm_nb.architectures.chunk_autoencoder import ChunkAutoencoder, autoencoder_objective, character_tokenizer, chunk_accuracy, chunk_ids, kl_dims, posterior_sample, reconstruction
from arlm_nb.core.training import fit


def model(seed=0):
    torch.manual_seed(seed)
    return ChunkAutoencoder(9, k=2, latent=6, d=16)


def test_gradients_reach_every_parameter():
    m = model()
    autoencoder_objective(m, torch.randint(9, (32, 2)), torch.Generator().manual_seed(0), clip=0.0).value.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in m.parameters())


def test_randomness_is_the_generators_alone():
    m, ids = model(), torch.randint(9, (8, 2))
    values = []
    for state in (0, 1):
        torch.manual_seed(state)
        values.append(autoencoder_objective(m, ids, torch.Generator().manual_seed(5)).value.item())
    assert values[0] == values[1]


def test_clipped_divergence_is_never_below_the_clip():
    m, ids = model(), torch.randint(9, (8, 2))
    for clip in (0.0, 0.5, 2.0):
        assert autoencoder_objective(m, ids, torch.Generator().manual_seed(0), clip=clip).parts["kl"] >= clip * m.latent - 1e-5


def test_divergence_is_zero_only_at_the_prior():
    assert kl_dims(torch.zeros(3), torch.zeros(3)).abs().max() == 0
    assert (kl_dims(torch.randn(1000), torch.randn(1000)) > 0).all()


def test_posterior_sample_shapes():
    mu = torch.zeros(4, 5, 6)
    assert posterior_sample(mu, mu).shape == (4, 5, 6) and posterior_sample(mu, mu, n=3).shape == (4, 5, 3, 6)


def test_it_learns_and_an_interrupted_training_is_usable():
    data = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    m = model()
    fit(m, lambda step, rng: data, autoencoder_objective, steps=250, lr=5e-3, progress=False)
    assert reconstruction(m.eval(), data) > 0.97

    def stopped(step, rng):
        if step == 3: raise KeyboardInterrupt
        return data
    found = fit(model(), stopped, autoencoder_objective, steps=9, progress=False)
    assert found.interrupted and found.steps_done == 3


def test_saved_weights_read_back_alike(tmp_path):
    from arlm_nb.core.checkpoints import read_tensors, write_tensors
    a, b, ids = model(0), model(1), torch.randint(9, (8, 2))
    write_tensors(tmp_path / "a.safetensors", dict(a.state_dict()))
    got = read_tensors(tmp_path / "a.safetensors")
    b.load_state_dict(got[0] if isinstance(got, tuple) else got)
    assert torch.equal(a.encode(ids)[0], b.encode(ids)[0]) and torch.equal(a.decode(a.encode(ids)[0]), b.decode(a.encode(ids)[0]))


def test_characters_and_chunks(tmp_path):
    from arlm_nb.core.tokenizer import Tokenizer
    t = character_tokenizer(["aAab bz"], 4)
    a, b, unk = t.encode("a")[0], t.encode("B")[0], t.unk_id
    assert t.vocab_size == 4 and t.encode("AB!z") == [a, b, unk, unk] and t.eos_id not in (a, b, unk)
    assert chunk_ids(["abzba", "a"], t, 2).tolist() == [[a, b], [unk, b]] and chunk_ids(["a"], t, 2).shape == (0, 2)
    t.save(tmp_path / "t.json")
    assert Tokenizer.load(tmp_path / "t.json").encode("aB") == [a, b]  # lower-casing is saved
    with pytest.raises(ValueError, match="size must be >= 3"): character_tokenizer(["a"], 2)


def test_accuracy_of_each_chunk_and_their_mean():
    m, ids = model().eval(), torch.randint(9, (8, 2))
    each = chunk_accuracy(m, ids, 0.3, seed=1)
    assert each.shape == (8,) and set(each.tolist()) <= {0.0, 0.5, 1.0} and float(each.mean()) == reconstruction(m, ids, 0.3, seed=1)


def test_a_saved_one_loads_by_its_kind(tmp_path):
    from arlm_nb.core.checkpoints import load_lm, save_checkpoint
    m, ids = model().eval(), torch.randint(9, (8, 2))
    again = load_lm(str(save_checkpoint(m, tmp_path / "m", {"model": "ChunkAutoencoder"}, torch.float32)))
    assert isinstance(again, ChunkAutoencoder) and torch.equal(again.encode(ids)[0], m.encode(ids)[0])


@pytest.mark.parametrize("options", [{"dropout": 1.0}, {"masking": -0.1}])
def test_bad_input(options):
    with pytest.raises(ValueError, match="dropout and masking"): autoencoder_objective(model(), torch.zeros(2, 2, dtype=torch.long), **options)
    with pytest.raises(ValueError, match="a chunk has 2 tokens, got 3"): model().encode(torch.zeros(2, 3, dtype=torch.long))
