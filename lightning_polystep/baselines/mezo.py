"""MeZO: zeroth-order SGD along Gaussian directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_polystep.baselines.antithetic import AntitheticOptimizer
from lightning_polystep.noise import gaussian


class MeZO(AntitheticOptimizer):
    r"""Estimate the gradient along Gaussian directions from two losses each, and descend.

    .. math::
        g = \frac 1 n \sum_{i=1}^n \frac{L(\theta + \epsilon z_i) - L(\theta - \epsilon z_i)}{2 \epsilon}\, z_i,
        \qquad \theta \leftarrow (1 - \eta \lambda)\, \theta - \eta g, \qquad z_i \sim \mathcal N(0, I)

    with :math:`\epsilon` = ``probe_radius``, n = ``pairs``, :math:`\eta` = ``lr``, :math:`\lambda` = ``weight_decay``.
    The estimate is MeZO's; its trick to hold no z in memory is not used, because candidates are scored in any order.

    Args:
        params: Parameters or parameter groups.
        lr: eta, at least 0.
        probe_radius: epsilon, above 0, in units of the parameters.
        pairs: n, at least 1.
        weight_decay: lambda, at least 0.
        maximize: Climb instead of descend.
        seed: Seed of every draw; None takes torch.initial_seed().

    Raises:
        ValueError: When a value is out of its range.

    Example:
        >>> import torch
        >>> from lightning_polystep import Engine
        >>> model = torch.nn.Linear(2, 1)
        >>> engine = Engine(model, MeZO(model.parameters(), lr=0.05, seed=0), announce=None)
        >>> x, y = torch.randn(16, 2), torch.ones(16, 1)
        >>> losses = [float(engine.step(lambda: (model(x) - y).square().mean())) for _ in range(30)]
        >>> losses[-1] < losses[0]
        True

    References:
        Malladi et al. 2023, Fine-tuning language models with just forward passes, arXiv 2305.17333 (n-SPSA, ZO-SGD).
    """

    kind: ClassVar[str] = "MeZO"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        probe_radius: float = 1e-3,
        pairs: int = 1,
        weight_decay: float = 0.0,
        maximize: bool = False,
        seed: int | None = None,
    ) -> None:
        defaults = {"lr": lr, "probe_radius": probe_radius, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, pairs=pairs, seed=seed, defaults=defaults)

    def noise(self, shapes: Sequence[torch.Size], count: int, draw: torch.Generator) -> Tensor:
        """Return standard normal z, shape (count, D)."""
        return gaussian(shapes, count, draw)
