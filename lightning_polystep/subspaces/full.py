"""Propose in the parameters' own coordinates: no basis at all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_polystep.particles import Block, InputStatistics
from lightning_polystep.subspaces.protocol import Subspace, some_axes


class FullSubspace(Subspace):
    """The coordinates themselves, times the block's ``scale``; a particle holds a few neighbouring coordinates.

    The number of candidates grows with the number of parameters: for small models, and for vectors such as biases,
    leaks and thresholds.

    References:
        PolyStep, arXiv 2605.01928 (particles of two coordinates).
    """

    name = "full"
    is_rotated = False

    def basis(
        self, block: Block, rank: int, group: dict[str, Any], statistics: InputStatistics | None, draw: torch.Generator
    ) -> Tensor:
        """Return B, shape (D, rank), float64: all coordinates, or a random choice of them when fewer are asked for."""
        del group, statistics
        return block.scale * some_axes(block.dim, rank, draw)
