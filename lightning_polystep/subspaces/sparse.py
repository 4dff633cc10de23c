r"""Propose along directions that touch few coordinates each, and no coordinate twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_polystep.particles import Block, InputStatistics
from lightning_polystep.subspaces.protocol import Subspace


class SparseSubspace(Subspace):
    r"""A random partition of the coordinates, one part for each direction, with random signs.

    .. math:: B_{jc} = \frac{s\, \sigma_j}{\sqrt{|P_c|}} \quad\text{where } j \in P_c, \text{ else } 0,

    with :math:`P_1, \dots, P_k` a random partition of the D coordinates into parts whose sizes differ by one at most,
    :math:`\sigma_j` random signs and s the block's ``scale``: columns are orthonormal but for s, have D / k numbers
    each, and together reach every coordinate. Radii are in units of weight-space norm, as for "gaussian".

    It has not paid in any measurement of ours: on digits it is about level with "gaussian", and up to a point behind
    "inputs" (docs/paper.md).

    References:
        PolyStep, arXiv 2605.01928; Charikar, Chen and Farach-Colton 2002, *Finding frequent items in data streams* (one
        random part and sign for each coordinate).
    """

    name = "sparse"
    is_rotated = False

    def basis(
        self, block: Block, rank: int, group: dict[str, Any], statistics: InputStatistics | None, draw: torch.Generator
    ) -> Tensor:
        """Return B, shape (D, rank), float64."""
        del group, statistics
        part = torch.arange(block.dim) % rank
        place = torch.randperm(block.dim, generator=draw)
        signs = 2.0 * torch.randint(2, (block.dim,), generator=draw).double() - 1.0
        columns = torch.zeros(block.dim, rank, dtype=torch.float64)
        columns[place, part] = signs
        return block.scale * columns / columns.norm(dim=0)
