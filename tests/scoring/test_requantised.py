"""Shifts of requantised rows: against a layer whose row was moved, and row by row."""

import pytest
import torch

from lightning_polystep.layers import QuantActivation, QuantLinear
from lightning_polystep.scoring import requantised
from lightning_polystep.scoring.feedforward import effective_inputs
from lightning_polystep.scoring.requantised import requantised_shifts

ROWS = torch.tensor([0, 2, 5])
REACH = torch.tensor([1.0, 4.0, 2.0], dtype=torch.float64)


def layer(bias=True, **options):
    torch.manual_seed(0)
    return QuantLinear(9, 6, bias, input_quant=QuantActivation(8, scale=1 / 64), integer=True, **options).double()


def steps(bias):
    return 0.1 * torch.randn(7, 9 + bias, dtype=torch.float64)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_they_are_what_moving_the_row_does(granularity, bias):
    linear, moves = layer(bias, granularity=granularity), steps(bias)
    x = torch.rand(4, 9, dtype=torch.float64)
    shifts = requantised_shifts(linear, effective_inputs(linear, x), ROWS, REACH, moves)
    with torch.no_grad():
        before = linear(x)
        for place, row in enumerate(ROWS.tolist()):
            for vertex, move in enumerate(REACH[place] * moves):
                moved = layer(bias, granularity=granularity)
                moved.weight[row] += move[:9]
                if bias:
                    moved.bias[row] += move[9]
                expected = (moved(x) - before)[:, row]
                torch.testing.assert_close(shifts[place, :, vertex], expected, rtol=1e-11, atol=1e-12)


def test_a_row_does_not_depend_on_the_others(monkeypatch):
    linear, moves, x = layer(), steps(bias=True), torch.rand(4, 9, dtype=torch.float64)
    together = requantised_shifts(linear, x, ROWS, REACH, moves)
    monkeypatch.setattr(requantised, "_CACHED_BYTES", 1)
    for place in range(len(ROWS)):
        alone = requantised_shifts(linear, x, ROWS[place, None], REACH[place, None], moves)
        assert torch.equal(alone[0], together[place])
