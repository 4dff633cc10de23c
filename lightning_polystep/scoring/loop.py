"""Score one candidate after the other: takes any module, and is the reference that the faster tiers agree with."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lightning_polystep.particles import Proposal
from lightning_polystep.scoring.chunks import Chunking
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.tier import Tier

# About a second on two cores for a small network.
_AFFORDABLE = 256
# What one call writes into the parameters in turn.
_TOGETHER = 64


class LoopTier(Tier):
    """Write each candidate into the parameters, run the step, and put the parameters back bit for bit."""

    name: ClassVar[str] = "loop"
    reruns_step: ClassVar[bool] = True

    def affordable(self) -> int | None:
        """Return how many candidates a step scores where no rank is asked for."""
        return _AFFORDABLE

    def chunking(self, memory_budget: int) -> Chunking:
        """Return that candidates are scored one after the other."""
        del memory_budget
        return Chunking(_TOGETHER)

    def piece(self, proposal: Proposal, chunk: int) -> int:
        """Return 1: processes can divide candidates as they like."""
        del proposal, chunk
        return 1

    def score(self, proposal: Proposal, probe: Probe, start: int, stop: int) -> Tensor:
        """Return the losses of the candidates [start, stop), shape (stop - start,), float64."""
        block = proposal.block
        incumbent = block.join([probe.start_of(parameter) for parameter in block.parameters])
        losses = []
        with probe.evaluating():
            for row, displacement in zip(*proposal.displacements(start, stop), strict=True):
                candidate = incumbent.clone()
                candidate[row] += displacement
                losses.append(probe.loss(dict(zip(block.parameters, block.split(candidate), strict=True))))
        return torch.stack(losses)
