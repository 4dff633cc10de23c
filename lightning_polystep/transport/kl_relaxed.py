r"""Transport: between one-sided and two-sided, the columns' shares being a wish with a price."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_polystep.transport.columns import ColumnShares, scale_in_turns
from lightning_polystep.transport.protocol import Weights


@dataclass(frozen=True, kw_only=True)
class KLRelaxed(ColumnShares):
    r"""Every vertex gets about its share of all weight: as near to it as its price, ``tau``, commands.

    Solves, over the matrix of a place of particles (rows i, columns v, see :class:`Transport`),

    .. math:: \min_{W \ge 0} \sum_{iv} W_{iv} C_{iv} + \varepsilon \sum_i \mathrm{KL}(W_i \,\|\, u)
              + \tau\, \mathrm{KL}\Bigl(\sum_i W_i \,\Big\|\, n b\Bigr) \quad \text{with} \quad \sum_v W_{iv} = 1,

    with n rows, b = ``columns`` and u the uniform law. The solution is
    :math:`W_{iv} = \exp(f_i + g_v - C_{iv} / \varepsilon)`, where g is set by
    :math:`\kappa = \tau / (\tau + \varepsilon)` times what :class:`Sinkhorn` would set it by. With :math:`\tau = 0` it
    is the softmax, with :math:`\tau = \infty` Sinkhorn. On one row it is the softmax of a higher temperature,
    :math:`W_v \propto b_v^{\kappa} \exp(-C_v / (\varepsilon + \tau))`.

    ``marginal_error`` is the distance from the shares, which is not to become 0 here.

    Args:
        tau: Price :math:`\tau`, at least 0, in the units of the costs, as ``epsilon`` is.
        columns: Share of all weight that each vertex is to get about, m numbers above 0 that sum to 1, in the order of
            the polytope's vertices; None for 1 / m each.
        tolerance: Above 0; iterations end when none changes a column's scale by more than this share of it.
        iterations: At least 1; how many there may be. Where they do not suffice, rows still sum to 1, and the
            optimizer warns once.

    Raises:
        ValueError: When a value is out of its range, or there are more or fewer shares than vertices.

    Example:
        >>> costs = torch.tensor([[[0.0, 2.0]], [[0.0, 1.0]]])
        >>> for tau in (0.0, 1.0, float("inf")):
        ...     print(KLRelaxed(tau=tau).weigh(costs, epsilon=1.0).weights[:, 0, 0])
        tensor([0.8808, 0.7311])
        tensor([0.7811, 0.5676])
        tensor([0.6225, 0.3775])

    References:
        Chizat, Peyre, Schmitzer and Vialard 2018, "Scaling Algorithms for Unbalanced Optimal Transport Problems",
        arXiv 1607.05816; PolyStep, arXiv 2605.01928, section 4.
    """

    name: ClassVar[str] = "kl"
    tau: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tau >= 0:
            raise ValueError(f"KLRelaxed(tau={self.tau}): the price must be at least 0.")

    @property
    def least_rows(self) -> int:
        """Two where the shares have no price but must be, as in :class:`Sinkhorn`."""
        return 2 if math.isinf(self.tau) else 1

    def weigh(self, costs: Tensor, epsilon: float, draw: torch.Generator | None = None) -> Weights:
        """Weigh the vertices of each particle, shape (rows, particles per row, m)."""
        del draw
        pull = 1.0 if math.isinf(self.tau) else self.tau / (self.tau + epsilon)
        return scale_in_turns(costs, epsilon, self, pull)
