"""The anytime search finds optima of small formulas, and says truly what it has found."""

import numpy as np
import pytest
from hypothesis import given, settings

from lightning_polystep.maxsat import WeightedCNF, random_ksat
from lightning_polystep.maxsat.solver import Solver
from tests.maxsat.formulas import formulas, least_cost


@settings(max_examples=15)
@given(formula=formulas(hard=True, most_variables=6))
def test_the_optimum_of_small_formulas(formula):
    seen = []
    answer = Solver(formula, on_better=seen.append).search(seconds=0.2)
    least = least_cost(formula)
    if least is None:
        assert not answer.feasible
        return
    assert answer.feasible
    assert answer.cost == formula.cost(answer.values) == least == seen[-1]
    assert formula.violated(answer.values) == 0
    assert seen == sorted(set(seen), reverse=True)


def optimum(formula):
    examples = pytest.importorskip("pysat.examples.rc2")
    WCNF = pytest.importorskip("pysat.formula").WCNF

    problem = WCNF()
    for clause in range(formula.clauses):
        row = formula.literals[formula.starts[clause] : formula.starts[clause + 1]].tolist()
        problem.append(row, weight=None if formula.hard[clause] else int(formula.weights[clause]))
    with examples.RC2(problem) as solver:
        return None if solver.compute() is None else solver.cost


def partial(seed, variables=40):
    """Hard 3-SAT below its threshold, and a wish for each variable."""
    rules, draw = random_ksat(variables, 3.2, seed=seed, planted=True), np.random.default_rng(seed)
    wishes = [[int(v) * (1 if draw.random() < 0.5 else -1)] for v in range(1, variables + 1)]
    rows = [*rules.literals.reshape(-1, 3).tolist(), *wishes]
    weights = [1] * rules.clauses + draw.integers(1, 20, variables).tolist()
    return WeightedCNF.of(rows, weights, [True] * rules.clauses + [False] * variables)


@pytest.mark.parametrize("seed", range(4))
def test_weighted_partial_optima_of_rc2(seed):
    formula = partial(seed)
    answer = Solver(formula, seed).search(seconds=1.5)
    assert answer.feasible
    assert answer.cost == optimum(formula)


@pytest.mark.parametrize("seed", range(2))
def test_random_3_sat_optima_of_rc2(seed):
    formula = random_ksat(50, 4.6, seed=seed, max_weight=4)
    assert Solver(formula, seed).search(seconds=1.0).cost == optimum(formula)


def test_what_is_proved():
    contradiction = Solver(WeightedCNF.of([[], [1]], hard=[True, False])).search(seconds=5)
    assert contradiction.contradiction
    assert not contradiction.feasible
    unavoidable = Solver(WeightedCNF.of([[], [1]], weights=[4, 1])).search(seconds=5)
    assert unavoidable.optimal
    assert unavoidable.cost == 4
    avoidable = Solver(WeightedCNF.of([[-1], [1]], weights=[4, 1])).search(sweeps=50)
    assert (avoidable.cost, avoidable.optimal) == (1, False)


def test_hard_clauses_are_weighed_more_until_they_are_satisfied():
    # Together 40 soft clauses outweigh the hard one by far.
    rows = [[1, 2], *[[-1]] * 20, *[[-2]] * 20]
    formula = WeightedCNF.of(rows, hard=[True] + [False] * 40)
    solver = Solver(formula)
    assert solver._walk.penalty < 20
    answer = solver.search(seconds=0.5)
    assert (answer.cost, answer.violated) == (20, 0)
    assert solver._walk.layout.weights[0] >= 20


def test_a_run_of_given_length_is_a_function_of_the_seed():
    formula = random_ksat(300, 4.27, seed=1)
    first, again, other = (Solver(formula, seed).search(sweeps=60).values for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_it_stops_when_asked_to():
    asked = []
    answer = Solver(random_ksat(200, 6.0), stopped=lambda: asked.append(1) or len(asked) > 5).search(seconds=1000)
    assert answer.sweeps < 1000
    assert answer.feasible


def test_either_seconds_or_sweeps():
    with pytest.raises(ValueError, match="either seconds or sweeps"):
        Solver(random_ksat(10)).search()
