"""Random k-SAT: clauses of different variables, even signs, and a hidden solution where one is asked for."""

import numpy as np
import pytest

from lightning_polystep.maxsat import random_ksat
from lightning_polystep.maxsat.solver import Solver


@pytest.mark.parametrize(("k", "variables"), [(1, 40), (3, 5), (3, 3), (7, 200), (3, 5000)])
def test_a_clause_has_k_different_variables_and_any_signs(k, variables):
    formula = random_ksat(variables, 5000 / variables, k=k, seed=4)
    rows = formula.literals.reshape(-1, k)
    assert formula.clauses == len(rows) == int(5000 / variables * variables)
    assert bool((np.diff(np.sort(np.abs(rows), axis=1), axis=1) > 0).all())
    assert (rows > 0).mean() == pytest.approx(0.5, abs=0.02)
    if variables <= 200:
        assert set(np.abs(rows).ravel()) == set(range(1, variables + 1))


def test_it_is_a_function_of_the_seed():
    first, again, other = (random_ksat(100, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.literals, again.literals)
    assert not np.array_equal(first.literals, other.literals)


def test_a_planted_formula_can_be_satisfied_and_weights_are_drawn():
    formula = random_ksat(60, 4.27, seed=1, planted=True, max_weight=9)
    assert set(formula.weights.tolist()) == set(range(1, 10))
    assert Solver(formula).search(seconds=20).cost == 0


@pytest.mark.parametrize(
    "wrong", [{"k": 0}, {"variables": 2}, {"ratio": -1.0}, {"ratio": float("inf")}, {"max_weight": 0}]
)
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="random_ksat"):
        random_ksat(**{"variables": 10, **wrong})
