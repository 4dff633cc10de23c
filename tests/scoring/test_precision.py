"""Numbers precise enough for small differences."""

import math

import pytest
import torch

from lightning_polystep.scoring.precision import half_difference, precise


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bool, torch.float32),
        (torch.int64, torch.float32),
    ],
)
def test_numbers_have_at_least_single_precision(given, found):
    assert precise(torch.ones(2, dtype=given)).dtype is found


def test_what_is_masked_out_both_times_does_not_differ():
    both = torch.tensor([[3.0, -math.inf, 1.0], [1.0, -math.inf, 1.0]])
    assert half_difference(both).tolist() == [1.0, 0.0, 0.0]
