"""The walk: what it counts is what the formula says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_polystep.kernels.clause_sweep import Draws
from lightning_polystep.maxsat import WeightedCNF
from lightning_polystep.maxsat.search import Search, simplified
from tests.maxsat.formulas import assignments, formulas


@given(formula=formulas(hard=True), seed=st.integers(0, 999))
def test_costs_are_those_of_the_formula_wherever_it_walks(formula, seed):
    search = Search(formula)
    empty_hard = int((formula.hard & (np.diff(formula.starts) == 0)).sum())
    search.go_to(np.random.default_rng(seed).random(formula.variables) < 0.5)
    for sweep in range(3):
        assert search.cost == formula.cost(search.values)
        assert search.violated + empty_hard == formula.violated(search.values)
        assert search.penalised == search.cost + search.penalty * search.violated
        search.sweep(Draws(3.0, True, 1.0, seed, range(sweep, sweep + 1)))
    assert search.contradiction == bool(empty_hard)


@given(formula=formulas(hard=True), seed=st.integers(0, 999), by=st.integers(1, 50))
def test_clauses_that_weigh_more_keep_all_costs_exact(formula, seed, by):
    search, weight = Search(formula), None
    search.go_to(np.random.default_rng(seed).random(formula.variables) < 0.5)
    for sweep in range(3):
        before, violated = search.penalised, search.violated
        search.weigh_violated(by)
        assert search.penalised == before + by * violated
        weight, costs = search.penalised, search.costs.copy()
        search.go_to(search.values.copy())  # counts anew
        assert search.penalised == weight
        assert np.array_equal(search.costs, costs)
        assert search.cost == formula.cost(search.values)
        search.sweep(Draws(3.0, True, 1.0, seed, range(sweep, sweep + 1)))


def test_weights_that_might_not_fit_stay_as_they_are():
    search = Search(WeightedCNF.of([[1], [-1]], hard=[True, False]))
    for by in (2**31, 2**62):
        search.weigh_violated(by)
        assert search.penalised == search.penalty


@given(formula=formulas(hard=True))
def test_no_single_flip_pays_for_a_hard_clause(formula):
    search = Search(formula)
    for values in assignments(formula.variables):
        search.go_to(values)
        before = search.violated
        for variable, cost in enumerate(search.costs.tolist()):
            flipped = values.copy()
            flipped[variable] = not flipped[variable]
            search.go_to(flipped)
            assert search.violated <= before or cost > 0
            search.go_to(values)


def test_repetitions_and_tautologies_go_and_hard_clauses_come_first():
    formula = WeightedCNF.of([[1, 1, -2], [3, -3], [], [-1]], hard=[False, False, False, True])
    literals, starts, kept = simplified(formula)
    assert kept.tolist() == [3, 0]
    assert literals.tolist() == [1, 0, 3]
    assert starts.tolist() == [0, 1, 3]


def test_penalties_that_overflow_are_refused():
    formula = WeightedCNF.of([[1], [2]], hard=[True, True])
    with pytest.raises(ValueError, match="2 hard clauses of penalty"):
        Search(formula, 2**61)


def test_no_variables_at_all():
    search = Search(WeightedCNF.of([[], []], weights=[2, 3]))
    assert (search.cost, search.violated, search.spread()) == (5, 0, 1.0)
