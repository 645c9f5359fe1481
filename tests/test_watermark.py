"""Watermarks: literal reference of the paper's algorithms, exactness over many keys, every model family, bad input, files, the command line."""

import itertools
import json
from functools import lru_cache

import numpy as np
import pytest
import torch

from arlm_nb.core.lm import TableLM
from arlm_nb.core.statistics import chi_square, ks_uniform
from arlm_nb.core.tokenizer import Tokenizer
from arlm_nb.watermark.alignment import align, alignment_cost, check_gamma, phis, rank_p_value
from arlm_nb.watermark.bounds import log_p_bound
from arlm_nb.watermark.detection import Detection
from arlm_nb.watermark.distortion_free import (
    WatermarkKey,
    WatermarkProcessor,
    attack,
    combine,
    detect,
    detect_keys,
    draw_shifts,
    exp_choose,
    exp_decoder,
    gumbel_hash_decoder,
    gumbel_hash_score,
    its_choose,
    its_decoder,
    kgw_decoder,
    kgw_score,
    power_curve,
    predicted_length,
    reference_null,
    synthid_decoder,
    synthid_score,
    watermark_potential,
)
from arlm_nb.watermark.keys import null_seeds, permute, uniforms
from tests.models import FLAGSHIP, VOCAB, any_lm, hf_model

MODELS = ("transformer", *FLAGSHIP)


# ---------------------------------------------------------------- the paper's algorithms, word for word

def literal_cost(y, table, gamma):
    """d_gamma of one block by its recursion; plain when gamma is None. table[v][j]: cost of token v at entry j of the window."""
    if gamma is None: return sum(table[i][j] for i, j in zip(y, range(len(y))))

    @lru_cache(maxsize=None)
    def d(a, b):
        if a == len(y): return gamma * (len(y) - b)
        if b == len(y): return gamma * (len(y) - a)
        return min(table[y[a]][b] + d(a + 1, b + 1), gamma + d(a, b + 1), gamma + d(a + 1, b))

    return d(0, 0)


def literal_phi(text, key, k, gamma, cost):
    """Algorithm 4: every block, every offset, a table of the whole key."""
    V, m, n = key.vocab_size, len(text), key.n
    j, v = torch.arange(n)[None, :], torch.arange(V)[:, None]
    if cost == "exp": rows = torch.log1p(-key.entries(j, v, torch.float32))  # the 23 bits that the detector reads
    else:
        u, pi = key.entries(j, v, torch.float32)
        eta = pi.double() / (V - 1)
        rows = (u - eta).abs() if cost == "l1" else -(u - 0.5) * (eta - 0.5)
    best = np.inf
    for a in range(m - k + 1):
        for j in range(n):
            window = [[float(rows[v][(j + q) % n]) for q in range(k)] for v in range(V)]
            best = min(best, literal_cost(text[a : a + k], window, gamma))
    return best


@pytest.mark.parametrize("scheme,cost", [("exp", "exp"), ("its", "l1"), ("its", "cov")])
@pytest.mark.parametrize("m,n,k", [(1, 1, 1), (5, 7, 3), (6, 6, 6), (6, 4, 4)])
def test_statistic_equals_the_literal_algorithm(scheme, cost, m, n, k):
    key = WatermarkKey(3, n, scheme, 5)
    text = np.random.default_rng(m * n).integers(5, size=m).tolist()
    for gamma in (None, 0.0, 0.4, 2.0):
        expected = literal_phi(text, key, k, gamma, cost)
        assert abs(phis(text, key, [key.seed], k=k, gamma=gamma, cost=cost)[0] - expected) < 1e-5
        found = align(alignment_cost(text, key, cost=cost), k=k, gamma=gamma)
        assert abs(found.phi - expected) < 1e-5
        assert all(b[0] > a[0] for a, b in itertools.pairwise(found.path))


