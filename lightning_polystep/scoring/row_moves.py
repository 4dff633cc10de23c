"""Score: what candidates of rows are, moves along directions or flips, and what slopes by the rows say of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightning_polystep.particles import Block, Proposal
from lightning_polystep.scoring.precision import precise
from lightning_polystep.scoring.script import Script
from lightning_polystep.scoring.taped import Recording
from lightning_polystep.tape import Entries, Entry, Program, Tape, added_by_rows, opposites

# Directions from which it is learned how far a typical candidate shifts each place.
_TYPICAL = 16
# Rows of which that is looked at where masks or quantisers make it another for each.
_FEW_ROWS = 4
# Directions of a row of which each is computed by itself.
_OF_ITS_OWN = 32
# Rows whose candidates are made out at once.
_ROWS_AT_ONCE = 32


class Scoring(Protocol):
    """The tier that asks.

    Args:
        block: The parameters.
        recording: The commit pass.
    """

    block: Block
    recording: Recording

    @property
    def entered(self) -> tuple[Entries, Script]:
        """Where the rows of the block enter the step, and how candidates are replayed."""
        ...

    def changed(self, program: Program, proposal: Proposal, candidates: Tensor) -> dict[int, Tensor]:
        """Return what the parameters are for some candidates."""
        ...


@dataclass(frozen=True, eq=False)
class RowMoves:
    """What candidates of rows are.

    Args:
        tier: Scores them.
    """

    tier: Scoring

    @property
    def rows_at_once(self) -> int:
        """Rows whose candidates are made out at once."""
        return _ROWS_AT_ONCE

    def along(self, proposal: Proposal, places: Tensor, entries: Entries, slopes: dict[int, Tensor]) -> Tensor:
        """Return what slopes of rows say of candidates, (R, V): the product with what changes of what is multiplied.

        Args:
            proposal: The candidates.
            places: Of the rows in the proposal, (R,).
            entries: Where rows enter the step.
            slopes: Of the loss by what the rows are multiplied as, (R, D) by value.
        """
        raise NotImplementedError

    def typical(self, proposal: Proposal, entries: Entries) -> Callable[[Entry], Tensor]:
        """Return what tells how far a candidate of reach 1 typically shifts each place of a product, (N', ...).

        Args:
            proposal: The candidates.
            entries: Where rows enter the step.
        """
        raise NotImplementedError

    def most_directions(self) -> int | None:
        """Return how many directions of a row are nearly free; None for all."""
        return None

    def least_cosine(self, candidates: int) -> float:
        """Return how well an estimate has to agree with exact costs of some candidates, at the least.

        Args:
            candidates: How many are compared.
        """
        del candidates
        return 0.0


class Directions(RowMoves):
    """Candidates that move a row along directions, which all rows share but for masks, scales and quantisers."""

    def along(self, proposal: Proposal, places: Tensor, entries: Entries, slopes: dict[int, Tensor]) -> Tensor:
        """Return what slopes of rows say of candidates, (R, V)."""
        directions = self.shared(proposal, entries)
        if directions is not None:
            rows = proposal.rows[places]
            total = sum(
                (slopes[index] if scale is None else slopes[index] * scale[rows]) @ columns.T.to(slopes[index])
                for index, (columns, scale) in directions.items()
            )
            assert isinstance(total, Tensor)
            return total * proposal.reach[places, None]
        count = proposal.vertices_per_row
        changed = self._rows_as_multiplied(proposal, places, entries)
        apart = {index: change.reshape(len(places), count, -1) for index, change in changed.items()}
        total = sum((apart[index].to(slope) @ slope[:, :, None]).squeeze(2) for index, slope in slopes.items())
        assert isinstance(total, Tensor)
        return total

    def typical(self, proposal: Proposal, entries: Entries) -> Callable[[Entry], Tensor]:
        """Return what tells how far a candidate typically shifts each place of a product: by a sample of them."""
        changes, tape = self.changes_of_rows(proposal, entries), self.tier.recording.taken()
        half = max(1, len(next(iter(changes.values()))) // 2)  # the others are often the same mirrored
        sample = {index: change[:half][:: max(1, half // _TYPICAL)][:_TYPICAL] for index, change in changes.items()}

        def of_product(entry: Entry) -> Tensor:
            whole = tape.values[entry.made].tensor.shape
            return _shifted(tape, entry, sample).square().mean(0).sqrt().reshape(whole[0], *whole[2:])

        return of_product

    def most_directions(self) -> int | None:
        """Return fewer where each candidate of each row has to be quantised by itself."""
        entries = self.tier.entered[0]
        of_rows = set(self.tier.recording.leaves_of(self.tier.block)) | entries.multiples.keys()
        return None if entries.multiplied <= of_rows else _OF_ITS_OWN

    def changes_of_rows(self, proposal: Proposal, entries: Entries) -> dict[int, Tensor]:
        """Return how some candidates change what their row is multiplied as, (V, D) by value.

        Args:
            proposal: The candidates.
            entries: Where rows enter the step.
        """
        shared = self.shared(proposal, entries)
        if shared is not None and all(scale is None for _, scale in shared.values()):
            return {index: columns for index, (columns, _) in shared.items()}
        few = torch.arange(min(_FEW_ROWS, len(proposal.rows)), device=proposal.rows.device)
        return self._rows_as_multiplied(proposal, few, entries)

    def shared(self, proposal: Proposal, entries: Entries) -> dict[int, tuple[Tensor, Tensor | None]] | None:
        """Return how vertices change what is multiplied, (V, D) by value, and by what that is scaled, (U, D).

        None where more than a scale depends on the row, as behind quantisers.

        Args:
            proposal: The candidates.
            entries: Where rows enter the step.
        """
        block, recording = self.tier.block, self.tier.recording
        own, scales = recording.leaves_of(block), entries.scales(recording.taken())
        if proposal.starts is not None or proposal.centre is not None or scales is None:
            return None
        if not {parameter for parameter, _ in scales.values()} <= set(own):
            return None
        widths = [parameter.numel() // block.rows for parameter in block.parameters]
        moved = (proposal.probe_radius * proposal.directions.reshape(-1, block.dim)).split(widths, dim=1)
        columns = dict(zip(own, moved, strict=True))
        return {index: (columns[parameter], scale) for index, (parameter, scale) in scales.items()}

    def _rows_as_multiplied(self, proposal: Proposal, places: Tensor, entries: Entries) -> dict[int, Tensor]:
        """Return how the candidates of some rows change what their products multiply, (R * V, D) by value."""
        count = proposal.vertices_per_row
        every = (places[:, None] * count + torch.arange(count, device=places.device)).flatten()
        changed = self.tier.changed(self.tier.entered[1].program, proposal, every)
        rows = proposal.rows[places].repeat_interleave(count)
        return entries.rows_as_multiplied(self.tier.recording.taken(), rows, changed)


class Flips(RowMoves):
    """Candidates that give one number of a row one sign or the other; of its two vertices one changes nothing."""

    @property
    def rows_at_once(self) -> int:
        """All: flips are no work."""
        return self.tier.block.rows

    def along(self, proposal: Proposal, places: Tensor, entries: Entries, slopes: dict[int, Tensor]) -> Tensor:
        """Return what slopes of rows say of candidates, (R, V)."""
        rows, opposite = proposal.rows[places], opposites(self.tier.recording.taken(), entries)
        gains = sum(slope * opposite[index][rows] for index, slope in slopes.items())
        assert isinstance(gains, Tensor)
        vertices = proposal.directions.reshape(-1, self.tier.block.dim).float()  # in which places are exact
        moved = vertices.sum(1)  # by how much the one number that a vertex moves
        number = (vertices @ torch.arange(vertices.shape[1]).to(vertices) / moved).round().long()
        negative = self.tier.block.parameters[0].detach()[rows].flatten(1)[:, number] < 0
        return torch.where(negative == (moved > 0), gains[:, number], 0.0)

    def typical(self, proposal: Proposal, entries: Entries) -> Callable[[Entry], Tensor]:
        """Return what tells how far units are shifted to see what flips do.

        One flip takes few samples over a threshold, so that it is judged as from many biases around the unit's own,
        whose root mean square is ``probe_radius`` times that of what the product makes: evenly between two shifts.
        """
        del proposal, entries
        tape, radius = self.tier.recording.taken(), self.tier.block.group["probe_radius"]

        def of_product(entry: Entry) -> Tensor:
            made = precise(tape.values[entry.made].tensor)
            return torch.full_like(made[:, 0], 3**0.5 * radius * float(made.square().mean().sqrt()))

        return of_product

    def least_cosine(self, candidates: int) -> float:
        """Return one that is below zero by chance: most of what a single flip does is that."""
        return -((candidates / 2) ** -0.5)


def moves_of(tier: Scoring) -> RowMoves:
    """Return what the candidates of a tier are.

    Args:
        tier: Scores them.
    """
    return Flips(tier) if tier.block.by_signs else Directions(tier)


def _shifted(tape: Tape, entry: Entry, rows: dict[int, Tensor]) -> Tensor:
    """Return what changes of rows add to a product, (V, N', P)."""
    added = None
    if entry.weight is not None:
        added = added_by_rows(tape, entry, precise(rows[entry.weight]))
    if entry.bias is not None:
        gain = torch.as_tensor(entry.gain(tape)).abs().mean()
        bias = precise(rows[entry.bias]).reshape(-1, 1, 1) / gain.clamp(min=torch.finfo(gain.dtype).tiny)
        shape = tape.values[entry.made].tensor.shape
        places = torch.Size(shape[2:]).numel()
        added = bias.expand(-1, shape[0], places) if added is None else added + bias
    assert added is not None
    return added
