"""Costs lose their unit and their level; what is not finite does not count (more in test_step.py)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_polystep.transport.normalise import (
    FLAT_SHARE,
    LEAST_UNUSUAL,
    LOSS_ROUNDING,
    MOST_UNUSUAL,
    normalise,
    usual_spread,
)

F64 = torch.float64


@given(st.integers(0, 1000), st.floats(1e-6, 1e6))
def test_rows_have_unit_spread_and_particles_are_centred(seed, scale):
    costs = scale * (torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(seed), dtype=F64) + 3)
    result = normalise(costs)
    torch.testing.assert_close(result.costs.sum(-1), torch.zeros(4, 2, dtype=F64), rtol=0, atol=1e-9)
    torch.testing.assert_close(result.costs.square().mean((1, 2)), torch.ones(4, dtype=F64))
    centred = costs - costs.mean(-1, keepdim=True)
    torch.testing.assert_close(result.row_spread, centred.square().mean((1, 2)).sqrt())
    torch.testing.assert_close(result.spread, centred.square().mean().sqrt())


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_costs_infinitely_much_and_does_not_count(bad):
    costs = torch.tensor([[[1.0, 2.0, bad]], [[bad, bad, bad]]], dtype=F64)
    result = normalise(costs)
    assert result.costs.tolist() == [[[-1.0, 1.0, math.inf]], [[math.inf] * 3]]
    assert result.row_spread.tolist() == [0.5, 0.0]


def test_a_quiet_row_is_not_louder_than_a_fiftieth_of_the_block():
    costs = torch.tensor([[[1.0, -1.0]], [[1e-4, -1e-4]]], dtype=F64)
    result = normalise(costs)
    torch.testing.assert_close(result.costs[1], costs[1] / (FLAT_SHARE * result.spread))


def test_costs_that_differ_less_than_usual_are_divided_by_what_is_usual():
    costs = torch.tensor([[[1.0, -1.0]], [[1.0, -1.0]], [[1.0, -1.0]]], dtype=F64)
    result = normalise(costs, LEAST_UNUSUAL * torch.tensor([0.0, 0.5, 4.0], dtype=F64))
    assert result.costs[:, 0, 0].tolist() == [1.0, 1.0, 0.25]
    assert result.row_spread.tolist() == [1.0, 1.0, 1.0]


@given(st.floats(0, 0.99), st.lists(st.floats(1, 3), min_size=1, max_size=5))
def test_what_is_usual_is_a_root_mean_square_that_forgets(memory, spreads):
    usual, square = torch.zeros(1, dtype=F64), 0.0
    for spread in spreads:
        usual = usual_spread(usual, torch.tensor([spread], dtype=F64), memory)
        square = memory * square + (1 - memory) * spread**2
    torch.testing.assert_close(usual, torch.tensor([square], dtype=F64).sqrt())


def test_one_bad_batch_is_not_usual_for_long():
    usual, now = torch.tensor([1e9, 1e9], dtype=F64), torch.tensor([1.0, 0.0], dtype=F64)
    assert usual_spread(usual, now, 0.9).tolist() == [MOST_UNUSUAL, 1e9]
    costs = torch.tensor([[[1.0, -1.0]], [[0.0, 0.0]]], dtype=F64)
    assert float(normalise(costs, usual).costs[0, 0, 0]) == pytest.approx(1 / MOST_UNUSUAL)


def test_the_rounding_of_a_loss_is_no_signal():
    costs = torch.tensor([[[100.0, 100.0 + 1e-6]]], dtype=F64)
    centred = costs - costs.mean()
    torch.testing.assert_close(normalise(costs).costs, centred / (LOSS_ROUNDING * costs.mean()))


def test_equal_costs_are_zero():
    assert normalise(torch.full((2, 1, 3), 7.0, dtype=F64)).costs.unique().tolist() == [0.0]
