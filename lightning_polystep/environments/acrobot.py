r"""Two links hang from a joint; a torque at the joint between them is to swing the tip up, above one link's length.

With both lengths and masses 1, centres of mass at 1/2, moments of inertia 1, g = 9.8 and the torque τ in {-1, 0, 1}:

.. math::
    d_1 &= \tfrac14 + (1 + \tfrac14 + \cos\theta_2) + 2, \qquad d_2 = \tfrac14 + \tfrac12 \cos\theta_2 + 1 \\
    \phi_2 &= \tfrac12 g \cos(\theta_1 + \theta_2 - \tfrac\pi2) \\
    \phi_1 &= -\tfrac12 \dot\theta_2^2 \sin\theta_2 - \dot\theta_2 \dot\theta_1 \sin\theta_2
              + \tfrac32 g \cos(\theta_1 - \tfrac\pi2) + \phi_2 \\
    \ddot\theta_2 &= \frac{\tau + \tfrac{d_2}{d_1} \phi_1 - \tfrac12 \dot\theta_1^2 \sin\theta_2 - \phi_2}
                          {\tfrac54 - d_2^2 / d_1}, \qquad
    \ddot\theta_1 = -\frac{d_2 \ddot\theta_2 + \phi_1}{d_1}

integrated by the classical Runge-Kutta method in steps of 0.2 s; angles are wrapped, speeds kept within 4 π and 9 π.
Each step costs 1, but for the last, in which :math:`-\cos\theta_1 - \cos(\theta_1 + \theta_2) > 1`.

Source: Sutton 1996, *Generalization in reinforcement learning*, in the form of Sutton & Barto's book, as gymnasium's
``Acrobot-v1`` sets it up.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lightning_polystep.environments.protocol import Environment, compiled

_GRAVITY, _SECONDS = 9.8, 0.2
_FASTEST_UPPER, _FASTEST_LOWER = 4 * math.pi, 9 * math.pi


@compiled
def observe(state: NDArray[np.float64], observation: NDArray[np.float64]) -> None:
    """See cosine and sine of both angles, and both angular speeds."""
    observation[0], observation[1] = math.cos(state[0]), math.sin(state[0])
    observation[2], observation[3] = math.cos(state[1]), math.sin(state[1])
    observation[4], observation[5] = state[2], state[3]


@compiled
def accelerations(
    upper: float, lower: float, upper_spin: float, lower_spin: float, torque: float
) -> tuple[float, float]:
    """Return the angular accelerations of both joints."""
    sine, cosine = math.sin(lower), math.cos(lower)
    d1 = 0.25 + (1.25 + cosine) + 2.0
    d2 = 0.25 + 0.5 * cosine + 1.0
    phi2 = 0.5 * _GRAVITY * math.cos(upper + lower - math.pi / 2)
    phi1 = -0.5 * lower_spin * lower_spin * sine - lower_spin * upper_spin * sine
    phi1 += 1.5 * _GRAVITY * math.cos(upper - math.pi / 2) + phi2
    second = (torque + d2 / d1 * phi1 - 0.5 * upper_spin * upper_spin * sine - phi2) / (1.25 - d2 * d2 / d1)
    return -(d2 * second + phi1) / d1, second


@compiled
def wrapped(angle: float) -> float:
    """Return an angle between -π and π."""
    while angle > math.pi:
        angle -= 2 * math.pi
    while angle < -math.pi:
        angle += 2 * math.pi
    return angle


@compiled
def advance(state: NDArray[np.float64], action: float) -> tuple[float, bool]:
    """Apply the torque ``action`` - 1 for one step."""
    torque, half = action - 1.0, 0.5 * _SECONDS
    a, b, u, v = state[0], state[1], state[2], state[3]
    u1, v1 = accelerations(a, b, u, v, torque)
    u2, v2 = accelerations(a + half * u, b + half * v, u + half * u1, v + half * v1, torque)
    u3, v3 = accelerations(a + half * (u + half * u1), b + half * (v + half * v1), u + half * u2, v + half * v2, torque)
    u4, v4 = accelerations(
        a + _SECONDS * (u + half * u2), b + _SECONDS * (v + half * v2), u + _SECONDS * u3, v + _SECONDS * v3, torque
    )
    sixth = _SECONDS / 6.0
    # The four slopes of the angles are the speeds at the four points.
    a += sixth * (u + 2 * (u + half * u1) + 2 * (u + half * u2) + (u + _SECONDS * u3))
    b += sixth * (v + 2 * (v + half * v1) + 2 * (v + half * v2) + (v + _SECONDS * v3))
    u += sixth * (u1 + 2 * u2 + 2 * u3 + u4)
    v += sixth * (v1 + 2 * v2 + 2 * v3 + v4)
    state[0], state[1] = wrapped(a), wrapped(b)
    state[2] = min(max(u, -_FASTEST_UPPER), _FASTEST_UPPER)
    state[3] = min(max(v, -_FASTEST_LOWER), _FASTEST_LOWER)
    over = -math.cos(state[0]) - math.cos(state[1] + state[0]) > 1.0
    return (0.0 if over else -1.0), over


ACROBOT = Environment(
    name="Acrobot-v1",
    horizon=500,
    threshold=-100.0,
    lowest=(-0.1,) * 4,
    highest=(0.1,) * 4,
    actions=3,
    centre=(0.0,) * 6,
    size=(1.0, 1.0, 1.0, 1.0, 4.0, 9.0),
    observe=observe,
    advance=advance,
)
