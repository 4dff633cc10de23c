"""Visit the variables of a formula one after the other, each drawn to one of its two values by what that costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from lightning_polystep.kernels.clause_sweep.layout import ClauseLayout
from lightning_polystep.kernels.dispatch import Kernel

_KERNEL = Kernel("clause_sweep")


@dataclass
class SweepState:
    """What a sweep changes in place.

    Args:
        values: The assignment x, shape (n,), bool, on the CPU.
        costs: What flipping each variable would cost, shape (n,), in the layout's dtype.
        weight: Weight of the clauses that are not satisfied.
        violated: How many of the hard ones among them.
        flips: Flips made so far.
    """

    values: Tensor
    costs: NDArray[Any]
    weight: int
    violated: int
    flips: int = 0


@dataclass(frozen=True)
class Draws:
    """How variables are drawn.

    Args:
        temperature: T, above 0, in units of weight.
        metropolis: Whether a flip is accepted with min(1, exp(-d / T)), where d is what it costs; else it is drawn from
            the two-vertex plan, 1 / (1 + exp(d / T)).
        share: Probability, above 0 and at most 1, that a variable is visited in a sweep.
        seed: Of the draws: the one for a variable is a function of (seed, sweep, variable), not of the order.
        sweeps: The sweeps to make.
    """

    temperature: float
    metropolis: bool
    share: float
    seed: int
    sweeps: range


def clause_sweep(state: SweepState, layout: ClauseLayout, draws: Draws) -> None:
    r"""Sweep over all variables, in the order of the layout; a variable sees what those before it have done.

    With :math:`d_v` what flipping v costs now, the plan of a particle with the vertices "stay" and "flip" is
    :math:`W = \mathrm{softmax}(-(0, d_v) / T)`, and v is flipped with probability

    .. math:: P_v = s \cdot W_{v,\mathrm{flip}} \quad\text{(heat bath)} \qquad\text{or}\qquad
              P_v = s \cdot \min(1, W_{v,\mathrm{flip}} / W_{v,\mathrm{stay}}) \quad\text{(Metropolis)}.

    A flip updates the counts of true literals of its clauses, and from them the costs of their variables: all costs
    stay exact.

    Args:
        state: The assignment with its costs; changed in place.
        layout: The clauses; counts in it are changed in place.
        draws: Temperature, rule and seed.

    References:
        Geman and Geman 1984 (heat bath); Kirkpatrick, Gelatt and Vecchi 1983, "Optimization by simulated annealing"
        (Metropolis, which with a falling temperature this is); Steele, Lea and Flood 2014 (SplitMix64, the draws).
    """
    _KERNEL(state.values, state, layout, draws)


__all__ = ["ClauseLayout", "Draws", "SweepState", "clause_sweep"]
