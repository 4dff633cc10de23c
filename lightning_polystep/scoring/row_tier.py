"""Score: from a few replays of each row all of its candidates, so that directions are nearly free."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_polystep.particles import Proposal
from lightning_polystep.scoring.chunks import Chunking
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.taped import FORWARDS, TapeTier
from lightning_polystep.tape import Work


@dataclass
class RowTier(TapeTier):
    """Replays a few shifts of each row, from which the losses of all its candidates follow."""

    _rows_at_once: int = field(default=1, init=False, repr=False)

    @property
    def replays_of_row(self) -> int:
        """How many replays a look at a row takes."""
        raise NotImplementedError

    def losses_of_rows(self, proposal: Proposal, probe: Probe, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the losses of all candidates of some rows, for each chunk, in their order, float64.

        Args:
            proposal: The candidates.
            probe: Of the micro-batch.
            chunks: Places of rows in the proposal, replayed at once.
        """
        raise NotImplementedError

    def work_of_row(self) -> Work:
        """Return what a replay of a row costs."""
        return self.work()

    def score(self, proposal: Proposal, probe: Probe, start: int, stop: int) -> Tensor:
        """Return the losses of the candidates [start, stop), shape (stop - start,), float64."""
        per_row, at_once = proposal.vertices_per_row, self._rows_at_once
        # Always the same rows together, so that no bit depends on who else scores.
        first, last = start // per_row // at_once * at_once, -(-stop // per_row)
        chunks = torch.arange(first, last, device=proposal.rows.device).split(at_once)
        losses = torch.cat([*self.losses_of_rows(proposal, probe, chunks)]).reshape(-1)
        return losses[start - first * per_row : stop - first * per_row]

    def exact(self) -> TapeTier:
        """Return the tier that replays each candidate."""
        return TapeTier(self.block, self.recording)

    def affordable(self) -> int | None:
        """Return that directions are nearly free."""
        return None

    def affordable_rows(self) -> int | None:
        """Return how many rows, looked at once, cost as much as a few steps of a gradient."""
        work = self.work_of_row()
        return max(1, int(FORWARDS * work.forward / (self.replays_of_row * work.candidate)))

    def chunking(self, memory_budget: int) -> Chunking:
        """Return that all candidates are scored at once: rows are cut inside."""
        replays = self.replays_of_row * self.most_repeats
        self._rows_at_once = max(1, super().chunking(memory_budget).size // replays)
        return Chunking(sys.maxsize)

    def piece(self, proposal: Proposal, chunk: int) -> int:
        """Return the candidates of the rows that are replayed at once."""
        del chunk
        return self._rows_at_once * proposal.vertices_per_row
