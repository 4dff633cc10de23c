"""Score: all rows of a layer from one look at it, whoever finds the slopes at their places."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from lightning_polystep.particles import Proposal
from lightning_polystep.scoring.chunks import Chunking
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.slopes import Reaches, SlopeTier, add_slopes
from lightning_polystep.tape import Entry, NotOnTapeError


@dataclass
class WholeLayerTier(SlopeTier):
    """Scores all candidates of all rows from one look; a subclass says what it looks at, and what it sees."""

    fills_budget: ClassVar[bool] = False
    follows_estimates: ClassVar[bool] = True

    @property
    def subject(self) -> Any:
        """What is looked at, on steps of this structure.

        Raises:
            NotOnTapeError: Where it cannot be.
        """
        raise NotImplementedError

    def at_places(self, proposal: Proposal, probe: Probe) -> list[tuple[Entry, Tensor]]:
        """Return the slopes of the loss at the places of all units, (U, N', P) by product.

        Args:
            proposal: The candidates.
            probe: Of the micro-batch.
        """
        raise NotImplementedError

    def affordable_rows(self) -> int | None:
        """Return that all rows are looked at together."""
        return None

    def chunking(self, memory_budget: int) -> Chunking:
        """Return that all candidates are scored at once: rows are cut inside."""
        del memory_budget
        self._rows_at_once = self.moves.rows_at_once
        return Chunking(sys.maxsize)

    def obstacle(self) -> str:
        """Say why the layer cannot be looked at on the batch that was recorded; nothing where it can."""
        try:
            _ = self.subject
        except NotOnTapeError as error:
            return str(error)
        return ""

    def slopes_of_rows(self, proposal: Proposal, probe: Probe, places: Tensor) -> dict[int, Tensor]:
        """Return the slope of the loss by what some rows are multiplied as, (R, D) by value."""
        tape = self.recording.taken()
        key = (self.entered[0].behind, "slopes of all rows")
        if key not in tape.arrays or tape.arrays[key][0] is not proposal:
            slopes = dict[int, Tensor]()
            for entry, answer in self.at_places(proposal, probe):
                add_slopes(slopes, tape, entry, answer)
            tape.arrays[key] = proposal, slopes
        rows = proposal.rows[places]
        return {index: slope[rows] for index, slope in tape.arrays[key][1].items()}

    def typical(self, proposal: Proposal) -> dict[object, Tensor]:
        """Return how far a candidate of reach 1 typically shifts each place of a product, (N', places...) by key.

        Args:
            proposal: The candidates.
        """
        return {key: typical for key, (_, typical) in Reaches.of(self, self.entered[0], proposal).items()}
