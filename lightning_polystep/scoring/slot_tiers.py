r"""Score networks with argmax attention over slots: candidates of its values and of its keys.

* :class:`ValueTier`: a row of the value projection changes one value, by its shift times the gate of the sample's slot.
* :class:`KeyTier`: a key changes which samples take its slot, and the gates of those that do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_polystep.kernels.feedforward import Scores, losses
from lightning_polystep.particles import Proposal
from lightning_polystep.scoring.feedforward_tiers import AFFORDABLE_ON_GRID, FeedforwardTier, ResponseTier
from lightning_polystep.scoring.slots import SlotStack
from lightning_polystep.scoring.stack import Pass
from lightning_polystep.scoring.stack_tier import SHIFT_BYTES, Part, StackTier, without_padding


@dataclass
class ValueTier(StackTier):
    """Rows of the value projection.

    Args:
        stack: The recognised stack.
        capture: What its layers saw in the latest commit pass.
        index: Place of the value projection.
        follower: The tier of that place in the network of any slot: what is behind is the same for all.
    """

    stack: SlotStack
    follower: FeedforwardTier

    name = "incremental"
    default_candidates = 16384

    def exact(self) -> StackTier:
        """Return the tier with an exact follower."""
        return replace(self, follower=self.follower.exact())

    def approximation(self) -> str:
        """Say what its follower approximates."""
        return self.follower.approximation()

    def _inputs(self, seen: Pass) -> Tensor:
        return seen.inputs[self.index]

    def _parts(self, seen: Pass, proposal: Proposal, rows: Tensor, reach: Tensor) -> Iterator[Part]:
        return without_padding(super()._parts(seen, proposal, rows, reach))

    def _gated(self, seen: Pass) -> tuple[Tensor, Pass]:
        """Return the gates of each sample, (N, E), and what the network of any slot sees if its gate is that."""
        gates = torch.sigmoid(self.stack.keys[self.stack.logits(seen).argmax(-1)])
        currents = [*seen.currents[: self.index], seen.currents[self.index] * gates, *seen.currents[self.index + 1 :]]
        return gates, replace(seen, currents=currents)

    def _costs(self, seen: Pass, rows: Tensor, shifts: Tensor) -> Tensor:
        gates, gated = self._gated(seen)
        # Each unit has gates of its own, so that its shifts are too; they are held for a few units at a time.
        at_once = max(1, SHIFT_BYTES // (shifts.numel() * shifts.element_size()))
        parts = (
            self.follower._costs(gated, some, gates[:, some].T[..., None] * shifts) for some in rows.split(at_once)
        )
        return torch.cat(list(parts))


@dataclass
class ValueResponseTier(ValueTier):
    """Rows of the value projection, whose responses are found on a grid."""

    follower: ResponseTier

    name = "grid"
    default_candidates = AFFORDABLE_ON_GRID

    def exact(self) -> StackTier:
        """Return the tier that follows each candidate."""
        return ValueTier(self.stack, self.capture, self.index, self.follower.exact())

    def _parts(self, seen: Pass, proposal: Proposal, rows: Tensor, reach: Tensor) -> Iterator[Part]:
        return StackTier._parts(self, seen, proposal, rows, reach)

    def _costs(self, seen: Pass, rows: Tensor, shifts: Tensor) -> Tensor:
        gates, gated = self._gated(seen)
        return self.follower._costs(gated, rows, shifts, gain=gates[:, rows].contiguous())


@dataclass
class KeyTier(StackTier):
    """The keys, whose rows are parameters that no Linear layer holds."""

    stack: SlotStack

    name = "incremental"
    default_candidates = 16384

    def _all_costs(self, proposal: Proposal, rows: Tensor, reach: Tensor, seen: Pass) -> Tensor:
        logits = self.stack.logits(seen)
        passes = [self.stack.under(slot, seen) for slot in range(len(self.stack.experts))]
        table = self.stack.losses(passes)
        before = table.gather(1, logits.argmax(-1, keepdim=True)).squeeze(1)
        steps = proposal.probe_radius * proposal.directions.reshape(-1, proposal.directions.shape[-1])
        at_once = max(1, SHIFT_BYTES // (seen.inputs[self.index].numel() * steps.element_size()))
        costs = []
        for row, wide in zip(rows.tolist(), reach, strict=True):
            others = logits.clone()
            others[:, row] = -torch.inf
            rival, route = others.max(-1)
            lost = table.gather(1, route[:, None]).squeeze(1)
            for keys in (self.stack.keys[row] + wide * steps).split(at_once):
                own = keys @ seen.inputs[self.index].T
                key, sample = ((own > rival) | ((own == rival) & (row < route))).nonzero(as_tuple=True)
                after = lost.repeat(len(keys), 1)
                after[key, sample] = self._losses(seen, torch.sigmoid(keys)[key], sample)
                costs.append((after - before).sum(1))
        return torch.cat(costs).reshape(len(rows), len(steps))

    def _losses(self, seen: Pass, gates: Tensor, samples: Tensor) -> Tensor:
        """Return the losses of some samples, (S,), whose values come through these gates, (S, E)."""
        arriving = self.stack.activated(self.index, gates * seen.currents[self.index][samples])
        if self.stack.behind is not None:
            for place, linear in enumerate(self.stack.behind.linears):
                currents = type(linear).forward(linear, arriving).detach()
                arriving = self.stack.behind.passed_on(place, arriving, currents)
        head = Scores(arriving, seen.targets[samples], self.stack.loss, 0.0)
        return losses(head, arriving)
