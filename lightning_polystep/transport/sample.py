r"""Transport: one vertex, drawn from the one-sided plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_polystep.transport.protocol import Transport, Weights, finite_somewhere
from lightning_polystep.transport.softmax import softmax_transport


@dataclass(frozen=True)
class Sample(Transport):
    r"""Each particle goes to one vertex, drawn with the probabilities that the softmax would weigh them by.

    .. math:: W_{iv} = [v = v_i], \qquad
              P(v_i = v) = \frac{\exp(-C_{iv} / \varepsilon)}{\sum_w \exp(-C_{iw} / \varepsilon)}

    On the mean a particle moves as with :class:`Softmax`; a single move is a vertex, :math:`\sqrt d` step radii away (d
    the particle's dimension), where a softmax goes about :math:`1 / \varepsilon` radii. So it wants a smaller ``lr``,
    or particles of few coordinates. A particle whose costs are all equal goes anywhere.

    The draw is a function of (seed, step, block): the same on all processes, and again when a run is resumed.
    Columns may sum to anything, so ``marginal_error`` is 0.

    Raises:
        ValueError: When there is no generator to draw from.

    Example:
        >>> costs = torch.tensor([[[0.0, 1.0, float("inf")]]]).repeat(1000, 1, 1)
        >>> weights, _, _ = Sample().weigh(costs, epsilon=1.0, draw=torch.Generator().manual_seed(0))
        >>> weights[0]
        tensor([[0., 1., 0.]])
        >>> weights.mean(0).round(decimals=1)
        tensor([[0.7000, 0.3000, 0.0000]])

    References:
        PolyStep, arXiv 2605.01928, section 3, for the plan; to draw from it instead of going to the barycentre is the
        heat bath of Gibbs sampling: Geman and Geman 1984, "Stochastic Relaxation, Gibbs Distributions, and the Bayesian
        Restoration of Images".
    """

    name: ClassVar[str] = "sample"
    draws: ClassVar[bool] = True

    @torch.no_grad()
    def weigh(self, costs: Tensor, epsilon: float, draw: torch.Generator | None = None) -> Weights:
        """Weigh the vertices of each particle, shape (rows, particles per row, m)."""
        if draw is None:
            raise ValueError("Sample.weigh() draws: give it a generator.")
        plan = softmax_transport(costs, epsilon)
        reached = plan.double().cumsum(-1)
        # Drawn on the CPU, so that all devices draw alike.
        level = torch.rand(*costs.shape[:-1], 1, generator=draw, dtype=torch.float64).to(reached)
        # The first vertex at which the sum goes beyond the level has a weight above 0, because the sum grows there.
        chosen = torch.searchsorted(reached, level * reached[..., -1:], right=True)
        drawn = torch.zeros_like(plan).scatter_(-1, chosen.clamp(max=costs.shape[-1] - 1), 1.0)
        return Weights(torch.where(finite_somewhere(costs), drawn, plan), costs.new_zeros(()))
