"""Multi-granularity diffusion: what its notebooks do not show."""
import math

import pytest
import torch

from arlm_nb.core.checkpoints import load_lm, read_note, checkpoint_path
from arlm_nb.core.generation import get_decoder
from arlm_nb.core.reasoning import countdown, path_star, sat, sudoku
from arlm_nb.core.statistics import influence
from arlm_nb.diffusion import subgoal_study
from arlm_nb.diffusion.denoiser import MaskedLM
from arlm_nb.diffusion.multi_granularity import easy_first, equal_budget_row, fork_rows, order_row, task_rows
from arlm_nb.diffusion.subgoal_study import RUNS, TASKS, Rate, few_batches, imbalance_study, make_run, measure_run, solve_rate, study_rows, subgoal_losses, views
from arlm_nb.diffusion.subgoal_view import decoding_steps, rate_figure, read_star, star_figure
from arlm_nb.diffusion.sampling import denoise
from arlm_nb.diffusion.subgoals import EasyFirst, arm_model, easy_first_rows, multi_granularity_loss, train_arm
from tests.models import hflm

STAR = path_star(3)
MASK = STAR.tokenizer.token_id("<mask>")


@pytest.fixture(scope="module")
def model(): return load_lm("diffusion/path3-mgdm")


@pytest.fixture(scope="module")
def prompts(): return [STAR.tokenizer.encode(p) for p, _ in STAR.problems(12, 7, test=True)]


# --- the decoder -------------------------------------------------------------------------------------------------------
def test_rows_of_a_batch_without_noise_are_what_they_are_alone(model, prompts):
    together = easy_first(model, prompts, max_new_tokens=3, noise=0.0)
    assert [g.ids for g in together] == [easy_first(model, p, max_new_tokens=3, noise=0.0).ids for p in prompts]


def test_prompts_of_several_lengths_keep_their_order(model, prompts):
    mixed = [prompts[0], prompts[1][4:], prompts[2], prompts[3][4:]]
    found = easy_first(model, mixed, max_new_tokens=3, noise=0.0)
    assert [g.prompt_ids for g in found] == mixed
    assert [g.ids for g in found] == [easy_first(model, p, max_new_tokens=3, noise=0.0).ids for p in mixed]


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("order", ["confidence", "random"])
def test_each_step_leaves_what_the_schedule_says(model, prompts, steps, order):
    left = []
    rows = torch.tensor(prompts)
    easy_first_rows(MaskedLM(model, mask_id=MASK), rows, 3, steps=steps, order=order, on_step=lambda look, new: left.append((new == MASK).sum(1).unique().tolist()))
    want = [round(3 * (1 - s / steps)) for s in range(1, steps + 1)]
    assert [n for [n] in left] == want[: len(left)] and left[-1] == [0]


def test_noise_fades_to_nothing(model, prompts):
    policy, seen = EasyFirst("confidence", start_noise=0.8), []
    x = torch.tensor([[*prompts[0], MASK, MASK, MASK]])
    denoise(MaskedLM(model, mask_id=MASK), x, policy=policy, steps=3, rng=torch.Generator().manual_seed(0), on_step=lambda look, new: seen.append(policy.noise))
    assert seen == pytest.approx([0.8 * 2 / 3, 0.8 / 3, 0.0])


def test_the_same_seed_gives_the_same_text_and_steps_can_be_replayed(model, prompts):
    a, b = (easy_first(model, prompts[0], max_new_tokens=3, noise=2.0, seed=4) for _ in range(2))
    assert a.ids == b.ids and a.steps == b.steps and a.decoder == "easy_first"
    text = {}
    for step in a.steps: text[step["position"]] = step["token"]
    assert [text[i] for i in range(3)] == a.ids


def test_a_text_prompt_and_the_registry(model):
    prompt, _ = STAR.problems(1, 9, test=True)[0]
    assert get_decoder("easy_first") is easy_first
    assert easy_first(model, prompt, max_new_tokens=3).text == easy_first(model, STAR.tokenizer.encode(prompt), max_new_tokens=3).text


@pytest.mark.parametrize("wrong, says", [
    (dict(steps=0), "steps must be >= 1, got 0"), (dict(noise=-0.5), "noise must be >= 0"), (dict(order="best"), "order must be confidence or random"),
    (dict(schedule="cubic"), "cubic"), (dict(max_new_tokens=0), "max_new_tokens must be >= 1, got 0"), (dict(max_new_tokens=90), "do not fit the context")])
