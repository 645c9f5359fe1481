"""Few-shot evaluation on Hugging Face models: the same prompts, scores as one token at a time gives them."""
import pytest
import torch
from tests.models import VOCAB, any_lm

from arlm_nb.prompting import few_shot as F
from arlm_nb.prompting.shot_prompts import part_of


class Letters:
    eos_id = None
    vocab_size = VOCAB
    def encode(self, text): return [ord(c) % (VOCAB - 1) + 1 for c in text]
    def decode(self, ids): return "".join(chr(96 + i) for i in ids)
    def token(self, i): return chr(96 + i)


def test_names_of_the_card():
    names = ("Task TASKS task_suite build_prompt fit_k score_options evaluate_task EvalResult evaluate_suite in_context_curve scaling_gap contamination quality_filter "
             "minhash_deduplicate gpt3_config banded_mask human_or_machine tune_k tuned_suite draw_mixture").split()
    assert [n for n in names if not hasattr(F, n)] == []


@pytest.mark.parametrize("name", ["transformer", "gpt2", "llama", "gemma2", "bloom"])
@pytest.mark.parametrize("normalize", ["tokens", "none"])
def test_scores(name, normalize):
    lm = any_lm(name)
    lm.tokenizer = Letters()
    task = F.Task("letters", "", lambda rng: F.Example(rng.choice("abcdefgh"), "yz", ("x", "yz", "z")), "choice", form="{x}:{y}", delimiter=" ")
    shots = F.shots_of(task, 2, 5)
    for s, got in zip(shots, F.score_shots(lm, shots, before="", normalize=normalize)):
        for o, g in zip(s.options, got):
            ids, total = Letters().encode(s.prompt), 0.0
            for t in Letters().encode(o):
                with torch.no_grad(): total += float(lm(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[t])
                ids.append(t)
            assert abs(total / (len(o) if normalize == "tokens" else 1) - float(g)) < 2e-3
    assert 0 <= F.evaluate_task(lm, task, k=2, n=6).accuracy <= 1


def test_suite_and_curve():
    lm = any_lm("transformer")
    lm.tokenizer = Letters()
    task = F.Task("letters", "", lambda rng: F.Example(rng.choice("abcdefgh"), "x", ("x", "y", "z")), "choice", form="{x}:{y}", delimiter=" ")
    df = F.in_context_curve(lm, {"letters": task}, shots=(0, 2), n=5)
    assert df.k.tolist() == [0, 2] and (df.chance - 1 / 3).abs().max() < 1e-9 and F.scaling_gap(df) == 0.0
    assert F.fit_k(lm, task, 30) == 7  # eight different questions: the query and seven others


@pytest.mark.parametrize("name", ["transformer", "gpt2", "llama"])
def test_k_is_tuned_on_questions_that_are_not_tested(name):
    lm, asked = any_lm(name), []
    lm.tokenizer = Letters()
    def draw(rng):
        asked.append(x := "".join(rng.choices("abcdefgh", k=2)))
        return F.Example(x, "x", ("x", "y", "z"))
    task = F.Task("letters", "", draw, "choice", form="{x}:{y}", delimiter=" ")
    tuned = F.tune_k(lm, task, (0, 2, 4), n=10)
    seen = {s.query for r in tuned.found.values() for s in r.shots} | {d.query for r in tuned.found.values() for s in r.shots for d in s.demonstrations}
    assert all(part_of(q) == "dev" for q in seen) and any(part_of(q) == "test" for q in asked)  # such a question is drawn again
    test = F.evaluate_task(lm, task, k=tuned.k, n=10, part="test")
    assert not seen & {s.query for s in test.shots}
    row = F.tuned_suite(lm, {"letters": task}, (0, 2), dev=10, n=10, tried=(0, 2, 4)).iloc[0]
    assert row.k == tuned.k and row.tuned == test.accuracy and row.dev == max(tuned.accuracy.values())


@pytest.mark.parametrize("call, message", [
    (lambda: F.tune_k(None, F.TASKS["cloze"], ()), "shots must hold at least one number"),
    (lambda: F.shots_of(F.TASKS["cloze"], 1, 1, part="train"), "part must be None, 'dev' or 'test', got 'train'"),
    (lambda: F.draw_mixture({"a": []}, {"a": 1.0}, 1), "each source needs documents and a share"),
    (lambda: F.shots_of(F.TASKS["cloze"], -1, 1), "k must be >= 0"),
    (lambda: F.build_prompt(F.TASKS["cloze"], [], "x", k=1), "k = 1 demonstrations were asked for and 0 given"),
    (lambda: F.task_suite(["nothing"]), "unknown task"),
    (lambda: F.gpt3_config("1T"), "unknown size"),
    (lambda: F.fit_k(None, F.TASKS["cloze"], -1), "k_max must be >= 0"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message): call()


def test_the_shipped_sizes_have_read_tasks_and_text():
    from arlm_nb.prompting import shot_mix as M
    lms = F.load_sizes()
    assert [(lm.config.n_layers, lm.config.d_model) for lm in lms.values()] == [(1, 48), (2, 64), (4, 128)]
    for lm in lms.values():
        found = M.text_loss(lm, rows=16)
        assert found["text"] < found["text_unigram"] - 0.3
    ids = M.mix_batch(torch.Generator().manual_seed(3), 64, text=1.0)["ids"]
    tok = M.mix_tokenizer()
    assert (ids[:, 0] == tok.token_id("<doc>")).all() and not (ids == tok.token_id("Q")).any()
    weights = M.mix_batch(torch.Generator().manual_seed(3), 64, text=1.0)["weights"]
    assert weights.unique().tolist() == pytest.approx([0.1])
