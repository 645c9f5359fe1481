"What the notebooks of the chunk language model do not show."
import pytest
import torch

from arlm_nb.architectures.calm_decode import calm_sampler, decode_calm
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


@pytest.mark.parametrize("head", ["energy", "diffusion", "flow"])
@pytest.mark.parametrize("latent_input", [False, True])
def test_every_head_and_input_trains_draws_and_is_saved(head, latent_input, tmp_path):
    from arlm_nb.core.checkpoints import load_lm, save_checkpoint
    m, ids = model(head=head, steps=4, latent_input=latent_input), torch.randint(5, (8, 8))
    found = fit(m, lambda step, rng: ids, calm_objective, steps=3, progress=False)
    assert found.steps_done == 3 and all(p.grad is None for p in m.autoencoder.parameters())
    again = load_lm(str(save_checkpoint(m.eval(), tmp_path / "m", {"model": "CALM"}, torch.float32)))
    a, b = (x.sample_next(ids[0, :4], 20, torch.Generator().manual_seed(0)) for x in (m, again))
    assert torch.equal(a, b) and a.shape == (20, 2) and again.config == m.config


def test_several_prompts_seeds_and_stops():
    m = model().eval()
    many = decode_calm(m, [[1, 2], [3, 4, 1, 2]], max_new_tokens=5, seed=7)
    assert [g.ids for g in many] == [decode_calm(m, [1, 2], max_new_tokens=5, seed=7).ids, decode_calm(m, [3, 4, 1, 2], max_new_tokens=5, seed=8).ids]
    seen = []
    one = decode_calm(m, [1, 2], max_new_tokens=6, seed=7, callback=seen.append)
    assert [s["token"] for s in seen] == [s["token"] for s in one.steps] and seen[0]["row"] == 0 and one.logprobs == []
    first = one.ids[1]
    assert decode_calm(m, [1, 2], max_new_tokens=6, seed=7, stop=first).ids == one.ids[: one.ids.index(first) + 1]


def test_samplers_agree_with_decoding():
    "The same law: 20,000 continuations by the sampler against 20,000 draws of the next chunk."
    from arlm_nb.architectures.calm_decode import calm_sampler
    from arlm_nb.core.statistics import chi_square
    m, pair = model().eval(), torch.tensor([5, 1])
    p = torch.bincount((m.sample_next(torch.tensor([1, 2]), 400_000, torch.Generator().manual_seed(0)) * pair).sum(1), minlength=25).double()
    got = torch.bincount((calm_sampler(m)([[1, 2]] * 20_000, 2, torch.Generator().manual_seed(1)) * pair).sum(1), minlength=25)
    assert chi_square(got.numpy(), (p / p.sum()).numpy()).p_value > 1e-4


def test_bad_input():
    with pytest.raises(ValueError, match="unknown head 'energi'"): model(head="energi")
    with pytest.raises(ValueError, match="steps must be >= 1"): model(steps=0)
    with pytest.raises(TypeError, match="decodes a CALM, got a Linear"): decode_calm(torch.nn.Linear(1, 1), [1, 2], max_new_tokens=2)
    with pytest.raises(ValueError, match="do not fit the context of 16"): decode_calm(model(), [1, 2], max_new_tokens=15)
    with pytest.raises(ValueError, match="one vocabulary"):
        CALM(TransformerConfig(6, 16, 1, 2), ChunkAutoencoder(5, k=2, latent=4, d=8).requires_grad_(False))
    with pytest.raises(TypeError, match="sample_next"): model()(torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="multiple of 2"): decode_calm(model(), [1], max_new_tokens=2)


def test_a_frozen_autoencoder_stays_so():
    m = model()
    m.requires_grad_(True)
    with pytest.raises(ValueError, match="must be frozen"): calm_objective(m, torch.randint(5, (2, 8)))


@torch.no_grad()
def test_a_sampler_of_several_chunks_reads_what_it_wrote():
    "With a cache and copies, as chunk after chunk from the whole text."
    m, contexts = model(), [[1, 2, 3, 4], [4, 3, 2, 1], [1, 2, 3, 4]]
    for p in m.parameters(): p.mul_(4) if p.dim() > 1 else None
    got = calm_sampler(m)(contexts, 7, torch.Generator().manual_seed(3))
    rng = torch.Generator().manual_seed(3)
    order = [0, 2, 1]  # equal contexts stand together
    rows = torch.tensor([contexts[i] for i in order])
    for _ in range(4): rows = torch.cat([rows, m.read(m.states(rows)[:, -1], 1, rng)[:, 0]], 1)
    assert torch.equal(got[order], rows[:, 4:11]) and len({tuple(r) for r in got.tolist()}) == 3
