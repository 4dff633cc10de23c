r"""Move: particles one after the other, by an objective that keeps the costs exact in between.

In a usual step all particles move at once, each by costs that were found with the others at rest. Where what a particle
does changes what the next one should do, as two variables of one clause, that is wrong as soon as many move: an
objective that knows how costs change may move its particles itself, in turn (Gauss-Seidel instead of Jacobi). The verbs
stay: each particle's vertices are scored where the others are *now*, weighed by the group's transport, and it moves
before the next is looked at.

It does so where the transport draws a vertex. A barycentre is no vertex, so with any other transport the particles move
at once, as always.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from torch import nn

IN_TURN = "its module moves the particles one after the other, as the transport draws; processes do not share this work"


@dataclass(frozen=True)
class Turn:
    """What an objective needs to know to move its particles in a step.

    Args:
        epsilon: Temperature of the step, above 0; its unit is the objective's to say.
        share: Probability that a particle takes its turn: the group's ``lr``, 1 at the most.
        seed: Seed of the run.
        step: Optimizer step; with the seed it decides every draw.
        maximize: Whether to climb.
    """

    epsilon: float
    share: float
    seed: int
    step: int
    maximize: bool = False


class Moved(NamedTuple):
    """What an objective has done in a step.

    Args:
        candidates: Vertices that were weighed.
        squared_norm: Squared length of the step.
    """

    candidates: int
    squared_norm: float


@runtime_checkable
class MovesInTurn(Protocol):
    """A module that moves the particles of its own parameters, each of which is one number, one after the other."""

    def move_in_turn(self, turn: Turn) -> Moved:
        """Move, writing into the parameters; momentum, weight decay and the probe radius have no part in it."""
        ...


def movers_of(module: nn.Module) -> dict[nn.Parameter, MovesInTurn]:
    """Return which parts of a module move their parameters themselves, by parameter.

    Args:
        module: The module; of a part that has ``move_in_turn`` all parameters that it holds itself are its own.

    Example:
        >>> movers_of(nn.Linear(2, 2))
        {}
    """
    return {
        parameter: part
        for part in module.modules()
        if isinstance(part, MovesInTurn)
        for parameter in part.parameters(recurse=False)
    }
