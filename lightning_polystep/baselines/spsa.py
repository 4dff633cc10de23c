"""SPSA: simultaneous perturbation stochastic approximation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_polystep.baselines.antithetic import AntitheticOptimizer
from lightning_polystep.noise import rademacher
from lightning_polystep.particles import Block
from lightning_polystep.values import Rule, check

_RULES = (
    Rule("stability", "number", "the constant must be at least 0", lambda value: value >= 0),
    Rule("lr_decay", "number", "the exponent must be at least 0", lambda value: value >= 0),
    Rule("radius_decay", "number", "the exponent must be at least 0", lambda value: value >= 0),
)


class SPSA(AntitheticOptimizer):
    r"""Estimate the gradient from two losses at once, along a random vector of signs, with gains that decay.

    .. math::
        g_k &= \frac 1 n \sum_{i=1}^n \frac{L(\theta + c_k \Delta_i) - L(\theta - c_k \Delta_i)}{2 c_k}\, \Delta_i^{-1},
        \qquad \theta \leftarrow \theta - a_k g_k \\
        a_k &= \frac{a}{(k + 1 + A)^\alpha}, \qquad c_k = \frac{c}{(k + 1)^\gamma}

    with k the step from 0, :math:`\Delta_i` of independent signs (so that :math:`\Delta_i^{-1} = \Delta_i`), a =
    ``lr``, c = ``probe_radius``, n = ``pairs``, A = ``stability``, :math:`\alpha` = ``lr_decay``, :math:`\gamma` =
    ``radius_decay``. Learning-rate schedules act on a, on top of its decay.

    Args:
        params: Parameters or parameter groups.
        lr: a, at least 0.
        probe_radius: c, above 0, in units of the parameters.
        pairs: n, at least 1.
        stability: A, at least 0; Spall suggests a tenth of the steps.
        lr_decay: alpha, at least 0.
        radius_decay: gamma, at least 0.
        maximize: Climb instead of descend.
        seed: Seed of every draw; None takes torch.initial_seed().

    Raises:
        ValueError: When a value is out of its range.

    Example:
        >>> import torch
        >>> from lightning_polystep import Engine
        >>> model = torch.nn.Linear(2, 1)
        >>> engine = Engine(model, SPSA(model.parameters(), lr=0.3, seed=0), announce=None)
        >>> x, y = torch.randn(16, 2), torch.ones(16, 1)
        >>> losses = [float(engine.step(lambda: (model(x) - y).square().mean())) for _ in range(30)]
        >>> losses[-1] < losses[0]
        True

    References:
        Spall 1992, IEEE Trans. Automatic Control 37(3); the gains: Spall 1998, IEEE Trans. AES 34(3), whose exponents
        are the defaults.
    """

    kind: ClassVar[str] = "SPSA"
    _copied: ClassVar[tuple[str, ...]] = (*AntitheticOptimizer._copied, "stability", "lr_decay", "radius_decay")

    def __init__(  # noqa: PLR0913 - one argument for each constant, all shown by the command line
        self,
        params: ParamsT,
        lr: float = 0.1,
        *,
        probe_radius: float = 0.1,
        pairs: int = 1,
        stability: float = 0.0,
        lr_decay: float = 0.602,
        radius_decay: float = 0.101,
        maximize: bool = False,
        seed: int | None = None,
    ) -> None:
        check("SPSA", {"stability": stability, "lr_decay": lr_decay, "radius_decay": radius_decay}, _RULES)
        self.stability, self.lr_decay, self.radius_decay = stability, lr_decay, radius_decay
        defaults = {"lr": lr, "probe_radius": probe_radius, "maximize": maximize}
        super().__init__(params, pairs=pairs, seed=seed, defaults=defaults)

    def noise(self, shapes: Sequence[torch.Size], count: int, draw: torch.Generator) -> Tensor:
        """Return random signs, shape (count, D)."""
        return rademacher(shapes, count, draw)

    def radius(self, block: Block) -> Tensor:
        """Return c_k of every number, shape (D,)."""
        return super().radius(block) / (self.progress.step + 1) ** self.radius_decay

    def step_size(self, group: Mapping[str, Any]) -> float:
        """Return a_k."""
        return float(group["lr"]) / (self.progress.step + 1 + self.stability) ** self.lr_decay
