"""Score one candidate after the other: takes any module, and is the reference that the faster tiers agree with."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lightning_polystep.particles import Proposal
from lightning_polystep.scoring.probe import Probe


class LoopTier:
    """Write each candidate into the parameters, run the step, and put the parameters back bit for bit."""

    name: ClassVar[str] = "loop"
    default_candidates: ClassVar[int | None] = 256

    def score(self, proposal: Proposal, probe: Probe, start: int, stop: int) -> Tensor:
        """Return the losses of the candidates [start, stop), shape (stop - start,), float64."""
        block = proposal.block
        originals = [parameter.detach().clone() for parameter in block.parameters]
        incumbent = block.join(originals)
        losses = []
        try:
            for row, displacement in zip(*proposal.displacements(start, stop), strict=True):
                candidate = incumbent.clone()
                candidate[row] += displacement
                for parameter, value in zip(block.parameters, block.split(candidate), strict=True):
                    parameter.copy_(value)
                losses.append(probe.loss())
        finally:
            for parameter, original in zip(block.parameters, originals, strict=True):
                parameter.copy_(original)
        return torch.stack(losses)
