"""CrystaLLM: the names of the card, the search on Hugging Face families, crystals of any shape, bad input."""
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import VOCAB, hflm, transformer

from arlm_nb.core.generation import decoders, get_decoder
from arlm_nb.core.tokenizer import Tokenizer
from arlm_nb.science import crystallm as C
from arlm_nb.science.cif_tokenizer import GROUPS, SYMBOLS, ends_file
from arlm_nb.science.crystals import ELEMENTS, SPACE_GROUPS, write_formula
from arlm_nb.science.prototypes import PROTOTYPES

CARD = """Crystal to_cif from_cif standardise SPACE_GROUPS CIFTokenizer generate_crystals load_cifs validity Validity bond_score strain_energy sample_crystal MCTS SearchTree
structure_match Match""".split()
WORDS = Tokenizer.from_symbols([f"w{i}" for i in range(VOCAB)])


def score(text: str) -> float: return (sum(map(ord, text)) % 97) / 97


def test_names_of_the_card():
    assert [n for n in (*CARD, *C._all_) if not hasattr(C, n)] == []
    assert "crystallm" in decoders() and get_decoder("crystallm") is C.sample_crystal


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gpt_neox", "ours"])
def test_search_on_models(family):
    lm = transformer() if family == "ours" else hflm(family)
    lm.tokenizer = WORDS
    options = dict(width=4, c=1.0, max_new_tokens=6, stop=False)
    shared, again = (C.MCTS(lm, score, share=share, **options).search([1, 2, 3], 20, seed=1) for share in (True, False))
    assert [r["ids"] for r in shared.rows] == [r["ids"] for r in again.rows]
    assert shared.cost.positions < again.cost.positions
    batched = C.MCTS(lm, score, batch=4, **options).search([1, 2, 3], 21, seed=1)
    for tree in (shared, batched):
        for n in tree.root.walk():
            if n.untried is not None and not n.terminal: assert sum(c.visits for c in n.children) == n.visits - 1
    assert len(batched.rows) == 21 and {"reward", "positions", "text"} <= set(batched.frame)
    assert C.MCTS(lm, score, **options).search([1, 2, 3], 500, max_positions=60).cost.positions < 80
    g = C.sample_crystal(lm, [1, 2, 3], max_new_tokens=5, stop=False, seed=2)
    assert len(g.ids) == 5 and C.sample_crystal(lm, [[4], [1, 2, 3]], max_new_tokens=5, stop=False, seed=2)[0].decoder == "crystallm"


def test_not_a_number_is_counted_as_minus_one():
    lm = hflm("gpt2")
    lm.tokenizer = WORDS
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tree = C.MCTS(lm, lambda text: math.nan, max_new_tokens=3, stop=False).search([1], 2)
    assert [r["reward"] for r in tree.rows] == [-1.0, -1.0] and "NaN" in str(caught[0].message)


BAD_SEARCH = [(dict(width=0), "width must be >= 1, got 0"), (dict(c=-1.0), "c must be >= 0"), (dict(batch=0), "batch must be >= 1"), (dict(cutoff=1.5), "cutoff must be in"),
              (dict(selector="ucb"), "puct, uct, greedy"), (dict(max_new_tokens=10_000), "do not fit")]


@pytest.mark.parametrize("given, why", BAD_SEARCH)
def test_bad_search(given, why):
    lm = transformer()
    lm.tokenizer = WORDS
    with pytest.raises(ValueError, match=why): C.MCTS(lm, score, **given).search([1, 2], 2)


@pytest.mark.parametrize("formula, why", [("Na4cl", "position 3"), ("4Na", "position 0"), ("", "position 0"), ("Na-Cl", "position 2"), ("Xq2", "unknown element"), ("Na0", "position 0"), ("NaCl)", "position 4")])
def test_bad_formulas(formula, why):
    with pytest.raises(ValueError, match=why): C.crystal_prompt(formula)


def test_vocabulary():
    assert len(GROUPS) == 230 and set(ELEMENTS) <= set(SYMBOLS) and {g.number: GROUPS[g.number - 1] for g in SPACE_GROUPS.values()} == {g.number: g.name for g in SPACE_GROUPS.values()}
    tok = C.CIFTokenizer()
    for g in GROUPS: assert tok.decode(tok.encode(f"_symmetry_space_group_name_H-M {g}\n")) == f"_symmetry_space_group_name_H-M {g}\n" and len(tok.encode(f"_symmetry_space_group_name_H-M {g}\n")) == 3
    bytes_ = Tokenizer.train(kind="byte")
    assert ends_file(bytes_)(bytes_.encode("a\n\n")) and not ends_file(bytes_)(bytes_.encode("a\n"))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(PROTOTYPES)), st.sampled_from("Li Na Ca La Zn Ti Pb".split()), st.sampled_from("Ba Sr K".split()), st.sampled_from("O F S Cl Te".split()))
def test_any_compound_survives_its_file(name, metal, other, anion):
    elements = [other, metal, anion] if PROTOTYPES[name].cations == 2 else [metal, anion]
    crystal = C.make_crystal(name, elements)
    text = C.to_cif(crystal)
    back = C.from_cif(text)
    assert C.standardise(text) == text and back.formula == crystal.formula
    assert np.abs(np.array(back.parameters) - crystal.parameters).max() <= 0.51e-4
    m = C.structure_match(back, crystal)
    assert m and m.rms < 1e-3
    if name != "perovskite": assert C.validity(text).ok, C.validity(text).message


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=200))
def test_no_text_breaks_the_checks(text):
    assert not C.validity(text).ok and not C.validity("data_" + text).ok


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 30))
def test_damaged_files_are_judged_not_raised(seed):
    rng = np.random.default_rng(seed)
    text = list(C.to_cif(C.make_crystal("rutile", ["Ti", "O"])))
    for at in rng.integers(len(text), size=rng.integers(1, 6)): text[at] = rng.choice(list("0123456789.NaCl_\n '-"))
    C.validity("".join(text))


def test_formula_order():
    assert write_formula({"Cl": 4, "Na": 4}) == "Na4Cl4" and C.crystal_prompt("O3TiSr") == "data_Sr1Ti1O3\n"
