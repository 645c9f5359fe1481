"""What continuous autoregression is scored, trained and sampled with: beyond the notebooks' own checks."""
import pytest
import torch

from arlm_nb.architectures.brier import brier, brier_lm, brier_n, lm_sampler
from arlm_nb.architectures.energy_score import EnergyHead, energy_score
from arlm_nb.architectures.temperature_factory import Stream, attempts_figure, temperature_sample
from arlm_nb.core.statistics import chi_square
from tests.models import hflm

LAW = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def sampler(count, rng): return torch.multinomial(LAW, count, replacement=True, generator=rng)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.9])
def test_the_energy_score_does_not_depend_on_order_place_or_rotation(alpha):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 5, generator=g, dtype=torch.float64), torch.randn(20, 5, generator=g, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(5, 5, generator=g, dtype=torch.float64))[0]
    want = energy_score(x, y, alpha)
    for a, b in [(x.flip(0), y.flip(0)), (x + 3, y + 3), (x @ q, y @ q)]: torch.testing.assert_close(energy_score(a, b, alpha), want)
    torch.testing.assert_close(energy_score(2 * x, 2 * y, alpha), 2**alpha * want)


def test_the_energy_score_needs_no_differences_in_memory():
    "100 x 2,000 pairs of width 4,096 would be 3 GB."
    x, y = torch.randn(100, 4096, requires_grad=True), torch.randn(2000, 4096)
    energy_score(x, y).backward()
    assert torch.isfinite(x.grad).all()


def test_a_head_has_no_memory_between_positions():
    head, h = EnergyHead(4, 2, d=8), torch.randn(1, 6, 4)
    other = h.clone()
    other[:, 3] += 1
    a, b = (head(x, 3, torch.Generator().manual_seed(0)) for x in (h, other))
    assert ((a - b).abs().amax((0, 2, 3)) > 0).tolist() == [False] * 3 + [True] + [False] * 2
    with pytest.raises(ValueError, match="must be >= 1"): EnergyHead(4, 0)


def test_outcomes_of_several_tokens_are_drawn_whole():
    "20,000 draws of pairs at T = 1/2 against the square of the joint law, not of its parts."
    joint = torch.tensor([[0.4, 0.1], [0.1, 0.4]], dtype=torch.float64)
    def pairs(count, rng):
        flat = torch.multinomial(joint.flatten(), count, replacement=True, generator=rng)
        return torch.stack([flat // 2, flat % 2], 1)
    rng, counts = torch.Generator().manual_seed(1), torch.zeros(4)
    for _ in range(20_000):
        value = temperature_sample(pairs, 0.5, rng, n=8).value
        counts[int(2 * value[0] + value[1])] += 1
    want = (joint**2 / (joint**2).sum()).flatten()
    assert chi_square(counts.numpy(), want.numpy()).p_value > 1e-4
    parts = torch.full((4,), 0.25)
    assert chi_square(counts.numpy(), parts.numpy()).p_value < 1e-20


def test_the_batch_of_one_and_temperature_one_are_plain_draws():
    for how in (dict(method="batch", n=1), dict(method="exact")):
        rng, counts = torch.Generator().manual_seed(2), torch.zeros(3)
        for _ in range(20_000): counts[int(temperature_sample(sampler, 1.0, rng, **how).value)] += 1
        assert chi_square(counts.numpy(), LAW.numpy()).p_value > 1e-4, how


def test_a_flat_law_gives_up_and_says_what_it_did():
    with pytest.raises(RuntimeError, match="attempts.*method='batch'"): temperature_sample(lambda n, rng: torch.randint(10**6, (n,), generator=rng), 0.25, torch.Generator(), limit=500)


@pytest.mark.parametrize("wrong, says", [(dict(T=0), "in .0, 1., got 0"), (dict(T=2.0), "sharper, not flatter"), (dict(T=0.5, n=0), "n must be >= 1"), (dict(T=0.5, method="x"), "exact or batch")])
def test_bad_temperatures(wrong, says):
    with pytest.raises(ValueError, match=says): temperature_sample(sampler, wrong.pop("T"), torch.Generator(), **wrong)


def test_draws_are_used_once_and_in_order():
    stream = Stream(lambda n, rng: torch.arange(n), torch.Generator(), 3)
    assert [stream.next()[0] for _ in range(5)] == [0, 1, 2, 0, 1] and stream.used == 5
    assert attempts_figure(sampler, 0.4).data


def test_brier_scores_of_a_hugging_face_model():
    lm = hflm("gpt2")
    contexts, targets = [[1, 2, 3], [4, 5], [6, 7, 8]], torch.randint(1, 60, (3, 4))
    draw = lm_sampler(lm)
    a, b = (draw(contexts, 4, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b) and a.shape == (3, 4)
    found = brier_lm(draw, (contexts, targets))
    assert found.n == 3 and len(found.parts) == 4 and found.low <= found.value <= found.high
    assert brier_n(draw, contexts, targets, 2).shape == (3,)


@pytest.mark.parametrize("make, says", [
    (lambda: brier(torch.zeros(2, 1), torch.zeros(2, 2), torch.zeros(2, 1)), "one shape"), (lambda: brier_lm(lambda c, n, r: torch.zeros(1, n), ([[1]], torch.zeros(1, 3))), "needs 4 true tokens"),
    (lambda: brier_n(lambda c, n, r: torch.zeros(1, n), [[1]], torch.zeros(1, 3), 0), "n must be >= 1"), (lambda: lm_sampler(None, 0.0), "temperature must be > 0")])
def test_bad_brier(make, says):
    with pytest.raises(ValueError, match=says): make()


def test_noise_is_counted_in_standard_deviations():
    "Read by a decoder that says on which side of one deviation a latent fell."
    from types import SimpleNamespace
    from arlm_nb.architectures.chunk_autoencoder import chunk_accuracy
    mu = torch.tensor([[0.0], [6.0]]).repeat(20_000, 1)  # deviation 3
    seen = []
    stub = SimpleNamespace(encode=lambda chunks: (mu, mu), decode=lambda z: (seen.append(z), torch.zeros(len(z), 1, 2))[1])
    chunk_accuracy(stub, torch.zeros(len(mu), 1, dtype=torch.long), noise=0.5)
    assert float((seen[0] - mu).std()) == pytest.approx(1.5, rel=0.02)
