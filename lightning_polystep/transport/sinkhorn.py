r"""Transport: two-sided entropic optimal transport, by Sinkhorn's iterations in the log domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_polystep.transport.columns import ColumnShares, scale_in_turns
from lightning_polystep.transport.protocol import Weights


@dataclass(frozen=True, kw_only=True)
class Sinkhorn(ColumnShares):
    r"""Every vertex gets its share of all weight, as every particle has its own.

    Solves, over the matrix of a place of particles (rows i, columns v, see :class:`Transport`),

    .. math:: \min_{W \ge 0} \sum_{iv} W_{iv} C_{iv} + \varepsilon \sum_i \mathrm{KL}(W_i \,\|\, u)
              \quad \text{with} \quad \sum_v W_{iv} = 1, \qquad \sum_i W_{iv} = n\, b_v,

    with n rows, b = ``columns`` and u the uniform law. The solution is
    :math:`W_{iv} = \exp(f_i + g_v - C_{iv} / \varepsilon)`; f and g, for the rows and the columns, are set in turns.

    A column is one direction, shared by all units of a layer. With uniform shares, on the vertices of a polytope that
    sum to zero, **the moves of all units sum to zero**: what is good for every unit alike cancels, and units are told
    apart. A softmax lets them all go the same way. On one row nothing would be left to move; a block of one row is
    therefore weighed by a softmax, and the optimizer says so.

    Args:
        columns: Share of all weight that each vertex is to get, m numbers above 0 that sum to 1, in the order of the
            polytope's vertices; None for 1 / m each.
        tolerance: Above 0; iterations end when none changes a column's scale by more than this share of it.
        iterations: At least 1; how many there may be. Where they do not suffice, rows still sum to 1, columns are as
            far off as ``polystep/marginal_error`` says, and the optimizer warns once.

    Raises:
        ValueError: When a value is out of its range, or there are more or fewer shares than vertices.

    Example:
        Both particles prefer the first vertex, the second one less so:

        >>> costs = torch.tensor([[[0.0, 2.0]], [[0.0, 1.0]]])
        >>> weights, error, _ = Sinkhorn().weigh(costs, epsilon=1.0)
        >>> weights[:, 0]
        tensor([[0.6225, 0.3775],
                [0.3775, 0.6225]])

    References:
        Cuturi 2013, "Sinkhorn Distances", arXiv 1306.0895; Peyre and Cuturi, "Computational Optimal Transport" (2019),
        section 4.4 (log domain); with polytopes: Le et al. 2023, "Accelerating Motion Planning via Optimal Transport",
        arXiv 2309.15970; PolyStep, arXiv 2605.01928, appendix K.
    """

    name: ClassVar[str] = "sinkhorn"

    @property
    def least_rows(self) -> int:
        """Two: on one row the columns alone say what the weights are."""
        return 2

    def weigh(self, costs: Tensor, epsilon: float, draw: torch.Generator | None = None) -> Weights:
        """Weigh the vertices of each particle, shape (rows, particles per row, m)."""
        del draw
        return scale_in_turns(costs, epsilon, self, pull=1.0)
