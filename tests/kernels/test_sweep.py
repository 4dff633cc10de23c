"""Outcomes of a number, and jumps of the loss, against NumPy."""

import numpy as np
import pytest
from numba import njit

from lightning_polystep.kernels.sweep.cpu import outcome_of, sweep


@njit
def _outcome_of(boundaries, x):
    return outcome_of(boundaries, x)


@njit
def _sweep(sums, shifts, current, boundary, jump, direction):
    sweep(sums, shifts, current, boundary, jump, direction)


@pytest.mark.parametrize("count", range(6))
def test_outcomes(count):
    boundaries = np.sort(np.random.randint(-3, 3, count)).astype(np.float32)
    for x in np.arange(-4, 4, 0.5, dtype=np.float32):
        assert _outcome_of(boundaries, x) == (x >= boundaries).sum()


@pytest.mark.parametrize("direction", [1, -1])
def test_jumps_reach_the_candidates_beyond_a_boundary(direction):
    shifts, sums = np.arange(-20, 20, dtype=np.float32) / 8, np.random.randn(40).astype(np.float32)
    beyond = (0.5 + shifts >= 1.0) == (direction == 1)
    expected = sums + np.where(beyond, np.float32(0.7), np.float32(0))
    _sweep(sums, shifts, np.float32(0.5), np.float32(1.0), np.float32(0.7), direction)
    assert np.array_equal(sums, expected)
