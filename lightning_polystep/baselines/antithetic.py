"""Optimizers that estimate a gradient from pairs of candidates on both sides of the parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_polystep.baselines.joint import JointOptimizer
from lightning_polystep.baselines.rules import RULES
from lightning_polystep.baselines.shaping import raw
from lightning_polystep.particles import Block
from lightning_polystep.values import Rule, at_least, check, flag, one_of

_BETAS = Rule("betas", "number", "both memories of Adam must be in [0, 1)", lambda value: 0 <= value < 1)


class AntitheticOptimizer(JointOptimizer):
    r"""Base of SPSA, MeZO, OpenAIES and EGGROLL, which differ in z, u and what follows from the estimate.

    .. math::
        g = \frac 1 n \sum_{i=1}^n \frac{u(L(\theta + c z_i)) - u(L(\theta - c z_i))}{2 c}\, z_i, \qquad
        \theta \leftarrow (1 - \eta \lambda)\, \theta - \eta\, \mathrm{rule}(g)

    with c = ``probe_radius``, n = ``pairs``, :math:`\eta` = ``lr``, :math:`\lambda` = ``weight_decay``. A subclass says
    how z is drawn (:meth:`noise`) and what u makes of all losses of a step (``shaping``). A pair with a loss that is
    not finite is left out; if none is left, nothing moves.

    Args:
        params: Parameters or parameter groups.
        pairs: n, at least 1; a step scores 2 n candidates.
        seed: Seed of every draw; None takes torch.initial_seed().
        defaults: Entries of groups that do not have their own; ``rule`` is "sgd" or "adam".
    """

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("lr", "number", "the step size must be at least 0", lambda value: value >= 0),
        Rule("probe_radius", "number", "candidates need a radius above 0", lambda value: value > 0),
        Rule("momentum", "number", "the memory must be in [0, 1)", lambda value: 0 <= value < 1),
        Rule("weight_decay", "number", "the decay must be at least 0", lambda value: value >= 0),
        one_of("rule", RULES),
        flag("maximize"),
    )
    _copied: ClassVar[tuple[str, ...]] = (*JointOptimizer._copied, "pairs")

    # What is made of the losses of all candidates of a step before they are compared.
    shaping = staticmethod(raw)

    def __init__(self, params: ParamsT, *, pairs: int, seed: int | None, defaults: Mapping[str, Any]) -> None:
        check(self.kind, {"pairs": pairs}, [at_least("pairs", 1)])
        self.pairs = pairs
        usual = {"rule": "sgd", "momentum": 0.0, "betas": (0.9, 0.999), "weight_decay": 0.0, "maximize": False}
        super().__init__(params, {**usual, **defaults}, seed=seed)

    def population(self, numbers: int) -> int:
        """Return two candidates for each pair, whatever the number of parameters."""
        del numbers
        return 2 * self.pairs

    @property
    def mirrored(self) -> bool:
        """Whether the second half of the displacements is minus the first: it is."""
        return True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, checking its values."""
        for beta in {**self.defaults, **param_group}["betas"]:
            check(self.kind, {"betas": beta}, [_BETAS])
        super().add_param_group(param_group)

    def noise(self, shapes: Sequence[torch.Size], count: int, draw: torch.Generator) -> Tensor:
        """Return z of every pair, shape (count, D), float64.

        Args:
            shapes: Of the parameters.
            count: Pairs.
            draw: Source of randomness, on the CPU.
        """
        raise NotImplementedError

    def radius(self, block: Block) -> Tensor:
        """Return c of every number, shape (D,), float64."""
        return self.spread_out(block, "probe_radius")

    def step_size(self, group: Mapping[str, Any]) -> float:
        """Return the step size eta of a group in this step."""
        return float(group["lr"])

    def displacements(self, block: Block, draw: torch.Generator) -> Tensor:
        """Return c z of all pairs, then -c z, shape (2 n, D)."""
        shapes = [parameter.shape for parameter in block.parameters]
        moved = self.radius(block) * self.noise(shapes, self.pairs, draw)
        return torch.cat([moved, -moved])

    def estimate(self, block: Block, displacements: Tensor, losses: Tensor) -> Tensor:
        """Return g, shape (D,), in the displacements' dtype; zeros where no pair has finite losses.

        Args:
            block: The block.
            displacements: c z, then -c z, shape (2 n, D).
            losses: Shape (2 n,), float64.
        """
        half, finite = len(losses) // 2, _finite_pairs(losses)
        if not bool(finite.any()):
            return displacements.new_zeros(block.dim)
        shaped = self.shaping(losses.reshape(2, half)[:, finite].flatten()).reshape(2, -1)
        weights = ((shaped[0] - shaped[1]) / (2 * shaped.shape[1])).to(displacements)
        return weights @ displacements[:half][finite] / self.radius(block).square().to(displacements)

    def update_from(self, block: Block, displacements: Tensor, losses: Tensor) -> Tensor:
        """Return the move, shape (D,)."""
        if not bool(_finite_pairs(losses).any()):
            return displacements.new_zeros(block.dim)
        gradient = self.estimate(block, displacements, losses)
        moves = []
        for parameter, part in zip(block.parameters, block.split(gradient[None]), strict=True):
            group = self.group_of(parameter)
            direction = RULES[group["rule"]](part.to(parameter.dtype), self.state[parameter], group)
            pull = direction + group["weight_decay"] * parameter
            moves.append((-self.step_size(group) * pull).flatten())
        return torch.cat(moves)


def _finite_pairs(losses: Tensor) -> Tensor:
    """Tell which pairs have two finite losses, (n,)."""
    return losses.reshape(2, -1).isfinite().all(0)
