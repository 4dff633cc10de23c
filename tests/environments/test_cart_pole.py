"""The pole on a cart: gymnasium's steps, and what its equations say by themselves."""

import numpy as np
import pytest

from lightning_polystep.environments import ENVIRONMENTS
from tests.helpers.gymnasium_steps import compare_steps

CART_POLE = ENVIRONMENTS["CartPole-v1"]


def test_every_step_is_gymnasiums():
    assert len(compare_steps(CART_POLE)) > 20


@pytest.mark.parametrize("state", [(2.39, 2.0, 0.0, 0.0), (0.0, 0.0, 0.209, 1.0), (-2.39, -2.0, 0.0, 0.0)])
def test_it_is_over_beyond_the_bounds_and_that_step_still_earns(state):
    assert CART_POLE.advance(np.array(state), 0.0) == (1.0, True)


def test_left_and_right_are_mirror_images():
    state = np.array([0.1, -0.2, 0.05, 0.3])
    mirrored = -state
    for action in (0.0, 1.0, 1.0, 0.0):
        CART_POLE.advance(state, action)
        CART_POLE.advance(mirrored, 1.0 - action)
    np.testing.assert_allclose(mirrored, -state, atol=1e-15)
