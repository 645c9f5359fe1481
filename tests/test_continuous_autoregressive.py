"Continuous autoregression as a whole: what ships, what it costs, and what the paper's module offers."
import pytest
import torch

from arlm_nb.architectures import continuous_autoregressive as C
from arlm_nb.architectures.calm_study import ARMS, autoencoder, build, contexts, flops, held_out, measure, runs_note, steps_of, text, tokenizer, train_arm, train_autoencoder, unigram_brier
from arlm_nb.core.checkpoints import checkpoint_names, load_lm


@pytest.fixture(scope="module")
def calm(): return load_lm("architectures/calm")


def test_what_ships_is_complete(calm):
    assert {f"architectures/calm{n}" for n in ("", "-transformer", "-autoencoder", "-autoencoder-deterministic")} <= set(checkpoint_names())
    assert isinstance(calm, C.CALM) and isinstance(autoencoder(), C.ChunkAutoencoder) and calm.tokenizer == tokenizer() == load_lm("architectures/calm-transformer").tokenizer
    ids = held_out(500)
    assert (autoencoder().decode(autoencoder().encode(ids)[0]).argmax(-1) == calm.autoencoder.decode(calm.autoencoder.encode(ids)[0]).argmax(-1)).float().mean() > 0.99
    assert set(runs_note()["runs"]) == set(ARMS)


def test_the_shipped_weights_reach_what_the_note_says(calm):
    noted = runs_note()["runs"]
    for name, model in (("calm", calm), ("transformer", load_lm("architectures/calm-transformer"))):
        found = measure(model, repeats=4)
        assert noted[name]["low"] < found.value < noted[name]["high"], name
    assert measure(calm, repeats=2).value > 2 * unigram_brier().value


def test_unigram_brier_is_what_draws_give():
    p = torch.bincount(text().long(), minlength=tokenizer().vocab_size).double()
    p, rng = p / p.sum(), torch.Generator().manual_seed(0)
    found = C.brier_lm(lambda c, n, r: torch.multinomial(p, len(c) * n, replacement=True, generator=r).view(-1, n), contexts(), repeats=200, seed=1)
    assert abs(found.parts[0] - unigram_brier().parts[0]) < 0.004


def test_equal_work():
    "Steps times FLOPs is one number for all, within half a step."
    base = flops(build("calm"), training=True) * steps_of("calm")
    for name in ("transformer", "latent-input", "alpha-2", "diffusion", "flow"):
        one = flops(build(name), training=True)
        assert abs(one * steps_of(name) - base) <= one / 2 + 1e-6, name
    assert flops(build("calm")) <= 0.6 * flops(build("transformer"))
    assert flops(build("diffusion")) > flops(build("calm"))  # 25 passes of the head


def test_longer_texts_cost_more_a_character(): assert flops(build("transformer"), 256) > flops(build("transformer"), 64)


def test_contexts_are_of_unseen_documents_and_of_one_length():
    rows, targets = contexts()
    assert len(rows) == len(targets) == 512 and {len(r) for r in rows} == {128} and targets.shape[1] == 4


def test_decoding_counts_its_steps(calm):
    out = C.decode_calm(calm, "returns the file", max_new_tokens=33, seed=1, stop=False)
    assert out.cost.forward_passes == 9 and len(out.ids) == 33 and len(out.text) >= 33 and out.cost.positions == 4 + 8


def test_a_lower_temperature_repeats_itself_more(calm):
    rows, _ = contexts()
    rng, drawn = torch.Generator().manual_seed(0), {}
    for T in (1.0, 0.5):
        sampler = C.calm_sampler(calm, T, "batch", 128)
        a, b = (sampler(rows[:60], 4, rng) for _ in range(2))
        drawn[T] = float((a == b).all(1).double().mean())
    assert drawn[0.5] > drawn[1.0]


def test_an_interrupted_run_goes_on(tmp_path):
    first = train_autoencoder(4, steps=3, folder=tmp_path / "a")
    assert first.steps_done == 3 and train_autoencoder(4, steps=3, folder=tmp_path / "a").steps_done == 3
    run = train_arm("calm", steps=2, evaluate=None, folder=tmp_path / "b")
    assert run.steps_done == 2 and (tmp_path / "b" / "state.safetensors").is_file()


def test_the_view(calm):
    player = C.chunk_player(calm, "returns true if the path is absolute")
    assert player.set(chunk=3, temperature=0.5) and player.error is None
    with pytest.raises(ValueError, match="at least 2 chunks of 4"): C.chunk_player(calm, "abcde")
    assert len(C.work_figure(runs_note()["runs"]).data) == 4


@pytest.mark.parametrize("wrong, says", [(lambda: build("calm-3"), "unknown model 'calm-3'"), (lambda: train_autoencoder(4, "sturdy"), "unknown autoencoder 'sturdy'")])
def test_bad_names(wrong, says):
    with pytest.raises(ValueError, match=says): wrong()
