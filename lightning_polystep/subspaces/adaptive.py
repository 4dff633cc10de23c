r"""Propose partly along what the rows have done lately, partly at random."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_polystep.last_moves import leading_directions
from lightning_polystep.particles import Block
from lightning_polystep.polytopes import haar_rotation
from lightning_polystep.subspaces.gaussian import GaussianSubspace


class AdaptiveSubspace(GaussianSubspace):
    r"""Half of the directions span what the rows' last moves have in common, the others are Gaussian.

    With M the moving average of the rows' moves (rows x D), :math:`v_1, v_2, \dots` its right singular vectors, h at
    most half of the rank and of M's, and Q a Haar-random rotation (h x h), fresh each step,

    .. math:: B_{:,1 \dots h} = s\, (v_1, \dots, v_h)\, Q, \qquad
              B_{:,c} = s\, g_c / \lVert g_c \rVert, \quad g_c \sim \mathcal N(0, I_D), \quad c > h,

    with s the block's ``scale``. Before the first move all directions are Gaussian. Radii are in units of weight-space
    norm.

    It has not paid in any measurement of ours: on digits it is no better than "gaussian" (docs/paper.md).

    References:
        PolyStep, arXiv 2605.01928; Maheswaranathan et al. 2019, *Guided evolutionary strategies*, arXiv 1806.10230 (a
        search in a guiding subspace and beside it; here past moves guide).
    """

    name = "adaptive"
    follows_moves = True

    def guided(self, basis: Tensor, block: Block, moves: Tensor, draw: torch.Generator) -> Tensor:
        """Return B with its first columns turned to what the rows' moves have in common."""
        leading = leading_directions(moves.cpu(), basis.shape[1] // 2)
        count = leading.shape[1]
        if not count:
            return basis
        mixed = block.scale * leading @ haar_rotation(count, draw)
        return torch.cat([mixed.to(basis), basis[:, count:]], dim=1)
