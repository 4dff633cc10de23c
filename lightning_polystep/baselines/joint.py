"""Optimizers whose candidates change all parameters at once."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Set
from functools import reduce
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from lightning_polystep.hosted import HostedOptimizer, Pending
from lightning_polystep.particles import Block, Proposal
from lightning_polystep.randomness import generator
from lightning_polystep.values import Rule, check

# What the plan reads of a group: there is one row, and no grid of responses.
_PLANNED = {"rank": 1, "rotations": 1, "response_grid": 0}


class JointOptimizer(HostedOptimizer):
    """Base of the optimizers that perturb the vector of all their unfrozen parameters.

    The vector is one block of one row. A candidate is the vector plus one of ``population`` displacements, which are
    kept as dense vectors for the length of a step: population x parameters numbers.

    A subclass draws :meth:`displacements`, and makes a move of the losses in :meth:`update_from`.

    Attributes:
        rules: What the entries of a parameter group may be.
    """

    rules: ClassVar[tuple[Rule, ...]] = ()

    def population(self, numbers: int) -> int:
        """Return how many candidates a step has.

        Args:
            numbers: Parameters D.
        """
        raise NotImplementedError

    def displacements(self, block: Block, draw: torch.Generator) -> Tensor:
        """Return by what candidates differ from the parameters, shape (population, D), on the CPU.

        Args:
            block: The block, with D numbers.
            draw: Source of randomness, the same at every call in a step.
        """
        raise NotImplementedError

    def update_from(self, block: Block, displacements: Tensor, losses: Tensor) -> Tensor:
        """Return the move of a step, shape (D,), and keep what the next step has to know.

        Args:
            block: The block.
            displacements: Of the candidates, shape (population, D), in the parameters' dtype.
            losses: Of the candidates, shape (population,), float64; lower is better, not all need be finite.
        """
        raise NotImplementedError

    @property
    def mirrored(self) -> bool:
        """Whether the second half of the displacements is minus the first."""
        return False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, checking its values."""
        group = {**self.defaults, **param_group}
        check(self.kind, group, self.rules)
        if any(other["maximize"] != group["maximize"] for other in self.param_groups):
            raise ValueError(f"{self.kind}(maximize=...): candidates move all groups, so give all the same value.")
        super().add_param_group(param_group)

    def blocks(self, module: nn.Module, held: Set[nn.Parameter] = frozenset()) -> list[Block]:
        """Return the one block of all parameters; none where all are frozen."""
        known = {parameter for group in self.param_groups for parameter in group["params"]}
        named = [
            (name, parameter)
            for name, parameter in module.named_parameters()
            if parameter in known and parameter not in held and parameter.requires_grad and parameter.numel()
        ]
        if not named:
            return []
        names, parameters = zip(*named, strict=True)
        group = cast("dict[str, Any]", ChainMap(_PLANNED, self.param_groups[0]))
        size = sum(parameter.numel() for parameter in parameters)
        remark = "a candidate changes all parameters"
        return [
            Block(
                "all", parameters, names, group, 1, size, "joint", remark=remark, population=self.population(size)
            )
        ]  # fmt: skip

    def propose(
        self,
        block: Block,
        *,
        rank: int,
        rotations: int = 1,
        most_rows: int | None = None,
        among: Tensor | None = None,
    ) -> Proposal:
        """Return the candidates of the step; of a trial, which asks for few rows, so many of rank x rows of them."""
        del rotations, among
        draw = generator(self.seed, self.progress.step, "joint")
        moved = self.displacements(block, draw)
        mirrored = self.mirrored
        if most_rows is not None and rank * most_rows < len(moved):
            moved, mirrored = moved[: rank * most_rows], False
        dtype = reduce(torch.promote_types, (parameter.dtype for parameter in block.parameters))
        device = block.parameters[0].device
        return Proposal(
            block=block,
            rows=torch.zeros(1, dtype=torch.int64, device=device),
            reach=torch.ones(1, dtype=dtype, device=device),
            directions=moved[None].to(device, dtype),
            particle_dim=1,
            probe_radius=1.0,
            mirrored=mirrored,
        )

    def update(self, pending: Pending) -> dict[str, Tensor | float]:
        """Move all parameters by what the subclass makes of the losses."""
        figures: dict[str, Tensor | float] = {}
        for proposal, costs in zip(pending.proposals, pending.costs, strict=True):
            sign = -1.0 if self.param_groups[0]["maximize"] else 1.0
            losses = sign * costs / pending.weight
            move = self.update_from(proposal.block, proposal.directions[0], losses)
            for parameter, part in zip(proposal.block.parameters, proposal.block.split(move[None]), strict=True):
                parameter.add_(part.to(parameter))
            finite = losses[losses.isfinite()]
            figures = {
                "candidates": float(proposal.candidates),
                "cost_spread": finite.std(correction=0) if len(finite) else losses.new_zeros(()),
                "step_norm": move.double().norm(),
            }
        return figures

    def group_of(self, parameter: nn.Parameter) -> dict[str, Any]:
        """Return the group that a parameter is in.

        Args:
            parameter: Of this optimizer.
        """
        return next(group for group in self.param_groups if any(parameter is each for each in group["params"]))

    def spread_out(self, block: Block, entry: str) -> Tensor:
        """Return an entry of the parameters' groups, once for each number, shape (D,), float64.

        Args:
            block: The block.
            entry: A number, such as ``probe_radius``.
        """
        values = [
            torch.full((parameter.numel(),), float(self.group_of(parameter)[entry]), dtype=torch.float64)
            for parameter in block.parameters
        ]
        return torch.cat(values)
