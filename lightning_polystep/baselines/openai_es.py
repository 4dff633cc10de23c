"""OpenAIES: the evolution strategy of Salimans et al."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_polystep.baselines.antithetic import AntitheticOptimizer
from lightning_polystep.baselines.shaping import centred_ranks
from lightning_polystep.noise import gaussian


class OpenAIES(AntitheticOptimizer):
    r"""Estimate the gradient of the Gaussian-smoothed loss from mirrored candidates, weighed by their ranks.

    .. math::
        g = \frac{1}{2 n \sigma} \sum_{i=1}^n (u_i^+ - u_i^-)\, z_i, \qquad z_i \sim \mathcal N(0, I), \qquad
        \theta \leftarrow (1 - \eta \lambda)\, \theta - \eta\, \mathrm{rule}(g)

    with :math:`u^\pm_i` the centred rank, in [-1/2, 1/2], of :math:`L(\theta \pm \sigma z_i)` among all 2 n losses,
    :math:`\sigma` = ``probe_radius``, n = ``pairs``, :math:`\eta` = ``lr``, :math:`\lambda` = ``weight_decay``.

    Args:
        params: Parameters or parameter groups.
        lr: eta, at least 0.
        probe_radius: sigma, above 0, in units of the parameters.
        pairs: n, at least 1; a step scores 2 n candidates.
        rule: "adam" as published, or "sgd".
        momentum: Memory of SGD, in [0, 1).
        betas: Memories of Adam.
        weight_decay: lambda, at least 0, decoupled from the rule.
        maximize: Climb instead of descend.
        seed: Seed of every draw; None takes torch.initial_seed().

    Raises:
        ValueError: When a value is out of its range.

    Example:
        >>> import torch
        >>> from lightning_polystep import Engine
        >>> model = torch.nn.Linear(2, 1)
        >>> engine = Engine(model, OpenAIES(model.parameters(), lr=0.1, pairs=16, seed=0), announce=None)
        >>> x, y = torch.randn(16, 2), torch.ones(16, 1)
        >>> losses = [float(engine.step(lambda: (model(x) - y).square().mean())) for _ in range(30)]
        >>> losses[-1] < losses[0]
        True

    References:
        Salimans et al. 2017, Evolution strategies as a scalable alternative to reinforcement learning,
        arXiv 1703.03864.
    """

    kind: ClassVar[str] = "OpenAIES"
    shaping = staticmethod(centred_ranks)

    def __init__(  # noqa: PLR0913 - one argument for each constant, all shown by the command line
        self,
        params: ParamsT,
        lr: float = 0.01,
        *,
        probe_radius: float = 0.02,
        pairs: int = 64,
        rule: Literal["adam", "sgd"] = "adam",
        momentum: float = 0.9,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        maximize: bool = False,
        seed: int | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "probe_radius": probe_radius,
            "rule": rule,
            "momentum": momentum,
            "betas": betas,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, pairs=pairs, seed=seed, defaults=defaults)

    def noise(self, shapes: Sequence[torch.Size], count: int, draw: torch.Generator) -> Tensor:
        """Return standard normal z, shape (count, D)."""
        return gaussian(shapes, count, draw)
