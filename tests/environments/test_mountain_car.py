"""A car in a valley, with three actions and with a force."""

import numpy as np
import pytest

from lightning_polystep.environments import ENVIRONMENTS
from tests.helpers.gymnasium_steps import compare_steps

THREE, FORCE = ENVIRONMENTS["MountainCar-v0"], ENVIRONMENTS["MountainCarContinuous-v0"]


def test_every_step_with_three_actions_is_gymnasiums():
    compare_steps(THREE)


def test_every_step_with_a_force_is_gymnasiums():
    compare_steps(FORCE, steps=4000, tolerance=1e-6)  # gymnasium keeps its state in float32


def drive(environment, choose):
    state, total = np.array([-0.5, 0.0]), 0.0
    for step in range(environment.horizon):
        reward, over = environment.advance(state, choose(state))
        total += reward
        if over:
            return step + 1, total
    return None, total


@pytest.mark.parametrize(("environment", "full"), [(THREE, 2.0), (FORCE, 1.0)])
def test_full_power_alone_never_gets_there(environment, full):
    assert drive(environment, lambda _state: full)[0] is None


@pytest.mark.parametrize(("environment", "left", "right"), [(THREE, 0.0, 2.0), (FORCE, -1.0, 1.0)])
def test_pushing_along_with_the_motion_does(environment, left, right):
    steps, total = drive(environment, lambda state: right if state[1] >= 0 else left)
    assert 60 < steps < 150
    assert total == pytest.approx(-steps if environment is THREE else 100 - 0.1 * steps)


def test_the_wall_to_the_left_stops_it():
    state = np.array([-1.19, -0.07])
    THREE.advance(state, 0.0)
    assert state.tolist() == [-1.2, 0.0]
