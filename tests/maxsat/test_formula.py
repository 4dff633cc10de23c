"""The formula as arrays: what it costs, and what it refuses."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given

from lightning_polystep.maxsat import WeightedCNF
from tests.maxsat.formulas import assignments, formulas

FORMULA = WeightedCNF.of([[1, -2], [2], [], [-1, 1]], weights=[3, 1, 5, 7], hard=[False, True, False, False])


@given(formula=formulas(hard=True, most_variables=4))
def test_costs_are_those_of_the_definition(formula):
    rows = [formula.literals[a:b].tolist() for a, b in zip(formula.starts, formula.starts[1:], strict=False)]
    for values in assignments(formula.variables):
        true = [any(values[abs(literal) - 1] == (literal > 0) for literal in row) for row in rows]
        soft = [w for w, t, h in zip(formula.weights, true, formula.hard, strict=True) if not (t or h)]
        assert formula.cost(values) == sum(soft)
        assert formula.violated(values) == sum(h and not t for t, h in zip(true, formula.hard, strict=True))
        assert formula.satisfied_share(values) == pytest.approx(np.mean(true) if true else 1.0)


def test_what_it_says_of_itself():
    assert (FORMULA.variables, FORMULA.clauses, FORMULA.soft_weight) == (2, 4, 15)
    assert FORMULA.equals(dataclasses.replace(FORMULA, weights=FORMULA.weights.copy()))
    assert not FORMULA.equals(dataclasses.replace(FORMULA, weights=FORMULA.weights + 1))
    with pytest.raises(ValueError, match=r"shape \(2,\), got \(3,\)"):
        FORMULA.cost(np.zeros(3, bool))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variables": 1}, "Literals must be 1 to 1"),
        ({"variables": 2**31}, "0 to 2\\^30"),
        ({"literals": np.array([1, 0, 2, -1, 1], np.int32)}, "Literals must be 1 to 2"),
        ({"starts": np.array([0, 3, 2, 3, 5])}, "starts must ascend"),
        ({"starts": np.array([0, 2, 3])}, "one entry more"),
        ({"weights": np.array([3, -1, 5, 7])}, "at least 0"),
        ({"weights": np.array([2**61, 2**61, 1, 1])}, "2\\^62"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FORMULA, **changes)
