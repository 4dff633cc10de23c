r"""Propose in a random low-rank subspace: for parameters that multiply no input, and for comparison with the paper."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_polystep.particles import Block, InputStatistics
from lightning_polystep.subspaces.protocol import Subspace


class GaussianSubspace(Subspace):
    r"""A fresh dense Gaussian basis each step, its columns of unit norm.

    .. math:: B_{:,c} = s\, g_c / \lVert g_c \rVert, \qquad g_c \sim \mathcal N(0, I_D),

    with s the block's ``scale``: radii are in units of weight-space norm.

    References:
        PolyStep, arXiv 2605.01928 (its per-layer subspace).
    """

    name = "gaussian"
    is_rotated = False

    def basis(
        self, block: Block, rank: int, group: dict[str, Any], statistics: InputStatistics | None, draw: torch.Generator
    ) -> Tensor:
        """Return B, shape (D, rank), float64."""
        del group, statistics
        columns = torch.randn(block.dim, rank, generator=draw, dtype=torch.float64)
        return block.scale * columns / columns.norm(dim=0)