def test_p_value_equals_the_literal_algorithm():
    key, text = WatermarkKey(9, 6, "exp", 5), [1, 4, 0, 2, 2]
    observed = literal_phi(text, key, 4, 0.0, "exp")
    null = [literal_phi(text, WatermarkKey(s, 6, "exp", 5), 4, 0.0, "exp") for s in null_seeds(9, 5)]
    found = detect(text, key, k=4, edit=True, n_null=9, seed=5)
    assert found.p_value == (1 + sum(t <= observed for t in null)) / 10
    np.testing.assert_allclose(found.null, null, atol=1e-5)


def test_path_explains_the_statistic():
    text = np.random.default_rng(0).integers(50, size=12).tolist()
    C = alignment_cost(text, WatermarkKey(1, 20, "exp", 50))
    for gamma in (0.0, 0.3):
        found = align(C, k=8, gamma=gamma)
        skipped = 2 * (8 - len(found.path))
        assert abs(sum(float(C[i, j]) for i, j in found.path) + gamma * skipped - found.phi) < 1e-6


# ---------------------------------------------------------------- exactness

def test_sequences_of_fresh_keys_have_the_models_law():
    """V = 4, three tokens, 20,000 different keys and shifts, through the sampling functions with a key each."""
    lm, B = TableLM.random(4, order=1, seed=2), 20_000
    exact = (lm.table[0][:, None, None] * lm.table[:, :, None] * lm.table[None]).flatten().numpy()
    seeds, tau = torch.tensor(null_seeds(B, 1))[:, None], torch.tensor(draw_shifts(64, B, 2))[:, None]
    pi = permute(seeds, torch.arange(4), 4)
    for choose in (lambda mu, t: exp_choose(mu, uniforms(seeds, (tau + t) % 64, torch.arange(4))),
                   lambda mu, t: its_choose(mu, uniforms(seeds, (tau + t) % 64, 1 << 62)[:, 0], pi)):
        y = torch.zeros(B, 1, dtype=torch.int64)
        for t in range(3): y = torch.cat([y, choose(lm.table[y[:, -1]], t)[:, None]], 1)
        counts = torch.bincount(y[:, 1] * 16 + y[:, 2] * 4 + y[:, 3], minlength=64).numpy()
        assert chi_square(counts, exact).p_value > 1e-3


def test_the_decoder_itself_has_the_models_law():
    lm, n = TableLM.random(3, order=1, seed=4), 3 * 20_000
    exact = (lm.table[1][:, None] * lm.table).flatten().numpy()
    texts = exp_decoder(lm, [[1]] * 20_000, key=WatermarkKey(8, n), shift=list(range(0, n, 3)), max_new_tokens=2)
    counts = np.bincount([g.ids[0] * 3 + g.ids[1] for g in texts], minlength=9)
    assert chi_square(counts, exact).p_value > 1e-3


@pytest.mark.parametrize("scheme,options", [("exp", {}), ("exp", {"k": 5}), ("exp", {"gamma": 0.0}), ("its", {}), ("its", {"gamma": 0.4})])
def test_null_p_values_are_uniform(scheme, options):
    rng, key = np.random.default_rng(0), WatermarkKey(0, 32, scheme, 60)
    p, closed = [], []
    for i in range(count := 300 if scheme == "exp" else 150):
        text = rng.integers(60, size=12) if i % 2 else np.full(12, 7)
        values = phis(text, key, [7_000_000 + i, *null_seeds(49, i)], **options)
        p.append(rank_p_value(values[0], values[1:]))
        if scheme == "exp" or "gamma" not in options: closed.append(np.exp(log_p_bound(values[0], torch.as_tensor(text), key, **options)))
    assert ks_uniform(p).p_value > 1e-3
    for level in (0.01, 0.05, 0.1):
        if closed: assert np.mean(np.array(closed) <= level) <= level + 3 * np.sqrt(level / count)


def test_a_token_that_occurs_costs_the_same_whatever_the_vocabulary():
    """Nothing has the vocabulary's size: ids of two billion are aligned as quickly as small ones."""
    text = [2_000_000_001, 5, 2_000_000_001, 7]
    assert alignment_cost(text, WatermarkKey(1, 16)).shape == (4, 16)
    for scheme in ("exp", "its"):
        assert 0 < detect(text, WatermarkKey(1, 16, scheme, 2_100_000_000), n_null=9).p_value <= 1


