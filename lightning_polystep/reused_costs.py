"""Costs of one step that serve several: what amortised probes keep between two times of scoring."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lightning_polystep.hosted import Pending
from lightning_polystep.particles import Block


@dataclass
class ReusedCosts:
    """The candidates of the last step that scored any, with their costs.

    Args:
        blocks: Those that the optimizer has now.
        pending: What was gathered; None before the first step.
        loaded: The same in a checkpoint, until it is asked for.
    """

    blocks: list[Block] = field(default_factory=list)
    pending: Pending | None = None
    loaded: dict[str, Any] | None = None

    def follow(self, blocks: list[Block]) -> None:
        """Take note of the optimizer's blocks; costs of others are of no use any more.

        Args:
            blocks: As they are now.
        """
        self.blocks, self.pending = blocks, None

    def keep(self, pending: Pending) -> None:
        """Keep what a step has gathered for those that come.

        Args:
            pending: That.
        """
        self.pending, self.loaded = pending, None

    def of(self, pending: Pending) -> Pending:
        """Return what there is for a step that has scored nothing: the last costs, else that step as it is.

        Args:
            pending: What the step has gathered: nothing but what moves in turn.
        """
        if self.loaded is not None:
            names = self.loaded["blocks"].keys()
            if names <= {block.name for block in self.blocks}:
                self.pending = Pending.restored(self.loaded, [b for b in self.blocks if b.name in names])
            self.loaded = None
        return pending if self.pending is None else replace(self.pending, in_turn=pending.in_turn)

    def state_dict(self) -> dict[str, Any] | None:
        """Return the costs as tensors and numbers, for a checkpoint; None where there are none."""
        return self.loaded if self.pending is None else self.pending.state_dict()
