"""What an environment is: the numbers of a control problem and three compiled functions of one state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Of the sequence that splitmix64 counts in, and of its two rounds of mixing.
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class World(Protocol):
    """What policies and their rollouts need to know of an environment, however its episodes are played."""

    @property
    def name(self) -> str:
        """As gymnasium registers it."""

    @property
    def horizon(self) -> int:
        """Steps after which an episode ends."""

    @property
    def threshold(self) -> float | None:
        """Mean return at which it counts as solved; None where none is registered."""

    @property
    def actions(self) -> int:
        """How many there are to choose from; 0 where an action is numbers."""

    @property
    def observations(self) -> int:
        """How many numbers a policy sees."""

    @property
    def outputs(self) -> int:
        """How many numbers a policy returns."""


@dataclass(frozen=True)
class Environment:
    r"""A control problem whose start is drawn uniformly and whose dynamics are a function of state and action.

    ``advance`` and ``observe`` work on one state in place; :func:`~lightning_polystep.environments.rollouts` compiles
    them into the loop over candidates and episodes, so that neither the number of these nor their order changes a bit.

    Args:
        name: As gymnasium registers it.
        horizon: Steps after which an episode ends.
        threshold: Mean return at which it counts as solved; None where none is registered.
        lowest: Where the coordinates of a start lie, from here ...
        highest: ... to here.
        actions: How many there are to choose from; 0 where an action is a number.
        largest_action: Of a number, which is kept within -largest_action and largest_action.
        centre: Of each observation, where policies see 0.
        size: Of each observation, what policies see as 1.
        observe: Compiled function (state, observation) that fills the observation.
        advance: Compiled function (state, action) that moves the state on by one step and returns (reward, over).

    Example:
        >>> from lightning_polystep.environments import ENVIRONMENTS
        >>> cart_pole = ENVIRONMENTS["CartPole-v1"]
        >>> cart_pole.starts(torch.tensor([7, 8])).shape
        torch.Size([2, 4])
    """

    name: str
    horizon: int
    threshold: float | None
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    actions: int
    centre: tuple[float, ...]
    size: tuple[float, ...]
    observe: Callable[[NDArray[np.float64], NDArray[np.float64]], None]
    advance: Callable[[NDArray[np.float64], float], tuple[float, bool]]
    largest_action: float = 0.0

    @property
    def observations(self) -> int:
        """How many numbers a policy sees."""
        return len(self.size)

    @property
    def outputs(self) -> int:
        """How many numbers a policy returns: a score for each action, or the action."""
        return self.actions or 1

    def starts(self, seeds: Tensor) -> Tensor:
        r"""Return the states in which episodes start: a function of their seeds alone.

        .. math:: s_j = l_j + u_j (h_j - l_j), \qquad u_j = \mathrm{splitmix64}(\mathit{seed}, j)\, 2^{-53}

        with l ``lowest``, h ``highest`` and the upper 53 bits of the hash.

        Args:
            seeds: Of the episodes, (N,), int64.

        Returns:
            The states, (N, S), float64.

        Raises:
            ValueError: If the seeds are no vector of int64.
        """
        if seeds.dtype != torch.int64 or seeds.ndim != 1:
            raise ValueError(
                f"{self.name}: episode seeds must be a vector of int64, got {seeds.dtype} of shape "
                f"{tuple(seeds.shape)}."
            )
        low, high = np.asarray(self.lowest), np.asarray(self.highest)
        counters = seeds.cpu().numpy().view(np.uint64)[:, None]
        with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
            mixed = _mixed(_mixed(counters) + np.arange(1, len(low) + 1, dtype=np.uint64) * np.uint64(_STEP))
        shares = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return torch.from_numpy(low + shares * (high - low))


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(_FIRST)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(_SECOND)
    mixed: NDArray[np.uint64] = bits ^ (bits >> np.uint64(31))
    return mixed


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function of one state; it stays callable from Python, for tests and pictures."""
    return numba.njit(function, error_model="numpy")