# ---------------------------------------------------------------- models

@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scheme", ("exp", "its"))
def test_every_model_family_writes_and_is_detected(name, scheme):
    lm, key = any_lm(name), WatermarkKey(77, 64, scheme, VOCAB)
    write = exp_decoder if scheme == "exp" else its_decoder
    prompts = [[3, 4, 5], [6, 7, 8, 9], [1, 2, 3]]
    together = write(lm, prompts, key=key, shift=[0, 5, 60], max_new_tokens=30, stop=False, temperature=2.0)
    for prompt, shift, g in zip(prompts, (0, 5, 60), together):
        assert write(lm, prompt, key=key, shift=shift, max_new_tokens=30, stop=False, temperature=2.0).ids == g.ids
    p = [detect(g.ids, key, n_null=99).p_value for g in together]
    assert np.median(p) <= 0.05, p
    assert 0 <= watermark_potential(lm, together[0].ids, prompts[0]) <= 1
    assert together[1].steps[3]["key_entry"] == 8


@pytest.mark.parametrize("name", ("transformer", "llama"))
@pytest.mark.parametrize(
    "write,score", [(kgw_decoder, kgw_score), (gumbel_hash_decoder, gumbel_hash_score), (synthid_decoder, synthid_score)]
)
def test_baselines_on_models(name, write, score):
    lm = any_lm(name)
    options = {"delta": 6.0} if write is kgw_decoder else {}
    texts = [
        write(lm, [[3, 4, 5, 6], [7, 8, 9, 1]], key=5, max_new_tokens=40, seed=s, stop=False, temperature=2.0, **options)[0].ids
        for s in (1, 2)
    ]
    assert min(score(t, 5).p_value for t in texts) < 0.05
    assert write(lm, [3, 4, 5, 6], key=5, max_new_tokens=40, seed=1, stop=False, temperature=2.0, **options).ids == texts[0]


@pytest.mark.parametrize("family", ("gpt2", "llama"))
@pytest.mark.parametrize("scheme", ("exp", "its"))
def test_processor_in_generate_equals_the_decoder(family, scheme):
    from arlm_nb.core.hflm import HFLM
    model, key = hf_model(family), WatermarkKey(5, 40, scheme, VOCAB - 4)
    model.generation_config.eos_token_id = None
    ids, write = torch.tensor([[3, 4, 5], [6, 7, 8]]), exp_decoder if scheme == "exp" else its_decoder
    processor = WatermarkProcessor(key, shift=[2, 39], temperature=0.9, top_k=20)
    theirs = model.generate(ids, do_sample=False, max_new_tokens=15, pad_token_id=0, logits_processor=[processor])[:, 3:].tolist()
    assert max(map(max, theirs)) < VOCAB - 4, "rows beyond the vocabulary get no mass"
    full = WatermarkKey(5, 40, scheme, VOCAB)
    theirs = model.generate(
        ids,
        do_sample=False,
        max_new_tokens=15,
        pad_token_id=0,
        logits_processor=[WatermarkProcessor(full, shift=[2, 39], temperature=0.9, top_k=20)],
    )[:, 3:].tolist()
    ours = [g.ids for g in write(HFLM(model), ids, key=full, shift=[2, 39], max_new_tokens=15, stop=False, temperature=0.9, top_k=20)]
    assert theirs == ours
    processor.reset()
    with pytest.raises(ValueError, match="2 shifts"): processor(torch.zeros(3, 4, dtype=torch.int64), torch.zeros(3, VOCAB))


def test_padding_rows_of_a_model_get_no_mass():
    tokenizer = Tokenizer.from_symbols([f"w{i}" for i in range(40)])
    lm = any_lm("gpt2")
    lm.tokenizer = tokenizer
    for write, scheme in ((exp_decoder, "exp"), (its_decoder, "its")):
        g = write(lm, [1, 2], key=WatermarkKey(1, scheme=scheme), max_new_tokens=40, stop=False, temperature=5.0)
        assert max(g.ids) < tokenizer.vocab_size < lm.vocab_size


