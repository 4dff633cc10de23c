r"""Schedules: a hyper-parameter as a function of the step alone, so that a resumed run needs no state of theirs.

Each is one formula for the value :math:`h_t` at step t, counted from 0. All but :class:`Constant` go from ``start`` to
``end`` in ``steps`` steps and stay there; with s the share of the way, :math:`s = \min(t / T, 1)`:

===========  =======================================================
name         value
===========  =======================================================
constant     ``value``
linear       start + s (end - start)
cosine       end + (start - end) (1 + cos(pi s)) / 2
exponential  start (end / start) ** s
===========  =======================================================
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar


class Schedule(ABC):
    """A number for every step.

    A schedule is a frozen dataclass: its fields are numbers, and a checkpoint keeps them with its ``name``.

    Args:
        name: What checkpoints call it.
    """

    name: ClassVar[str]

    @abstractmethod
    def at(self, step: int) -> float:
        """Return the value at a step, counted from 0."""

    @property
    @abstractmethod
    def lowest(self) -> float:
        """The smallest value that it takes at any step."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The same at every step.

    Args:
        value: The value.

    Example:
        >>> Constant(2.0).at(100)
        2.0
    """

    name: ClassVar[str] = "constant"
    value: float

    def at(self, step: int) -> float:
        """Return the value, whatever the step."""
        del step
        return self.value

    @property
    def lowest(self) -> float:
        """The value."""
        return self.value


@dataclass(frozen=True)
class _Ramp(Schedule):
    """From one value to another, and no further."""

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"{type(self).__name__}(steps={self.steps}): the way takes at least 1 step.")

    def share(self, step: int) -> float:
        """Return how much of the way is behind at a step, 0 to 1."""
        return min(max(step / self.steps, 0.0), 1.0)

    @property
    def lowest(self) -> float:
        """The smaller of the two ends, because the way between them is monotone."""
        return min(self.start, self.end)


@dataclass(frozen=True)
class Linear(_Ramp):
    r"""In equal steps: :math:`h_t = h_0 + \min(t / T, 1)\, (h_T - h_0)`.

    Args:
        start: Value :math:`h_0` at step 0.
        end: Value :math:`h_T` from step T on.
        steps: T, at least 1.

    Raises:
        ValueError: When there is no step to take.

    Example:
        >>> [Linear(2.0, 1.0, steps=4).at(step) for step in (0, 1, 4, 9)]
        [2.0, 1.75, 1.0, 1.0]
    """

    name: ClassVar[str] = "linear"

    def at(self, step: int) -> float:
        """Return the value at a step."""
        share = self.share(step)
        return (1 - share) * self.start + share * self.end


@dataclass(frozen=True)
class Cosine(_Ramp):
    r"""Slow at both ends: :math:`h_t = h_T + (h_0 - h_T)\, (1 + \cos(\pi \min(t / T, 1))) / 2`.

    Args:
        start: Value :math:`h_0` at step 0.
        end: Value :math:`h_T` from step T on.
        steps: T, at least 1.

    Raises:
        ValueError: When there is no step to take.

    Example:
        >>> [round(Cosine(2.0, 1.0, steps=4).at(step), 3) for step in (0, 1, 2, 4, 9)]
        [2.0, 1.854, 1.5, 1.0, 1.0]

    References:
        Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", arXiv 1608.03983 (one
        period of it).
    """

    name: ClassVar[str] = "cosine"

    def at(self, step: int) -> float:
        """Return the value at a step."""
        behind = (1 - math.cos(math.pi * self.share(step))) / 2
        return (1 - behind) * self.start + behind * self.end


@dataclass(frozen=True)
class Exponential(_Ramp):
    r"""By the same factor at every step: :math:`h_t = h_0\, (h_T / h_0)^{\min(t / T, 1)}`.

    Args:
        start: Value :math:`h_0` at step 0, above 0.
        end: Value :math:`h_T` from step T on, above 0.
        steps: T, at least 1.

    Raises:
        ValueError: When there is no step to take, or an end is not above 0.

    Example:
        >>> [Exponential(4.0, 1.0, steps=2).at(step) for step in (0, 1, 2, 9)]
        [4.0, 2.0, 1.0, 1.0]
    """

    name: ClassVar[str] = "exponential"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lowest > 0:
            raise ValueError(
                f"Exponential(start={self.start}, end={self.end}): a factor leads from one to the other only above 0."
            )

    def at(self, step: int) -> float:
        """Return the value at a step."""
        share = self.share(step)
        return float(self.start ** (1 - share) * self.end**share)


SCHEDULES: dict[str, type[Schedule]] = {kind.name: kind for kind in (Constant, Linear, Cosine, Exponential)}


def value_at(value: float | Schedule, step: int) -> float:
    """Return a hyper-parameter at a step, whether it is a number or follows a schedule.

    Example:
        >>> value_at(2.0, 7), value_at(Linear(2.0, 0.0, steps=4), 1)
        (2.0, 1.5)
    """
    return value.at(step) if isinstance(value, Schedule) else value


def lowest(value: float | Schedule) -> float:
    """Return the smallest value that a hyper-parameter takes, whether it is a number or follows a schedule."""
    return value.lowest if isinstance(value, Schedule) else value
