"""Propose: the candidates of a step, new or those that a checkpoint was in the middle of, and who scores which."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_polystep.agreement import Agreement
from lightning_polystep.hosted import HostedOptimizer, Pending
from lightning_polystep.lookups import is_something, rows_to_probe
from lightning_polystep.parallel import divide
from lightning_polystep.particles import Block, Proposal
from lightning_polystep.scoring.plan import Plan
from lightning_polystep.sites import Observation


@dataclass(frozen=True)
class Proposing:
    """Asks an optimizer for candidates.

    Args:
        optimizer: The optimizer.
        agreement: With the other processes, which score candidates too.
    """

    optimizer: HostedOptimizer
    agreement: Agreement

    def of_step(self, plan: Plan, seen: Observation) -> Pending:
        """Return the candidates of a step, with what a checkpoint from the middle of it had gathered.

        Args:
            plan: Which blocks are probed, and with how many candidates.
            seen: What the commit pass has shown.
        """
        return self._loaded(plan) or self._new(plan, seen)

    def of_block(
        self, seen: Observation, block: Block, rank: int, most_rows: int | None, rotations: int = 1
    ) -> Proposal:
        """Return the candidates of one block.

        Args:
            seen: What the commit pass has shown.
            block: The block.
            rank: Directions of a row.
            most_rows: Rows that are probed; None for all.
            rotations: Polytopes around each particle.
        """
        among = self._in_play(seen, block)
        return self.optimizer.propose(block, rank=rank, rotations=rotations, most_rows=most_rows, among=among)

    def asked(self, seen: Observation, block: Block) -> Tensor | None:
        """Return the rows of a table that the batch asks for, ascending; None when that is not known.

        Args:
            seen: What the commit pass has shown.
            block: The block.
        """
        # Processes that divide a batch do not know which rows the others read.
        return None if self.agreement.sharded else seen.asked(block)

    def _in_play(self, seen: Observation, block: Block) -> Tensor | None:
        """Return the rows of a table that are probed on this batch, shape (rows,); None for all, as of any weight."""
        return rows_to_probe(block, self.asked(seen, block))

    def _new(self, plan: Plan, seen: Observation) -> Pending:
        proposals = [
            self.of_block(seen, each.block, each.rank, each.most_rows, each.rotations)
            for each in plan.due(self.optimizer.round, self.optimizer.scores)
            if is_something(self._in_play(seen, each.block))
        ]
        costs = [torch.zeros(p.candidates, dtype=torch.float64, device=p.rows.device) for p in proposals]
        pending = Pending(proposals, costs, incumbents=[total.new_zeros(()) for total in costs])
        return self._shared(pending, plan)

    def _loaded(self, plan: Plan) -> Pending | None:
        """Return what a checkpoint from the middle of an accumulation window had gathered, once."""
        due = plan.due(self.optimizer.round, self.optimizer.scores)
        whole = self.optimizer.binding.take_loaded([assignment.block for assignment in due])
        if whole is None:
            return None
        # The costs of all processes will be summed, so one of them holds what is there already.
        return self._shared(whole if self.agreement.layout.rank == 0 else whole.emptied(), plan)

    def _shared(self, pending: Pending, plan: Plan) -> Pending:
        """Say which candidates of a step this process scores."""
        assignments = {assignment.block: assignment for assignment in plan.assignments}
        pending.in_turn = [b for b in assignments if b.trainable and self.optimizer.moves_in_turn(b)]
        work = [assignments[proposal.block].work(proposal) for proposal in pending.proposals]
        pending.shares = divide(work, self.agreement.layout.candidates, self.agreement.balance.parts)
        pending.seconds = [0.0] * len(work)
        return pending