# ---------------------------------------------------------------- long, several, saved

def marked(length=60, n=256, seed=5, V=300):
    lm = TableLM.random(V, order=1, seed=0, concentration=0.1)
    return exp_decoder(lm, [1], key=WatermarkKey(seed, n, vocab_size=V), max_new_tokens=length).ids


def test_a_document_longer_than_the_key():
    rng, key = np.random.default_rng(0), WatermarkKey(5, 64, vocab_size=300)
    text = [*rng.integers(300, size=150).tolist(), *marked(40, 64), *rng.integers(300, size=70).tolist()]
    found = detect(text, key, k=30, n_null=199)
    assert found.p_value == 0.005 and 150 <= found.span[0] <= 160 and found.m == 260
    assert detect(text, key, n_null=19).k == 64
    with pytest.warns(UserWarning, match="used twice"): marked(70, 64)


def test_edits_break_the_plain_alignment_and_not_the_edit_alignment():
    key, text = WatermarkKey(5, vocab_size=300), marked(40)
    worn = attack(text, "deletion", 0.3, vocab_size=300, seed=3)
    edit = detect(worn, key, edit=True, n_null=199)
    assert edit.p_value == 0.005 < detect(worn, key, n_null=199, method="analytic").p_value
    assert edit.phi < detect(worn, key, n_null=1).phi


def test_several_keys_and_documents():
    table = detect_keys(marked(), [WatermarkKey(s, vocab_size=300) for s in (1, 2, 5, 9)], n_null=199)
    assert (
        table.key[0] == 2
        and table.p_value[0] == 0.005
        and table.p_family[0] == 0.02
        and (table.p_family >= table.p_value).all()
        and table.p_family.is_monotonic_increasing
    )
    assert combine([0.04] * 4) < 0.01 and combine([1.0]) == 1.0
    with pytest.raises(ValueError, match=r"\(0, 1\]"): combine([0.0])


def test_reports_and_keys_are_files(tmp_path):
    key = WatermarkKey(5, vocab_size=300)
    found = detect(marked(), key, edit=True, n_null=19, lm=TableLM.random(300, 1, 0, 0.1))
    found.save(tmp_path / "report.json")
    assert Detection.load(tmp_path / "report.json") == found
    text = (tmp_path / "report.json").read_text()
    assert json.loads(text)["key_id"] == key.id and '"seed"' not in text and 0 < found.potential < 1


def test_reference_and_permutation_agree_on_ordinary_text():
    text, key = np.random.default_rng(1).integers(300, size=30).tolist(), WatermarkKey(5, 64, vocab_size=300)
    by = {m: detect(text, key, method=m, n_null=399).p_value for m in ("permutation", "reference")}
    assert abs(by["permutation"] - by["reference"]) < 0.15
    null = reference_null(30, key, k=30, n_null=50, texts=[text])
    assert null.shape == (50,) and detect(text, key, method="reference", reference=null).null == null.tolist()


def test_predictions_move_the_right_way():
    for scheme in ("exp", "its"):
        lengths = [predicted_length(np.full(100, p), scheme=scheme) for p in (0.05, 0.3, 0.6)]
        assert lengths == sorted(lengths) and lengths[0] < lengths[-1]
        assert predicted_length(np.full(100, 0.3), n=1024, scheme=scheme) >= predicted_length(np.full(100, 0.3), n=64, scheme=scheme)
    assert predicted_length(np.ones(10)) is None


def test_power_curve_has_a_row_for_each_question():
    lm = TableLM.random(200, order=1, seed=0, concentration=0.1)
    frame = power_curve(lm, ["exp", "kgw-2"], [10, 20], [("none", 0.0), ("deletion", 0.3)], 4, n_null=99)
    assert len(frame) == 8 and set(frame.columns) >= {"scheme", "length", "attack", "eps", "median_p", "power", "low", "high"}
    assert frame[(frame.scheme == "exp") & (frame.length == 20) & (frame.attack == "none")].power.iloc[0] == 1
    with pytest.raises(ValueError, match="nearest: exp"): power_curve(lm, ["expp"])


