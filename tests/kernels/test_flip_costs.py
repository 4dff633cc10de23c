"""Flip costs: both implementations against a recount of every flipped assignment."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_polystep.kernels.flip_costs import cpu, flip_costs, reference
from tests.maxsat.formulas import formulas


def tensors(formula):
    literals = torch.from_numpy(np.where(formula.literals > 0, 2 * formula.literals - 2, -2 * formula.literals - 1))
    return literals.int(), torch.from_numpy(formula.starts), torch.from_numpy(formula.weights)


@given(formula=formulas(repeated=False), seed=st.integers(0, 99))
@pytest.mark.parametrize("implementation", [reference, cpu], ids=["reference", "cpu"])
def test_a_cost_is_the_difference_of_two_recounts(implementation, formula, seed):
    values = np.random.default_rng(seed).random(formula.variables) < 0.5
    found = implementation.flip_costs(torch.from_numpy(values), *tensors(formula))
    before = formula.weights[formula.unsatisfied(values)].sum()
    assert found[-1] == before
    for variable in range(formula.variables):
        flipped = values.copy()
        flipped[variable] = not flipped[variable]
        assert found[variable] == formula.weights[formula.unsatisfied(flipped)].sum() - before


def test_wrong_arguments_are_named():
    values, literals = torch.zeros(2, dtype=torch.bool), torch.tensor([0, 2], dtype=torch.int32)
    starts, weights = torch.tensor([0, 2]), torch.tensor([1])
    with pytest.raises(TypeError, match=r"literals must be torch\.int32"):
        flip_costs(values, literals.long(), starts, weights)
    with pytest.raises(ValueError, match="weights must have one axis"):
        flip_costs(values, literals, starts, weights[None])
    with pytest.raises(ValueError, match="starts must have 2 entries"):
        flip_costs(values, literals, starts[:1], weights)


def test_it_can_be_traced():
    values, literals = torch.zeros(2, dtype=torch.bool), torch.tensor([0, 2], dtype=torch.int32)
    torch.library.opcheck(flip_costs, (values, literals, torch.tensor([0, 2]), torch.tensor([3])))
