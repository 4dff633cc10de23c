r"""A pendulum with a motor too weak to lift it at once, to be swung up and held.

With θ = 0 upright, g = 10, length and mass 1 and the torque u in [-2, 2]:

.. math::
    \dot\theta \leftarrow \operatorname{clip}\left(\dot\theta + 0.05 \left(\tfrac{3 g}{2} \sin\theta + 3 u\right), \pm 8
    \right), \qquad \theta \leftarrow \theta + 0.05\, \dot\theta

Each step costs :math:`\theta^2 + 0.1 \dot\theta^2 + 0.001 u^2` of the state before it, the angle between -π and π.

Source: gymnasium's ``Pendulum-v1``, whose documentation states these equations.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lightning_polystep.environments.protocol import Environment, compiled

_GRAVITY, _SECONDS, _FASTEST, _STRONGEST = 10.0, 0.05, 8.0, 2.0


@compiled
def observe(state: NDArray[np.float64], observation: NDArray[np.float64]) -> None:
    """See cosine and sine of the angle, and the angular speed."""
    observation[0], observation[1], observation[2] = math.cos(state[0]), math.sin(state[0]), state[1]


@compiled
def advance(state: NDArray[np.float64], action: float) -> tuple[float, bool]:
    """Apply a torque from -2 to 2."""
    torque = min(max(action, -_STRONGEST), _STRONGEST)
    angle, spin = state[0], state[1]
    distance = (angle + math.pi) % (2 * math.pi) - math.pi
    cost = distance * distance + 0.1 * spin * spin + 0.001 * torque * torque
    spin += _SECONDS * (1.5 * _GRAVITY * math.sin(angle) + 3.0 * torque)
    spin = min(max(spin, -_FASTEST), _FASTEST)
    state[0], state[1] = angle + _SECONDS * spin, spin
    return -cost, False


PENDULUM = Environment(
    name="Pendulum-v1",
    horizon=200,
    threshold=None,
    lowest=(-math.pi, -1.0),
    highest=(math.pi, 1.0),
    actions=0,
    largest_action=_STRONGEST,
    centre=(0.0,) * 3,
    size=(1.0, 1.0, 4.0),
    observe=observe,
    advance=advance,
)
