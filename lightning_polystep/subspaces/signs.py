r"""Propose both signs of numbers that act by their signs alone."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor

from lightning_polystep.particles import Block, InputStatistics, Proposal
from lightning_polystep.subspaces.protocol import Subspace, some_axes


class SignSubspace(Subspace):
    r"""Numbers that count by their signs, as the truth values of a formula: each a particle of two vertices.

    .. math:: B = 2 I, \qquad x_i \pm 2 \text{ has the sign } \pm 1 \text{ whatever } x_i \in [-1, 1] \text{ is,}

    and a step ends in [-1, 1], from where one vertex each way reaches both signs at the next. (Where numbers may grow
    beyond what is probed, no candidate changes a sign any more and a search stands still.) Of binary weights, which are
    as large as their author made them, s takes the place of 1: the power of two that bounds them. A row that has no
    signal, as a variable that is in no clause of interest, is not probed wider: there is nothing beyond the two signs.

    It is chosen by the module that holds a parameter, in ``own_subspaces``, or where the tape shows that only the signs
    of weights matter (:func:`~lightning_polystep.tape.signs.acts_by_signs`), not by the option ``subspace``.

    References:
        PolyStep, arXiv 2605.01928 (its MAX-SAT task has one logit per variable).
    """

    name = "signs"
    is_rotated = True
    particle_dim = 1
    full_rank = sys.maxsize
    adapts_reach = False

    def basis(
        self, block: Block, rank: int, group: dict[str, Any], statistics: InputStatistics | None, draw: torch.Generator
    ) -> Tensor:
        """Return B, shape (D, rank), float64: all numbers, or a random choice of them when fewer are asked for."""
        del group, statistics
        return 2.0 * _unit(block) * some_axes(block.dim, rank, draw)

    def probe_radius(self, group: dict[str, Any]) -> float:
        """Return 1: a sign has no radius."""
        del group
        return 1.0

    def settle(self, proposal: Proposal, before: Tensor) -> None:
        """Keep the numbers in [-s, s]."""
        for parameter in proposal.block.parameters:
            unit = _unit(proposal.block, before)
            parameter.clamp_(-unit, unit)


def _unit(block: Block, before: Tensor | None = None) -> float:
    """Return s, of the numbers as they are or as they were before a step."""
    if not block.by_signs:
        return 1.0
    largest = float((block.parameters[0].detach() if before is None else before).abs().max())
    return 2.0 ** math.ceil(math.log2(largest)) if 0 < largest < math.inf else 1.0
