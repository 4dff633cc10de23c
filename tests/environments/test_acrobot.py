"""Two links that hang: gymnasium's steps, and the energy that no torque changes."""

import math

import numpy as np

from lightning_polystep.environments import ENVIRONMENTS
from tests.helpers.gymnasium_steps import compare_steps

ACROBOT = ENVIRONMENTS["Acrobot-v1"]


def energy(state):
    """Kinetic and potential energy of two links of length, mass and inertia 1, centres at 1/2."""
    a, b, u, v = state
    speed = 1.0 + 0.25 + math.cos(b)
    kinetic = 0.5 * ((0.25 + 1 + speed + 1) * u * u + (0.25 + 1) * (v * v + 2 * u * v) + math.cos(b) * u * v)
    return kinetic - 9.8 * (1.5 * math.cos(a) + 0.5 * math.cos(a + b))


def test_every_step_is_gymnasiums():
    compare_steps(ACROBOT)


def test_without_torque_the_energy_stays():
    state = np.array([0.4, -0.3, 0.0, 0.0])
    before = energy(state)
    for _ in range(20):
        ACROBOT.advance(state, 1.0)
    assert abs(energy(state) - before) < 0.05, "up to the error of the integration"
    assert abs(state[2]) + abs(state[3]) > 0.1, "it swings"


def test_hanging_still_it_stays_and_costs():
    state = np.zeros(4)
    assert ACROBOT.advance(state, 1.0) == (-1.0, False)
    np.testing.assert_allclose(state, 0, atol=1e-12)


def test_above_the_line_it_is_over_for_nothing():
    assert ACROBOT.advance(np.array([math.pi, 0.0, 0.0, 0.0]), 1.0) == (0.0, True)
