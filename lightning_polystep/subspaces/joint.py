r"""Propose for all parameters at once: one particle is the whole network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_polystep.particles import Block, InputStatistics
from lightning_polystep.polytopes import haar_frame
from lightning_polystep.subspaces.protocol import Subspace, scaled_by_layer


class JointSubspace(Subspace):
    r"""Random directions in which all parameters of a group move together, each in its own scale.

    .. math:: B = \sqrt D\, \operatorname{diag}(s)\, Q,

    with Q (D x rank) a Haar-random frame, fresh each step, and :math:`s` = 1 over the root of the numbers in a row of
    the parameter's layer: at radius 1 a candidate moves the pre-activations of all units by about 1 (root mean square)
    for inputs about 1.

    For objectives that look at what a network does in the end, as the return of a policy: there a change of one unit
    rarely shows, and rows that are moved by their own merits do not add up. A step then costs ``rank`` times the
    vertices' number, whatever the network's size.

    References:
        Salimans et al. 2017, arXiv 1703.03864 (all parameters perturbed together); Choromanski et al. 2018, arXiv
        1804.02395 (orthogonal directions); the softmax step is PolyStep, arXiv 2605.01928.
    """

    name = "joint"
    is_rotated = True
    spans = "group"

    def basis(
        self, block: Block, rank: int, group: dict[str, Any], statistics: InputStatistics | None, draw: torch.Generator
    ) -> Tensor:
        """Return B, shape (D, rank), float64."""
        del group, statistics
        return scaled_by_layer(block, haar_frame(block.dim, rank, draw))
