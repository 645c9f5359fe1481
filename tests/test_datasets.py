"""Corpora and tokenizers: properties over random input, damaged caches, other processes."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st

from arlm_nb.core import corpus as C, datasets as D
from arlm_nb.core.tokenizer import Tokenizer, as_hf, wrap_hf

TEXTS = ["The cat sat on the mat; the cat sat still.\n    return x ** 2  # naïve café", "Another line, with 123 numbers.\t\tTabs."] * 3
TOKENIZERS = {kind: Tokenizer.train(TEXTS, kind, vocab_size=300) for kind in ("byte", "bpe")}
WRAPPED = wrap_hf(as_hf(TOKENIZERS["bpe"]))
unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@settings(max_examples=200, deadline=None)
@given(unicode_text)
def test_byte_and_bpe_round_trip(text):
    for tok in (*TOKENIZERS.values(), WRAPPED):
        ids = tok.encode(text)
        assert tok.decode(ids) == text
        assert tok.bytes_of(ids) == len(text.encode())
        assert tok.eos_id not in ids and all(0 <= i < tok.vocab_size for i in ids)
        spans = tok.offsets(text)
        assert len(spans) == len(ids) and all(0 <= a <= b <= len(text) for a, b in spans)
    assert TOKENIZERS["byte"].encode(text) == list(text.encode())


@settings(max_examples=50, deadline=None)
@given(st.lists(unicode_text, min_size=1, max_size=5))
def test_batch_equals_one_by_one_and_pack_is_invertible(texts):
    for tok in TOKENIZERS.values():
        batch = tok.encode_batch(texts)
        assert batch == [tok.encode(t) for t in texts]
        packed = D.pack(tok, texts).tolist()
        assert packed == [tok.eos_id] + [i for ids in batch for i in [*ids, tok.eos_id]]


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(categories=["L", "N", "Zs"]), min_size=1, max_size=40))
def test_char_round_trip_on_its_own_alphabet(text):
    tok = Tokenizer.train([text], "char")
    assert tok.decode(tok.encode(text)) == text
    assert tok.encode("\u2603") == [tok.unk_id] or "\u2603" in text


def test_lone_surrogate_and_wrong_type_are_refused():
    for bad in (b"bytes", None, 3): pytest.raises(ValueError, TOKENIZERS["bpe"].encode, bad)
    with pytest.raises(ValueError): TOKENIZERS["bpe"].encode("\ud800")


def test_training_is_the_same_in_another_process():
    code = f"""
