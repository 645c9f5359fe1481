"""Tractable control on Hugging Face models: a hidden Markov model distilled from them, and formulas that always come true."""
import pytest
import torch
from hypothesis import given, settings, strategies as st
from tests.models import any_lm

from arlm_nb.core.constraints import CNF, Literal
from arlm_nb.core.generation import decoders, get_decoder
from arlm_nb.decode.hmm import HMM
from arlm_nb.decode.hmm_distill import distill_hmm
from arlm_nb.decode.tractable_control import ConstraintTable, ProductDFA, WordRule, satisfies, tractable_control


@pytest.mark.parametrize("family", ["transformer", "llama", "bloom"])
def test_formula_always_holds(family):
    lm = any_lm(family)
    hmm = distill_hmm(lm, n_states=3, n_samples=40, length=6, prompt=[5], epochs=2, labelled=20)
    assert hmm.vocab_size == lm.vocab_size and hmm.start == (5,) and len(hmm.kl) == 3
    rule = WordRule(CNF([[Literal((3, 9)), Literal((11,))], [Literal((7,))]]), lm.vocab_size, torch.arange(lm.vocab_size) % 2 == 1, stop=2)
    for options in ({"beam": 2}, {"sample": True}, {"beam": 2, "weight": 0.2, "method": "table"}):
        for g in tractable_control(lm, [[5, 8], [5, 1, 4]], hmm=hmm, constraint=rule, max_new_tokens=6, stop=2, **options):
            assert satisfies(rule, g.ids) and g.steps[-1]["open"] == [] and g.steps[-1]["alpha"] == pytest.approx(1)


def test_found_by_key():
    assert "tractable_control" in decoders() and callable(get_decoder("tractable_control"))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3), min_size=1, max_size=2), max_size=3), st.lists(st.booleans(), min_size=5, max_size=5),
       st.sampled_from([None, 4]), st.booleans(), st.integers(0, 5))
def test_both_tables_agree(clauses, flags, stop, ordered, seed):
    "Whatever formula the table takes, the automaton gives the same numbers."
    if any(stop in p for c in clauses for p in c): return
    rule = WordRule(CNF([[Literal(tuple(p)) for p in c] for c in clauses]), 5, torch.tensor(flags), stop, ordered)
    hmm = HMM(3, 5, seed=seed)
    try: table = ConstraintTable(hmm, rule, 6)
    except ValueError as e:
        assert "can overlap" in str(e)
        return
    product = ProductDFA(hmm, rule.dfa(), 6)
    for prefix in hmm.sample(6, 5, seed=seed).tolist():
        for n in (0, 2, 5): torch.testing.assert_close(table.log_prob_given(prefix[:n]).exp(), product.log_prob_given(prefix[:n]).exp(), atol=1e-10, rtol=1e-8)
