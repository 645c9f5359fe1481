"Echo embeddings on Hugging Face models, and identities for random templates."
import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from arlm_nb.core.hflm import HFLM
from arlm_nb.core.tokenizer import Tokenizer
from arlm_nb.core.lora import merge_lora
from arlm_nb.interp.echo_adapters import MTEBEncoder, mteb_encoder
from arlm_nb.interp.echo_compute import affordable, bench_echo, multiply_adds, speed_table
from arlm_nb.interp.echo_embed import CLASSICAL, DOCUMENT, ECHO, QUERY, EchoTemplate, embed, pool, run_template, token_states
from arlm_nb.interp.echo_tuning import EmbeddingTask, contrastive_objective, echo_tasks, fine_tuned, task_batches, tune

TOK = Tokenizer.train(kind="byte")


def _gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel
    return GPT2LMHeadModel(GPT2Config(vocab_size=TOK.vocab_size, n_positions=128, n_embd=32, n_layer=2, n_head=4))


def _llama():
    from transformers import LlamaConfig, LlamaForCausalLM
    return LlamaForCausalLM(LlamaConfig(vocab_size=TOK.vocab_size, max_position_embeddings=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2))


@pytest.fixture(scope="module", params=[_gpt2, _llama], ids=["gpt2", "llama"])
def lm(request):
    torch.manual_seed(0)
    return HFLM(request.param().eval(), TOK)


TEXTS = ["a red fox", "no", "the end of it"]


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("layer", [-1, 0])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_batch_is_one_at_a_time(lm, pooling, layer, bidirectional):
    how = dict(template=ECHO, pooling=pooling, layer=layer, bidirectional=bidirectional)
    together = embed(lm, TEXTS, **how)
    np.testing.assert_allclose(together, np.concatenate([embed(lm, [t], **how) for t in TEXTS]), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_the_end_reaches_the_second_copy_only(lm):
    _, first, second = token_states(lm, "a red fox", EchoTemplate("{!text} again: {text}"))
    _, first_b, second_b = token_states(lm, "a red fog", EchoTemplate("{!text} again: {text}"))
    torch.testing.assert_close(first[:-1], first_b[:-1], atol=1e-6, rtol=0)
    assert (second - second_b).abs().amax(-1).min() > 1e-6
    _, once, _ = token_states(lm, "a red fox", CLASSICAL)
    torch.testing.assert_close(first, once, atol=1e-5, rtol=0)


def test_it_trains(lm):
    objective = contrastive_objective(EchoTemplate("{!text} : {text}"), CLASSICAL)
    loss = objective(lm, {"query": TEXTS, "positive": [t + "!" for t in TEXTS]})
    loss.value.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in lm.parameters())


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["{text}", "{!text}", "{=.}", "{!other}", " words ", "\n"]), min_size=1, max_size=7), st.text("abc ", min_size=1, max_size=9).filter(str.strip), st.integers(1, 4))
def test_what_is_pooled_is_what_the_braces_say(parts, text, limit):
    template = "".join(parts)
    if not {"{text}", "{=.}"} & set(parts):
        with pytest.raises(ValueError, match="pools nothing"): EchoTemplate(template)
        return
    ids, pooled = EchoTemplate(template).build(TOK, text=text, other="zz", max_tokens=limit)
    own, dot = TOK.encode(text)[:limit], TOK.encode(".")
    assert [i for i, p in zip(ids, pooled) if p] == sum((own if p == "{text}" else dot for p in parts if p in ("{text}", "{=.}")), [])


@pytest.mark.parametrize("template, told", [("{text", "unbalanced"), ("text}", "unbalanced"), ("{} {text}", "empty braces"), ("plain", "pools nothing"), ("{!text}", "pools nothing")])
def test_templates_are_checked(template, told):
    with pytest.raises(ValueError, match=told): EchoTemplate(template)


@pytest.mark.parametrize("how, told", [
    (dict(pooling="max"), "mean or last, got 'max'"), (dict(layer=2), "0..1, got 2"),
    (dict(texts=["x" * 200]), "context is 128: a text may have 42 in this template"), (dict(share_prefix=True, bidirectional=True), "needs the causal mask"),
    (dict(texts=[""]), "is empty"), (dict(texts="one"), "a list of texts"),
])
def test_bad_input_is_named(lm, how, told):
    with pytest.raises(ValueError, match=told): embed(lm, **({"texts": TEXTS} | how))


