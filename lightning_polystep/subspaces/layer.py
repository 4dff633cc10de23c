r"""Propose for a whole layer at once in a random low-rank subspace: the paper's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_polystep.particles import Block, InputStatistics
from lightning_polystep.subspaces.protocol import Subspace, scaled_by_layer


class LayerSubspace(Subspace):
    r"""A dense Gaussian basis of each layer, whose directions move all its weights and biases together.

    .. math:: B_{:,c} = \sqrt D\, \operatorname{diag}(s)\, g_c / \lVert g_c \rVert, \qquad g_c \sim \mathcal N(0, I_D),

    with D the numbers in the layer and :math:`s` = 1 over the root of the numbers in a row of it: at radius 1 a
    candidate moves the pre-activations of all its units by about 1 (root mean square) for inputs about 1. With
    ``particle_dim=8`` the ``rank`` directions are cut into particles of 8 coordinates, and with ``anchor_every=20`` the
    basis is kept for 20 steps and then drawn anew where the parameters are, as in the paper.

    It has not paid in any measurement of ours: a candidate that moves a whole layer costs a replay of nearly all of the
    step, and says less about each weight than one that moves a row (docs/paper.md).

    References:
        PolyStep, arXiv 2605.01928 (its per-layer subspace, absorbed every k steps).
    """

    name = "layer"
    is_rotated = False
    spans = "layer"

    def basis(
        self, block: Block, rank: int, group: dict[str, Any], statistics: InputStatistics | None, draw: torch.Generator
    ) -> Tensor:
        """Return B, shape (D, rank), float64."""
        del group, statistics
        columns = torch.randn(block.dim, rank, generator=draw, dtype=torch.float64)
        return scaled_by_layer(block, columns / columns.norm(dim=0))
