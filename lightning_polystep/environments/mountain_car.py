r"""A car in a valley, too weak to climb the hill to the right at once; with three actions, or with a force between two.

.. math::
    \dot x \leftarrow \dot x + a - 0.0025 \cos 3 x, \qquad x \leftarrow x + \dot x

with speeds within 0.07 and places from -1.2, where the car stops, to 0.6. With three actions a is -0.001, 0 or 0.001,
each step costs 1, and an episode is over at x = 0.5. With a force f in [-1, 1], a = 0.0015 f, each step costs 0.1 f^2
and the hill at x = 0.45 earns 100.

Source: Moore 1990, *Efficient memory-based learning for robot control*, in the form of Sutton & Barto's book, as
gymnasium's ``MountainCar-v0`` and ``MountainCarContinuous-v0`` set it up.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lightning_polystep.environments.protocol import Environment, compiled

_FASTEST, _LEFT, _RIGHT, _SLOPE = 0.07, -1.2, 0.6, 0.0025


@compiled
def observe(state: NDArray[np.float64], observation: NDArray[np.float64]) -> None:
    """See place and speed."""
    observation[:] = state


@compiled
def roll(state: NDArray[np.float64], acceleration: float) -> None:
    """Move for one step."""
    speed = state[1] + acceleration - _SLOPE * math.cos(3 * state[0])
    speed = min(max(speed, -_FASTEST), _FASTEST)
    place = min(max(state[0] + speed, _LEFT), _RIGHT)
    state[0] = place
    state[1] = 0.0 if place == _LEFT and speed < 0 else speed


@compiled
def advance(state: NDArray[np.float64], action: float) -> tuple[float, bool]:
    """Push to the left (0), not at all (1) or to the right (2)."""
    roll(state, 0.001 * (action - 1.0))
    return -1.0, state[0] >= 0.5 and state[1] >= 0.0


@compiled
def advance_by_force(state: NDArray[np.float64], action: float) -> tuple[float, bool]:
    """Push with a force from -1 to 1."""
    force = min(max(action, -1.0), 1.0)
    roll(state, 0.0015 * force)
    over = state[0] >= 0.45 and state[1] >= 0.0
    return (100.0 if over else 0.0) - 0.1 * force * force, over


MOUNTAIN_CAR = Environment(
    name="MountainCar-v0",
    horizon=200,
    threshold=-110.0,
    lowest=(-0.6, 0.0),
    highest=(-0.4, 0.0),
    actions=3,
    centre=(-0.5, 0.0),
    size=(0.5, 0.03),
    observe=observe,
    advance=advance,
)
MOUNTAIN_CAR_CONTINUOUS = Environment(
    name="MountainCarContinuous-v0",
    horizon=999,
    threshold=90.0,
    lowest=(-0.6, 0.0),
    highest=(-0.4, 0.0),
    actions=0,
    largest_action=1.0,
    centre=(-0.5, 0.0),
    size=(0.5, 0.03),
    observe=observe,
    advance=advance_by_force,
)