# ---------------------------------------------------------------- bad input

KEY = WatermarkKey(1, 8, vocab_size=10)
BAD = [
    (lambda: detect([1, 2, 3], KEY, k=4), "k must be in 1..3"),
    (lambda: detect(list(range(10)), KEY, k=9), "k must be <= n = 8"),
    (lambda: detect([], KEY), "empty"),
    (lambda: detect("", KEY, tokenizer=Tokenizer.train(kind="byte")), "empty"),
    (lambda: detect("text", KEY), "no tokenizer"),
    (lambda: detect([1, 2], WatermarkKey(1, 8, "its", 10), edit=True, gamma=0.0), "every alignment free"),
    (lambda: detect([1, 2], KEY, edit=True, gamma=-1.0), "gamma must be >= 0"),
    (lambda: detect([1, 2], KEY, n_null=0), "n_null must be >= 1, got 0"),
    (lambda: detect([1, 10], KEY), "token id 10 is outside the vocabulary of 10"),
    (lambda: detect([1, -2], KEY), "token id -2"),
    (lambda: detect([1, 2], KEY, cost="cov"), "does not belong"),
    (lambda: detect([1, 2], KEY, method="exact"), "permutation, reference, analytic"),
    (lambda: detect([1, 2], WatermarkKey(1, 8, "its", 10), edit=True, method="analytic"), "no closed form"),
    (lambda: detect([1, 2], WatermarkKey(1, 8, "its")), "needs vocab_size"),
    (lambda: check_gamma("l1", 0.0), "0.4"),
    (lambda: its_decoder(TableLM.random(4), [1], key=WatermarkKey(1), max_new_tokens=2), "scheme must be 'its'"),
    (lambda: exp_decoder(TableLM.random(4), [1], key=WatermarkKey(1), max_new_tokens=2, temperature=0), "no entropy"),
    (lambda: exp_decoder(TableLM.random(4), [1], key=WatermarkKey(1), max_new_tokens=0), "max_new_tokens must be >= 1"),
    (lambda: WatermarkProcessor(WatermarkKey(1), "its"), "the key's scheme is 'exp'"),
    (lambda: kgw_score([3], 1), "more than h = 1"),
    (lambda: kgw_decoder(TableLM.random(4), [1], key=1, gamma=1.0, max_new_tokens=2), "gamma must be in"),
    (lambda: detect_keys([1], []), "at least one key"),
]


@pytest.mark.parametrize("call,message", BAD, ids=[m for _, m in BAD])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")): call()


# ---------------------------------------------------------------- the command line, with a model

def test_generate_and_detect_from_the_shell(tmp_path):
    from typer.testing import CliRunner
    from transformers import AutoModelForCausalLM  # noqa: F401
    from arlm_nb.core.tokenizer import as_hf
    from arlm_nb.watermark.cli import app
    tokenizer, folder = Tokenizer.train(kind="byte"), tmp_path / "model"
    import transformers
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=tokenizer.vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=256)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    as_hf(tokenizer).save_pretrained(folder)
    run = lambda *a: CliRunner().invoke(app, list(map(str, a)))
    wrote = run("generate", "The text ", "--key", 42, "--model", folder, "--tokens", 60, "--seed", 1, "--out", tmp_path / "text.txt")
    assert wrote.exit_code == 0, wrote.output
    text = (tmp_path / "text.txt").read_text(encoding="utf-8")
    assert text
    found = run(
        "detect", tmp_path / "text.txt", "--key", 42, "--tokenizer", folder, "--nulls", 99, "--edit", "--out", tmp_path / "report.json"
    )
    assert found.exit_code == 0 and Detection.load(tmp_path / "report.json").p_value <= 1
    assert run("generate", "x", "--model", folder, "--out", tmp_path / "none" / "text.txt").exit_code == 2
    assert run("generate", "x", "--model", folder, "--n", 0).exit_code == 2
