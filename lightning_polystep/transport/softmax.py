r"""Transport: one-sided entropic optimal transport, whose solution is a softmax per row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_polystep.transport.protocol import Transport, Weights, finite_somewhere
from lightning_polystep.transport.vertices import softmax_over_vertices


@torch.no_grad()
def softmax_transport(costs: Tensor, epsilon: float) -> Tensor:
    r"""Weigh the vertices of each particle by the one-sided entropic optimal transport plan.

    Solves, for each row on its own,

    .. math:: \min_{W \ge 0,\ \sum_v W_{iv} = 1} \sum_v W_{iv} C_{iv} + \varepsilon\, \mathrm{KL}(W_i \,\|\, u),
              \qquad W_{iv} = \frac{\exp(-C_{iv} / \varepsilon)}{\sum_w \exp(-C_{iw} / \varepsilon)},

    with u the uniform law over the vertices; only the rows' sums are fixed, hence "one-sided".

    Args:
        costs: C, shape (..., m), any float dtype. An infinite cost gets weight 0: it can never win.
        epsilon: :math:`\varepsilon`, in the unit of ``costs``, above 0. Small: the best vertex takes all.

    Returns:
        W, the shape and dtype of ``costs``; each row sums to 1. A row without any finite cost is uniform.

    Example:
        >>> softmax_transport(torch.tensor([[0.0, 0.0, float("inf")]]), epsilon=1.0)
        tensor([[0.5000, 0.5000, 0.0000]])

    References:
        PolyStep, arXiv 2605.01928, section 3; Peyre and Cuturi, "Computational Optimal Transport" (2019), section 4.
    """
    weights = softmax_over_vertices(-costs / epsilon)
    return torch.where(finite_somewhere(costs), weights, 1.0 / costs.shape[-1])


@dataclass(frozen=True)
class Softmax(Transport):
    r"""Each particle by itself: :math:`W = \mathrm{softmax}(-C / \varepsilon)`, the default and the paper's own.

    :func:`softmax_transport` has the equation. Columns may sum to anything, so ``marginal_error`` is 0.

    Example:
        >>> Softmax().weigh(torch.tensor([[[0.0, 1.0]]]), epsilon=0.5).weights
        tensor([[[0.8808, 0.1192]]])

    References:
        PolyStep, arXiv 2605.01928, section 3.
    """

    name: ClassVar[str] = "softmax"

    def weigh(self, costs: Tensor, epsilon: float, draw: torch.Generator | None = None) -> Weights:
        """Weigh the vertices of each particle, shape (rows, particles per row, m)."""
        del draw
        return Weights(softmax_transport(costs, epsilon), costs.new_zeros(()))