import torch
from arlm_nb.core import datasets as D
for kind in ("byte", "char", "bpe", "wordpiece", "words"): print(D.Tokenizer.train({TEXTS!r}, kind, vocab_size=300).hash)
print(D.stories(train=20, valid=2, test=2).hash, D.facts().hash)
print(D.icl_maps().batch(9, torch.Generator().manual_seed(0))["ids"].sum().item())
"""
    run = dict(capture_output=True, text=True, check=True)
    runs = [subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, **run) for seed in ("0", "77")]
    assert runs[0].stdout == runs[1].stdout and len(runs[0].stdout.split()) == 8


def small_build(monkeypatch, tmp_path):
    "docs and code from two packages, into an empty cache."
    monkeypatch.setenv("ARLM_CACHE", str(tmp_path))
    monkeypatch.setattr(C, "LARGE", ("jinja2",))
    monkeypatch.setattr(C, "MEDIUM", ("joblib", "click", "not_installed_anywhere"))
    monkeypatch.setattr(C, "SMALL", ("tqdm", "traitlets"))
    monkeypatch.setattr(C, "_stdlib_files", lambda seed, real=C._stdlib_files: dict(list(real(seed).items())[20:50]))


def test_docs_cache_is_read_checked_and_rebuilt(monkeypatch, tmp_path):
    small_build(monkeypatch, tmp_path)
    first = C.docs()
    (path,) = (tmp_path / "corpora").glob("docs-*.jsonl")
    monkeypatch.setattr(C, "_build", None)                       # from here on only the cache can answer
    assert C.docs().hash == first.hash
    monkeypatch.undo()
    small_build(monkeypatch, tmp_path)
    lines = path.read_text(encoding="utf-8").splitlines()
    for damaged in ("not json", "\n".join(lines[:-1]), "\n".join([lines[0], *lines[2:], lines[1]])): # rubbish, cut short, out of order
        path.write_text(damaged, encoding="utf-8")
        assert C.docs().hash == first.hash
        assert path.read_text(encoding="utf-8").splitlines() == lines


def test_unwritable_cache_only_warns(monkeypatch, tmp_path):
    small_build(monkeypatch, tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ARLM_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cache"): corpus = C.code(max_bytes=20_000)
    assert corpus.train


def test_splits_share_no_package_and_no_text(monkeypatch, tmp_path):
    small_build(monkeypatch, tmp_path)
    for corpus in (C.docs(), C.code()):
        packages = corpus.meta["packages"]
        assert not set(packages["train"]) & (set(packages["test"]) | set(packages["valid"]))
        seen = C.Seen()
        for text in corpus.train: seen.shingles |= seen.sketch(text)
        for text in corpus.valid + corpus.test:
            s = seen.sketch(text)
            assert len(s & seen.shingles) < 0.4 * len(s)
        assert all(t.strip() for split in C.SPLITS for t in getattr(corpus, split))


def test_a_missing_package_moves_no_other():
    before = C.package_splits(3)
    assert before == C.package_splits(3) and set(before.values()) == {"train", "valid", "test"}
    assert C.package_splits(4) != before


def test_no_file_is_imported_or_run(tmp_path):
    (tmp_path / "evil.py").write_text('"""A docstring of the module that is long enough."""\nraise SystemExit("was run")\n')
    assert C._prose_pieces((tmp_path / "evil.py").read_text()) == []
    code = ("import sys; from arlm_nb.core.corpus import _package_files; before = set(sys.modules);"
            "files = [_package_files(p, 0) for p in ('statsmodels', 'networkx', 'sympy')]; assert all(files);"
            "assert not {'statsmodels', 'networkx', 'sympy'} & (set(sys.modules) - before)")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_packed_ids_are_cached_and_survive_damage(monkeypatch, tmp_path):
    monkeypatch.setenv("ARLM_CACHE", str(tmp_path))
    texts = ["a few words of text, again and again. " * 400] * 80
    tok = TOKENIZERS["byte"]
    first = D.pack(tok, texts)
    (path,) = (tmp_path / "packed").glob("*.npy")
    path.write_bytes(path.read_bytes()[:-100])
    assert torch.equal(D.pack(tok, texts), first) and torch.equal(D.pack(tok, texts, cache=False), first)
    assert first.dtype == torch.int32


@pytest.mark.parametrize("call, message", [
    (lambda: D.docs(max_bytes=5), "max_bytes must be >= 1000"),
    (lambda: D.windows(torch.arange(5), 5, 1), "needs at least 6 ids"),
    (lambda: D.windows(torch.zeros(2, 3), 1, 1), "one row"),
    (lambda: D.windows(torch.arange(50), 0, 1), ">= 1"),
    (lambda: D.pack(TOKENIZERS["byte"], "one text"), "list of documents"),
    (lambda: D.digits(levels=1), "levels must be 2..17"),
    (lambda: D.recall(0, torch.Generator()), "n must be >= 1"),
    (lambda: D.recall(1, torch.Generator(), noise=2), "noise must be in"),
    (lambda: D.planning(1, torch.Generator(), nodes=5, edges=3), "edges must be 4..20"),
    (lambda: D.brackets(1, torch.Generator(), kinds=5), "kinds must be 1..4"),
    (lambda: D.stories(train=0), "train must be >= 1"),
    (lambda: D.facts(held_out=0.7), "held_out"),
    (lambda: D.MarkovSource([[0.5, -0.5], [1, 0]]), "negative"),
    (lambda: D.MarkovSource([[1.0]]).sample(0, 3, torch.Generator()), ">= 1"),
    (lambda: Tokenizer.from_symbols(["a", "a"]), "distinct"),
    (lambda: Tokenizer.from_symbols(["a b"]), "no spaces"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message): call()


def test_everything_is_found_in_datasets():
    wanted = """docs code stories facts World recall brackets planning column_addition nested_arithmetic word_tasks icl_maps
        MarkovSource HMMSource BayesNetSource digits series load_text load_hf windows tiles pack Corpus story_consistent""".split()
    assert not set(wanted) - set(D.__all__)


def test_offline_hub_says_what_to_do_by_hand(tmp_path):
    code = ("from arlm_nb.core.datasets import load_hf\ntry: load_hf('nobody/no_such_data')\nexcept ValueError as e: print(e)")
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout
    assert "By hand" in out and "load_text('FOLDER')" in out


def test_task_files_travel():
    from arlm_nb.core.paths import data_path
    for name in ("word_tasks.json", "story_words.json"):
        data = json.loads(Path(data_path("tasks", name, must_exist=True)).read_text(encoding="utf-8"))
        assert data["provenance"] and data["licence"] == "Apache-2.0"
