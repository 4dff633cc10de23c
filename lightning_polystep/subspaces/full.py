"""Propose in the parameters' own coordinates: no basis at all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_polystep.particles import Block, InputStatistics
from lightning_polystep.subspaces.protocol import Subspace


class FullSubspace(Subspace):
    """The coordinates themselves, times the block's ``scale``; a particle holds a few neighbouring coordinates.

    The number of candidates grows with the number of parameters: for small models, and for vectors such as biases,
    leaks and thresholds.

    References:
        PolyStep, arXiv 2605.01928 (particles of two coordinates).
    """

    name = "full"
    is_rotated = False

    def rank(self, block: Block, group: dict[str, Any], statistics: InputStatistics | None) -> int:
        """Return D, the coordinates of a particle."""
        del group, statistics
        return block.dim

    def basis(
        self, block: Block, rank: int, group: dict[str, Any], statistics: InputStatistics | None, draw: torch.Generator
    ) -> Tensor:
        """Return B, shape (D, rank), float64: all coordinates, or a random choice of them when fewer are asked for."""
        del group, statistics
        chosen = torch.randperm(block.dim, generator=draw)[:rank].sort().values
        return block.scale * torch.eye(block.dim, dtype=torch.float64)[:, chosen]