def test_the_last_marked_token_is_taken():
    states = torch.arange(12.0).view(1, 4, 3)
    assert torch.equal(pool(states, [[False, True, True, False]], "last"), states[:, 2])
    assert torch.equal(pool(states, [[False, True, True, False]]), states[:, 1:3].mean(1))


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("layer", [-1, 0])
def test_a_prefix_read_once_changes_nothing(lm, pooling, layer):
    how = dict(template=QUERY, prompt="find the passage", pooling=pooling, layer=layer, batch_size=2)
    np.testing.assert_allclose(embed(lm, TEXTS, share_prefix=True, **how), embed(lm, TEXTS, **how), atol=1e-5)
    np.testing.assert_allclose(embed(lm, TEXTS, share_prefix=True, layer=layer, template=CLASSICAL), embed(lm, TEXTS, layer=layer, template=CLASSICAL), atol=1e-5)


def test_states_are_the_models_hidden_ones(lm):
    ids = TOK.encode("a red fox")
    torch.testing.assert_close(run_template(lm, [ids]), lm(torch.tensor([ids])).hidden, atol=1e-6, rtol=0)


def test_the_closing_token_is_the_last_one_pooled(lm):
    for template in (QUERY, DOCUMENT):
        ids, pooled = template.build(TOK, text="a red fox", prompt="find it", max_tokens=3)
        assert ids[-1] == TOK.eos_id and pooled[-1] and sum(pooled) == 4
    states = torch.randn(1, len(ids), 5)
    assert torch.equal(pool(states, [pooled], "last")[0], states[0, -1])


def test_the_room_is_the_longest_text_that_fits():
    for template, fields in ((CLASSICAL, {}), (ECHO, {}), (QUERY, {"prompt": "find it"})):
        room = template.room(TOK, 100, **fields)
        long = [len(template.build(TOK, text="x" * n, **fields)[0]) for n in (room, room + 1)]
        assert long[0] <= 100 < long[1]
    assert QUERY.room(TOK, 20, prompt="a prompt that is longer than that") == 0


@settings(max_examples=30)
@given(st.lists(st.integers(4, 20), min_size=1, max_size=4), st.integers(2, 4), st.integers(0, 10**6))
def test_no_batch_mixes_tasks(sizes, batch, step):
    tasks = [EmbeddingTask(str(t), [(f"q{t}.{i}", f"d{t}.{i}", f"n{t}.{i}")[: 2 + t % 2] for i in range(n)], symmetric=t % 2 == 0) for t, n in enumerate(sizes)]
    drawn = task_batches(tasks, batch)(step, torch.Generator().manual_seed(step))
    assert len(set(drawn["query"])) == batch and drawn["symmetric"] == (int(drawn["task"]) % 2 == 0)
    for side in {"query", "positive", "negative"} & drawn.keys():
        assert all(text[1:].split(".")[0] == drawn["task"] for text in drawn[side])
    assert [q[1:] for q in drawn["query"]] == [d[1:] for d in drawn["positive"]]


@pytest.mark.parametrize("rank", [None, 2])
def test_tuning_a_model_of_hugging_face(lm, rank):
    model = HFLM(copy.deepcopy(lm.model), TOK)
    own = {k: v.clone() for k, v in lm.state_dict().items()}
    tasks = [EmbeddingTask("same", [(f"text {i}", f"text {i}!") for i in range(6)], "find it", symmetric=True), EmbeddingTask("asked", [(f"{i}?", f"it is {i}", "no") for i in range(6)], "answer")]
    tune(model, tasks, QUERY, DOCUMENT, steps=3, rank=rank, batch=4)
    how = dict(template=QUERY, prompt="answer")
    apart = embed(model, TEXTS, **how)
    assert np.abs(apart - embed(lm, TEXTS, **how)).max() > 1e-4
    if rank is None: return
    held = {k.replace(".base.", "."): v for k, v in model.state_dict().items() if not k.endswith((".A", ".B"))}
    assert held.keys() == own.keys() and all(torch.equal(held[k], own[k]) for k in own)
    np.testing.assert_allclose(embed(merge_lora(model), TEXTS, **how), apart, atol=1e-5)


