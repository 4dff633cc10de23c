"""An hourly series by formula, in the place of ETTh1's: load, air and oil of a power transformer."""

import math

import torch
from torch import Tensor

from lightning_polystep.randomness import generator

COLUMNS = ("load", "ambient", "oil")

# IEC 60076-7, of a medium or large transformer with fans: loss ratio R, exponent x, temperature rise at rated load in
# kelvin, and time constant in hours.
_LOSS_RATIO, _EXPONENT, _RATED_RISE, _HOURS = 6.0, 0.8, 52.0, 2.5
_DAY, _WEEK, _YEAR = 24.0, 168, 8760.0


def transformer_series(hours: int, seed: int = 0) -> Tensor:
    r"""Simulate a transformer hour by hour.

    With t the hour from 0 (a Monday, the first of January) and :math:`\phi(p, t_0) = \cos(2 \pi (t - t_0) / p)`,

    .. math::
        K_t &= \max\bigl(0,\; w_t\, (0.75 - 0.25\, \phi(24, 3) - 0.1\, \phi(12, 2)) + a_t\bigr) \\
        \theta^a_t &= 12 - 10\, \phi(8760, 480) - 5\, \phi(24, 3) + b_t \\
        \theta^o_{t+1} &= \theta^o_t + (1 - e^{-1/\tau}) \left(
            \left(\tfrac{1 + K_t^2 R}{1 + R}\right)^x \Delta\theta + \theta^a_t - \theta^o_t \right)

    where :math:`w_t` is 0.75 on Saturdays and Sundays and 1 on other days, :math:`a_t = 0.95\, a_{t-1} + 0.03\, z`
    and :math:`b_t = 0.98\, b_{t-1} + 0.5\, z'` with standard normal z and z'. The oil follows the load by the top-oil
    equation of IEC 60076-7, with R = 6, x = 0.8, :math:`\Delta\theta` = 52 K and :math:`\tau` = 2.5 h: it is a
    non-linear function of the load, delayed.

    Args:
        hours: Length of the series, at least 1.
        seed: Of the noise.

    Returns:
        Load factor K, ambient and oil temperature in degrees Celsius, shape (hours, 3), float64.

    Example:
        >>> series = transformer_series(48)
        >>> series.shape, bool((series[:, 0] >= 0).all())
        (torch.Size([48, 3]), True)

    References:
        IEC 60076-7:2018, *Loading guide for mineral-oil-immersed power transformers* (its differential equation of the
        top-oil temperature, here without that of the windings).
    """
    t = torch.arange(hours, dtype=torch.float64)
    noise = torch.randn(hours, 2, generator=generator(seed, 0, "transformer"), dtype=torch.float64)
    weekday = torch.where((t / _DAY).floor() % 7 < 5, 1.0, 0.75)
    daily = 0.75 - 0.25 * _cycle(t, _DAY, 3.0) - 0.1 * _cycle(t, _DAY / 2, 2.0)
    load = (weekday * daily + _autoregression(0.95, 0.03 * noise[:, 0])).clamp(min=0.0)
    ambient = 12.0 - 10.0 * _cycle(t, _YEAR, 480.0) - 5.0 * _cycle(t, _DAY, 3.0)
    ambient = ambient + _autoregression(0.98, 0.5 * noise[:, 1])
    settled = ((1.0 + _LOSS_RATIO * load.square()) / (1.0 + _LOSS_RATIO)).pow(_EXPONENT) * _RATED_RISE + ambient
    share = 1.0 - math.exp(-1.0 / _HOURS)
    oil = [float(settled[0])]
    for goal in settled[:-1].tolist():
        oil.append(oil[-1] + share * (goal - oil[-1]))
    return torch.stack([load, ambient, torch.tensor(oil, dtype=torch.float64)], dim=1)


def _cycle(t: Tensor, period: float, start: float) -> Tensor:
    return torch.cos(2.0 * math.pi * (t - start) / period)


def _autoregression(memory: float, noise: Tensor) -> Tensor:
    values, last = [], 0.0
    for step in noise.tolist():
        last = memory * last + step
        values.append(last)
    return torch.tensor(values, dtype=torch.float64)