def test_bad_decoder_options(model, prompts, wrong, says):
    with pytest.raises(ValueError, match=says): easy_first(model, prompts[0], **({"max_new_tokens": 3} | wrong))


def test_a_model_without_a_mask_token_says_so():
    with pytest.raises(ValueError, match="mask"): easy_first(hflm("gpt2"), [1, 2], max_new_tokens=2)


# --- no leak -----------------------------------------------------------------------------------------------------------
def test_a_masked_token_has_no_influence_on_any_prediction(model):
    "All positions of the answer perturbed where they are masked: the input is the same; the prompt is not without influence."
    ids = STAR.encode(STAR.problems(1, 3, test=True))
    denoiser = MaskedLM(model, mask_id=MASK)
    def predict(x): return denoiser.logits(x.index_fill(1, torch.arange(STAR.prompt_length, x.shape[1]), MASK))[..., :MASK]
    found = influence(predict, ids, STAR.tokenizer.vocab_size - 2, tolerance=0.0)
    assert not found[:, STAR.prompt_length :].any() and found[:, : STAR.prompt_length].any()  # [output, changed]


def test_autoregressive_arms_see_nothing_to_their_right():
    model = arm_model(STAR, "ar").eval()
    ids = STAR.encode(STAR.problems(1, 3))
    found = influence(lambda x: model(x).logits, ids, STAR.tokenizer.vocab_size)
    assert not found.triu(1).any() and found.diagonal().all()  # [output, changed]


# --- the loss ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("wrong, says", [(dict(beta=-1), "beta must be >= 0"), (dict(alpha=0), "alpha must be > 0"), (dict(n_steps=0), "n_steps must be >= 1"), (dict(time_weight="late"), "late")])
def test_bad_losses(wrong, says):
    with pytest.raises(ValueError, match=says): multi_granularity_loss(**wrong)


def test_the_expected_loss_is_the_sum_over_all_masks():
    "20,000 draws of levels and masks against the enumeration of every one."
    two = path_star(2, 6)
    model, ids = arm_model(two, "mgdm").eval(), two.encode(two.problems(1, 0))
    mask, P, L, T, alpha, beta = two.tokenizer.token_id("<mask>"), two.prompt_length, 2, 4, 0.25, 1.0
    objective = multi_granularity_loss(n_steps=T, time_weight="none", alpha=alpha, beta=beta)
    batch = {"ids": ids.expand(2000, -1), "prompt": torch.full((2000,), P), "weights": torch.cat([torch.zeros(P), torch.ones(L)]).expand(2000, -1)}
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        drawn = torch.stack([objective(model, batch, rng).value.double() for _ in range(10)])
        exact = 0.0
        for t in range(1, T + 1):
            for hide in [(1, 0), (0, 1), (1, 1)]:
                p = math.prod(t / T if h else 1 - t / T for h in hide) / T
                x = ids.clone()
                x[0, P:][torch.tensor(hide, dtype=torch.bool)] = mask
                logp = MaskedLM(model, mask_id=mask).logits(x).log_softmax(-1)[0, P:].gather(1, ids[0, P:, None])[:, 0]
                u = -logp.double()
                exact += p * float(sum(alpha * (1 - torch.exp(-u[i])) ** beta * u[i] for i in range(2) if hide[i]))
    error = float(drawn.std() / len(drawn) ** 0.5)
    assert abs(float(drawn.mean()) - exact / L) < 4 * error  # the loss is per answer token


# --- studies -----------------------------------------------------------------------------------------------------------
def test_losses_by_view_and_decoding_of_a_hugging_face_model(prompts):
    denoiser = MaskedLM(hflm("gpt2"), mask_id=60)
    frame = subgoal_losses(denoiser, STAR, 20)
    assert len(frame) == 12 and (frame.loss > 0).all()
    assert all(len(g.ids) == 3 and 60 not in g.ids for g in easy_first(denoiser, prompts, max_new_tokens=3, steps=2))


def test_views_list_every_subset_once():
    for at in range(4): assert len(set(views(4, at).values())) == 8 and not any(v[at] for v in views(4, at).values())
    assert views(9, 3) == {"nothing": (False,) * 9, "left": (True,) * 3 + (False,) * 6, "all others": (True,) * 3 + (False,) + (True,) * 5}


def test_solve_rate_of_a_list_of_problems(model):
    problems = STAR.problems(30, 2, test=True)
    ours = solve_rate("easy_first", model, problems, verify=STAR.verify)
    assert ours.right == solve_rate("easy_first", model, STAR, 30, 2).right and ours.low <= ours.value <= ours.high
    with pytest.raises(ValueError, match="need verify="): solve_rate("easy_first", model, problems)