@pytest.mark.parametrize("rank", [None, 2])
def test_a_tuned_copy_leaves_the_model_alone(lm, rank):
    before = embed(lm, TEXTS, template=CLASSICAL)
    model = fine_tuned(lm, CLASSICAL, 2, rank=rank, tasks=echo_tasks(20))
    assert np.abs(embed(model, TEXTS, template=CLASSICAL) - before).max() > 1e-4
    np.testing.assert_array_equal(embed(lm, TEXTS, template=CLASSICAL), before)


def test_what_a_budget_pays_for(lm):
    for template in (CLASSICAL, ECHO):
        cost = lambda n: multiply_adds(lm, len(template.build(TOK, text="x" * n)[0]))
        room = template.room(TOK, lm.context_length)
        for budget in (cost(1), cost(7) + 5, cost(room) * 2):
            assert affordable(lm, template, budget) == max(n for n in range(1, room + 1) if cost(n) <= budget)
        with pytest.raises(ValueError, match="leaves no room for a text"): affordable(lm, template, cost(1) - 1)


def test_the_benchmark_counts_what_is_computed(monkeypatch):
    import arlm_nb.interp.echo_compute as module
    small = module.speed_model(1, 16)
    table = speed_table(small, words=5, n=3, repeat=1).set_index("way")
    assert table.tokens["echo"] == 2 * 5 + 2 and table["multiply-adds"]["bidirectional"] == 1 < table["multiply-adds"]["echo"]
    assert table["multiply-adds"]["echo, instruction shared"] < table["multiply-adds"]["echo, instructed"]
    monkeypatch.setattr(module, "speed_model", lambda device: small)
    assert all(line.seconds > 0 and line.speedup for line in bench_echo())


def test_what_mteb_calls(lm):
    encoder, task = MTEBEncoder(lm, pooling="last"), SimpleNamespace(name="T", prompt={"query": "find it", "document": "?"})
    loader = [{"text": TEXTS[:2], "title": ["", ""]}, {"text": [TEXTS[2], ""]}]
    texts = [*TEXTS, "nothing"]
    np.testing.assert_allclose(encoder.encode(loader, task_metadata=task, hf_split="test", hf_subset="default", batch_size=3), embed(lm, texts, template=QUERY, prompt="find it", pooling="last"), atol=1e-5)
    np.testing.assert_allclose(encoder.encode(loader, task_metadata=task, prompt_type="document"), embed(lm, texts, template=DOCUMENT, pooling="last"), atol=1e-5)
    assert encoder.encode([{"text": ["x" * 500]}], task_metadata=task).shape == (1, lm.d_model)


def test_mteb_missing_is_said(lm, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mteb.models", None)
    with pytest.raises(ValueError, match="needs the `mteb` package"): mteb_encoder(lm)


def test_mteb_evaluates_a_task_in_memory(lm):
    "Where the package is installed: one of its own evaluations, on data that are not downloaded."
    mteb = pytest.importorskip("mteb")
    from datasets import Dataset, DatasetDict
    from mteb.abstasks.sts import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata
    class Toy(AbsTaskSTS):
        metadata = TaskMetadata(
            name="EchoToySTS", dataset={"path": "local/none", "revision": "1"}, description="toy", type="STS", category="t2t", modalities=["text"], eval_splits=["test"],
            eval_langs=["eng-Latn"], main_score="cosine_spearman", reference=None, date=None, domains=None, task_subtypes=None, license=None, annotations_creators=None,
            dialect=None, sample_creation=None, bibtex_citation="")
        def load_data(self, **_):
            pairs = {"sentence1": TEXTS * 2, "sentence2": TEXTS + TEXTS[::-1], "score": [5, 5, 5, 0, 5, 0]}
            self.dataset, self.data_loaded = DatasetDict({"test": Dataset.from_dict(pairs)}), True
    result = mteb.evaluate(mteb_encoder(lm, name="arlm/echo"), Toy(), cache=None, show_progress_bar=False, co2_tracker=False)
    assert result.task_results[0].get_score() > 0.5
