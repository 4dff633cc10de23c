"""The pendulum: gymnasium's steps, its rests and its costs."""

import math

import numpy as np
import pytest

from lightning_polystep.environments import ENVIRONMENTS
from tests.helpers.gymnasium_steps import compare_steps

PENDULUM = ENVIRONMENTS["Pendulum-v1"]


def test_every_step_is_gymnasiums():
    compare_steps(PENDULUM)


def test_upright_and_still_costs_nothing():
    state = np.zeros(2)
    assert PENDULUM.advance(state, 0.0) == (0.0, False)
    assert state.tolist() == [0.0, 0.0]


def test_costs_are_those_of_the_wrapped_angle():
    cost, _ = PENDULUM.advance(np.array([2 * math.pi + 0.3, 1.0]), 2.0)
    assert cost == pytest.approx(-(0.3**2 + 0.1 + 0.004))


def test_torques_beyond_the_strongest_are_the_strongest():
    first, second = np.array([1.0, 0.0]), np.array([1.0, 0.0])
    assert PENDULUM.advance(first, 2.0) == PENDULUM.advance(second, 50.0)
    np.testing.assert_array_equal(first, second)
