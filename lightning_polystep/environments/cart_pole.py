r"""A pole on a cart that is pushed to the left or to the right, to be kept upright.

With x the cart's place, θ the pole's angle, F = 10 N to either side, masses M = 1 (cart) and m = 0.1 (pole), half the
pole's length l = 0.5 and g = 9.8:

.. math::
    \ddot\theta &= \frac{g \sin\theta - \cos\theta\, \frac{F + m l \dot\theta^2 \sin\theta}{M + m}}
                        {l \left(\frac43 - \frac{m \cos^2\theta}{M + m}\right)} \\
    \ddot x &= \frac{F + m l (\dot\theta^2 \sin\theta - \ddot\theta \cos\theta)}{M + m}

integrated by Euler's method in steps of 0.02 s. An episode is over beyond 2.4 m or 12 degrees; each step earns 1.

Source: Barto, Sutton & Anderson 1983, *Neuronlike adaptive elements*, as gymnasium's ``CartPole-v1`` sets it up.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lightning_polystep.environments.protocol import Environment, compiled

_GRAVITY, _CART, _POLE, _HALF_LENGTH, _FORCE, _SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
_FARTHEST, _STEEPEST = 2.4, 12 * math.pi / 180


@compiled
def observe(state: NDArray[np.float64], observation: NDArray[np.float64]) -> None:
    """See the whole state: place, speed, angle, angular speed."""
    observation[:] = state


@compiled
def advance(state: NDArray[np.float64], action: float) -> tuple[float, bool]:
    """Push to the left (0) or to the right (1) for one step."""
    x, speed, angle, spin = state[0], state[1], state[2], state[3]
    force = _FORCE if action > 0.5 else -_FORCE
    mass = _CART + _POLE
    sine, cosine = math.sin(angle), math.cos(angle)
    push = (force + _POLE * _HALF_LENGTH * spin * spin * sine) / mass
    angular = (_GRAVITY * sine - cosine * push) / (_HALF_LENGTH * (4.0 / 3.0 - _POLE * cosine * cosine / mass))
    state[0] = x + _SECONDS * speed
    state[1] = speed + _SECONDS * (push - _POLE * _HALF_LENGTH * angular * cosine / mass)
    state[2] = angle + _SECONDS * spin
    state[3] = spin + _SECONDS * angular
    return 1.0, abs(state[0]) > _FARTHEST or abs(state[2]) > _STEEPEST


CART_POLE = Environment(
    name="CartPole-v1",
    horizon=500,
    threshold=475.0,
    lowest=(-0.05,) * 4,
    highest=(0.05,) * 4,
    actions=2,
    centre=(0.0,) * 4,
    size=(1.0, 1.0, 0.2, 1.0),
    observe=observe,
    advance=advance,
)
