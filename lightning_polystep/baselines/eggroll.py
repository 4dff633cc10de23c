"""EGGROLL: an evolution strategy whose perturbations of matrices are of low rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_polystep.baselines.antithetic import AntitheticOptimizer
from lightning_polystep.baselines.shaping import standardised
from lightning_polystep.noise import low_rank
from lightning_polystep.values import at_least, check


class EGGROLL(AntitheticOptimizer):
    r"""Estimate the gradient from mirrored candidates that differ from a weight by a matrix of low rank.

    .. math::
        g = \frac{1}{2 n \sigma} \sum_{i=1}^n (u_i^+ - u_i^-)\, E_i, \qquad
        E_i = \frac{1}{\sqrt r} A_i B_i^\top, \qquad
        \theta \leftarrow (1 - \eta \lambda)\, \theta - \eta\, \mathrm{rule}(g)

    with standard normal :math:`A_i` (m x r) and :math:`B_i` (n x r) for each weight of shape (m, n), a standard normal
    vector for each bias, :math:`u^\pm_i` the standardised losses at :math:`\theta \pm \sigma E_i`, :math:`\sigma` =
    ``probe_radius``, n = ``pairs``, r = ``rank``, :math:`\eta` = ``lr``, :math:`\lambda` = ``weight_decay``. The sum
    over pairs has a rank up to n r. This is the estimator; that such candidates can share most of a forward pass is not
    made use of here.

    Args:
        params: Parameters or parameter groups.
        lr: eta, at least 0.
        probe_radius: sigma, above 0, in units of the parameters.
        pairs: n, at least 1; a step scores 2 n candidates.
        rank: r, at least 1.
        rule: "sgd" or "adam".
        momentum: Memory of SGD, in [0, 1).
        betas: Memories of Adam.
        weight_decay: lambda, at least 0.
        maximize: Climb instead of descend.
        seed: Seed of every draw; None takes torch.initial_seed().

    Raises:
        ValueError: When a value is out of its range.

    Example:
        >>> import torch
        >>> from lightning_polystep import Engine
        >>> model = torch.nn.Linear(2, 1)
        >>> engine = Engine(model, EGGROLL(model.parameters(), lr=0.01, pairs=16, seed=0), announce=None)
        >>> x, y = torch.randn(16, 2), torch.ones(16, 1)
        >>> losses = [float(engine.step(lambda: (model(x) - y).square().mean())) for _ in range(30)]
        >>> losses[-1] < losses[0]
        True

    References:
        Sarkar et al. 2025, Evolution strategies at the hyperscale, arXiv 2511.16652.
    """

    kind: ClassVar[str] = "EGGROLL"
    _copied: ClassVar[tuple[str, ...]] = (*AntitheticOptimizer._copied, "rank")
    shaping = staticmethod(standardised)

    def __init__(  # noqa: PLR0913 - one argument for each constant, all shown by the command line
        self,
        params: ParamsT,
        lr: float = 0.01,
        *,
        probe_radius: float = 0.02,
        pairs: int = 64,
        rank: int = 1,
        rule: Literal["adam", "sgd"] = "sgd",
        momentum: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        maximize: bool = False,
        seed: int | None = None,
    ) -> None:
        check("EGGROLL", {"rank": rank}, [at_least("rank", 1)])
        self.rank = rank
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
        """Return matrices of low rank and normal vectors, shape (count, D)."""
        return low_rank(shapes, count, draw, rank=self.rank)