def test_an_interrupted_study_keeps_its_rows(monkeypatch):
    from arlm_nb.core import training
    real, calls = training.fit, []
    def fit(*a, **k):
        out = real(*a, **k)
        calls.append(1)
        if len(calls) == 2: out.interrupted = True
        return out
    monkeypatch.setattr(training, "fit", fit)
    with pytest.raises(KeyboardInterrupt) as stopped: imbalance_study(("ar", "plain"), (0,), (20,), steps=3, n=5)
    assert stopped.value.rows.arm.tolist() == ["ar"] and "arm plain" in str(stopped.value)


def test_an_interrupted_run_is_resumed_and_never_saved_as_finished(tmp_path, monkeypatch):
    import arlm_nb.train_checkpoints as tc
    monkeypatch.setattr(tc, "run_folder", lambda name: tmp_path / name)
    run = RUNS["path2-ar"]
    calls = []
    def stop(*a, **k):
        calls.append(1)
        if len(calls) > 4: raise KeyboardInterrupt
        return real(*a, **k)
    from arlm_nb.diffusion import subgoals
    real = subgoals.next_token
    monkeypatch.setattr(subgoals, "next_token", stop)
    with pytest.raises(KeyboardInterrupt): make_run("path2-ar")
    assert (tmp_path / f"diffusion/reasoning/path2-ar-{run.steps}" / "state.safetensors").exists()


def test_few_problems_are_few():
    data = few_batches(STAR, 3, 32)
    seen = torch.cat([data(i, torch.Generator().manual_seed(i))["ids"] for i in range(5)]).unique(dim=0)
    assert len(seen) == 3
    with pytest.raises(ValueError, match="size must be >= 1"): few_batches(STAR, 0)


@pytest.mark.parametrize("make, says", [
    (lambda: path_star(5, 10), "n_labels must be in 11"), (lambda: path_star(0), "arm must be >= 1"), (lambda: countdown(9), "numbers must be in 2..5"),
    (lambda: imbalance_study(("ar",), (4,), (5,)), "planning distance must be in 0..3"), (lambda: subgoal_study.planning_distance(sat(5)), "not defined"),
    (lambda: read_star(sudoku(4), "x"), "drawn for path_star"), (lambda: train_arm(STAR, "diffusion", 5), "diffusion")])
def test_bad_tasks(make, says):
    with pytest.raises(ValueError, match=says): make()


# --- what is shipped ---------------------------------------------------------------------------------------------------
def test_shipped_models_give_the_numbers_that_lie_beside_them(model):
    rows = study_rows()
    for name, lm in (("path3-mgdm", model), ("path3-ar", load_lm("diffusion/path3-ar"))):
        for row in measure_run(lm, name): assert row["right"] in set(rows[(rows.run == name)].right)
    assert all(len(r) == 300 for r in rows.right) and set(rows.run) <= set(RUNS)


def test_the_notes_say_how_the_models_were_made():
    for name in ("path3-ar", "path3-mgdm"):
        note = read_note(checkpoint_path(f"diffusion/{name}"))
        assert note["steps"] == RUNS[name].steps and note["seed"] == 0 and "train_checkpoints" in note["command"]


def test_the_rows_of_the_claim_can_fail():
    "The same rows with MGDM's and plain diffusion's results exchanged, and with the orders exchanged."
    rows = study_rows()
    swapped = rows.assign(arm=rows.arm.replace({"mgdm": "plain", "plain": "mgdm"}))
    assert equal_budget_row(rows).ours == pytest.approx(equal_budget_row(swapped).baseline)
    other = rows.assign(order=rows.order.replace({"confidence": "random", "random": "confidence"}))
    assert order_row(other).ours <= order_row(rows).ours
    assert len(task_rows(rows)) == 3 and len(fork_rows(rows)) == 3


def test_figures_of_the_star(model):
    prompt, _ = STAR.problems(1, 3, test=True)[0]
    seen = decoding_steps(model, STAR, prompt)
    fig = star_figure(STAR, prompt, seen[-1])
    assert len(fig.data) == 3 and len(fig.data[-1].x) == 7 and rate_figure(study_rows()).data


def test_every_task_of_the_study_is_verified_by_its_own_answers():
    for name, make in TASKS.items():
        task = make()
        assert all(task.verify(p, a) and not task.verify(p, a[:-1]) for p, a in task.problems(20, 11)), name
    assert Rate.of([True, False]).value == 0.5
