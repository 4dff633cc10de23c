r"""Propose for a whole layer at once along products of two small factors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_polystep.noise import gaussian, low_rank
from lightning_polystep.particles import Block, InputStatistics
from lightning_polystep.subspaces.protocol import Subspace, scaled_by_layer

_FACTOR_RANK = 4


class FactoredSubspace(Subspace):
    r"""Random directions of a layer that are products of two small factors.

    .. math:: B_{:,c} = \sqrt D\, \operatorname{diag}(s)\, z_c / \lVert z_c \rVert, \qquad
              z_c = \bigl(\operatorname{vec}(P_c Q_c^\top), b_c\bigr),

    with standard normal :math:`P_c` (units x 4), :math:`Q_c` (inputs x 4) and, for the biases, :math:`b_c`; D and s as
    in :class:`~lightning_polystep.subspaces.LayerSubspace`. A direction is drawn by 4 (units + inputs) numbers.

    It has not paid in any measurement of ours, for the reason that ``LayerSubspace`` gives; what it could save, drawing
    and sending directions, is a small part of a step here (docs/paper.md).

    References:
        PolyStep, arXiv 2605.01928; Sarkar et al. 2025, arXiv 2511.16652 (perturbations of low rank).
    """

    name = "factored"
    is_rotated = False
    spans = "layer"

    def basis(
        self, block: Block, rank: int, group: dict[str, Any], statistics: InputStatistics | None, draw: torch.Generator
    ) -> Tensor:
        """Return B, shape (D, rank), float64."""
        del group, statistics
        shapes = [parameter.shape for parameter in block.parameters]
        if block.rows == 1 and shapes:
            columns = low_rank(shapes, rank, draw, rank=_FACTOR_RANK).T
        else:  # a row by itself has nothing to be factored
            columns = gaussian([torch.Size([block.dim])], rank, draw).T
        return scaled_by_layer(block, columns / columns.norm(dim=0))
