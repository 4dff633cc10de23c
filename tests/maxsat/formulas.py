"""Small formulas for the tests of MAX-SAT."""

import itertools

import numpy as np
from hypothesis import strategies as st

from lightning_polystep.maxsat import WeightedCNF


@st.composite
def formulas(draw, repeated=True, hard=False, most_variables=7):
    """Any formula: empty clauses, long ones, and, if asked for, repeated literals, tautologies and hard clauses."""
    variables = draw(st.integers(1, most_variables))
    literal = st.integers(1, variables).flatmap(lambda v: st.sampled_from([v, -v]))
    unique = None if repeated else abs
    clause = st.lists(literal, max_size=6, unique_by=unique) if unique else st.lists(literal, max_size=6)
    clauses = draw(st.lists(clause, max_size=12))
    weights = draw(st.lists(st.integers(0, 9), min_size=len(clauses), max_size=len(clauses)))
    is_hard = draw(st.lists(st.booleans() if hard else st.just(False), min_size=len(clauses), max_size=len(clauses)))
    weights = [1 if rule else weight for weight, rule in zip(weights, is_hard, strict=True)]
    return WeightedCNF.of(clauses, weights, is_hard, variables)


def assignments(variables):
    """All of them."""
    return (np.array(values, dtype=bool) for values in itertools.product([False, True], repeat=variables))


def least_cost(formula):
    """The least cost of an assignment that satisfies all hard clauses; None where there is none."""
    costs = [formula.cost(values) for values in assignments(formula.variables) if not formula.violated(values)]
    return min(costs, default=None)
