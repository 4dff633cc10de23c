"""What a transport is: a small protocol whose docstring is the specification."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor


class Weights(NamedTuple):
    """What a transport returns.

    Args:
        weights: W, the shape of the costs, each at least 0, summing to 1 over the last dimension.
        marginal_error: How far the columns' shares of all weight are from those that were asked for: the sum over the
            columns of the absolute differences, 0 to 2, of the particle place where it is largest; 0 where nothing was
            asked for. A scalar.
        converged: Whether the weights are those of the equation, to the tolerance that was asked for.
    """

    weights: Tensor
    marginal_error: Tensor
    converged: bool = True


class Transport(ABC):
    r"""Turns the costs of particles' vertices into weights.

    A transport inherits from this class and is a frozen dataclass: its fields are its hyper-parameters, numbers,
    strings, None or tuples of them, which a checkpoint keeps with its ``name``. It holds no state. The temperature is
    not among them: it is ``epsilon`` of the parameter group, because every transport has one and it may follow a
    schedule.

    **Rows and columns.** The paper's cost matrix has a row for each particle and a column for each vertex. Here a block
    of U rows (units) with P particles in each has P such matrices of shape U x m, one for each *place* p in a row: the
    particles ``costs[:, p]`` are probed in the same m directions, so a column, ``costs[:, p, v]``, is one direction for
    all units of a layer. By default P = 1: the particles of a block are one matrix. Weights sum to 1 over
    a row; what a column may sum to is what transports differ in.

    Args:
        name: What the option ``transport`` and checkpoints call it.
        draws: Whether it draws: ``weigh`` is then given a generator.
    """

    name: ClassVar[str]
    draws: ClassVar[bool] = False

    @property
    def least_rows(self) -> int:
        """How many rows it needs to have a choice; blocks of fewer are weighed by a softmax, which is said once."""
        return 1

    @abstractmethod
    def weigh(self, costs: Tensor, epsilon: float, draw: torch.Generator | None = None) -> Weights:
        """Weigh the vertices; no part of it is differentiated.

        Args:
            costs: C, shape (rows, particles per row, m), float64: lower is better, infinite where the loss was not
                finite, which gets weight 0; in units of the row's spread
                (:func:`~lightning_polystep.transport.normalise.normalise`).
            epsilon: Temperature, above 0, in the same units.
            draw: Source of randomness, on the CPU, a function of (seed, step, block); None unless ``draws``.

        Returns:
            The weights and what there is to say about them. A particle without any finite cost is weighed evenly, so
            that it goes nowhere.
        """


def finite_somewhere(costs: Tensor) -> Tensor:
    """Tell which particles have any finite cost, shape (..., 1) for costs of shape (..., m)."""
    return torch.isfinite(costs).any(dim=-1, keepdim=True)
