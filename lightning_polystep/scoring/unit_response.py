"""Score candidates by how each unit answers to a shift, and by what its answer is worth to the loss.

All units of a layer are shifted at once by as much as a candidate typically does (``answers.py``). What their answers
are worth follows from the slopes of the loss by the scores (``scores.py``), layer by layer from the last to the first
(``layers.py``). So the slopes of the loss at all places of all rows are known, and with them the costs of all
candidates (``slopes.py``), however many rows and directions a layer has.

This is an estimate that is followed without being scored candidate by candidate: what lies behind a unit's answer is
taken to be linear. The plan compares it with exact costs and prints the error. No weight of a hidden layer behind is
read, though the mirrors that are learned of them come to what these are transposed.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from torch import Tensor

from lightning_polystep.particles import Block, Proposal
from lightning_polystep.scoring.grid import offer_from_tape
from lightning_polystep.scoring.layer import Layer, Radii
from lightning_polystep.scoring.layers import Layers
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.scores import Scores
from lightning_polystep.scoring.script import Script
from lightning_polystep.scoring.slopes import check_slopes, cosine_of_rows
from lightning_polystep.scoring.subjects import Subjects, moment_of, offered
from lightning_polystep.scoring.takers import Moment
from lightning_polystep.scoring.taped import Recording
from lightning_polystep.scoring.tier import NotOfferedError
from lightning_polystep.scoring.whole_layer import WholeLayerTier
from lightning_polystep.subspaces import candidates_wanted
from lightning_polystep.tape import Entries, Entry, NotOnTapeError

# Below so many candidates all are scored exactly.
_FEW_CANDIDATES = 128
# Exact directions are cheap where a step affords so many times as many: they cost little beside a look at the layer.
_CHEAP = 4


class _Units(NamedTuple):
    """What is known of a block on steps of one structure.

    Args:
        scores: Of the step.
        entries: The products that the block's rows enter.
        layer: How its units answer; None where the block makes the scores itself.
    """

    scores: Scores
    entries: Entries
    layer: Layer | None


@dataclass
class UnitResponseTier(WholeLayerTier):
    """Scores all candidates of all rows by the answers of their units."""

    _subjects: Subjects[_Units] = field(init=False, repr=False)
    _looked_with: Proposal | None = field(default=None, init=False, repr=False)

    name: ClassVar[str] = "units"

    def __post_init__(self) -> None:
        self._subjects = Subjects(self.recording)

    @property
    def subject(self) -> _Units:
        """What is known of the block on steps of this structure.

        Raises:
            NotOnTapeError: Where its units' answers cannot be told.
        """
        return self._subjects.find(lambda layers: _Units(layers.scores, *self._looked_up(layers)))

    def _looked_up(self, layers: Layers) -> tuple[Entries, Layer | None]:
        """Return the products of the block, and its layer: of which it is known what lies behind, if any is."""
        try:
            entries = layers.entries(self.block)
            if {entry.made for entry in entries.products} <= set(layers.scores.made):
                return entries, None
            return entries, layers.layer(entries)
        except NotOnTapeError:
            with suppress(NotOnTapeError):
                return layers.parted(self.block)
        entries = layers.entries(self.block)
        return entries, layers.layer(entries, self.block.name, partly=True)

    @property
    def entered(self) -> tuple[Entries, Script]:
        """Where the rows of the block enter the step, and how candidates are replayed."""
        return self.subject.entries, self.recording.script(self.block)

    @property
    def learns(self) -> bool:
        """Whether what answers are worth is learned."""
        layer = self.subject.layer
        return layer is not None and layer.learns

    @property
    def needs_samples(self) -> bool:
        """Whether that is learned from samples, and so from others where other processes see others."""
        layer = self.subject.layer
        return layer is not None and layer.needs_samples

    def look(self, proposal: Proposal, probe: Probe) -> None:
        """Learn from what this micro-batch shows."""
        layer = None if self.obstacle() else self.subject.layer
        if layer is not None:
            moment, radii = self._moment(probe), self._radii(layer, proposal)
            layer.learn(moment, radii)
            layer.look_at(moment.tape, radii)
            self._looked_with = proposal

    def at_places(self, proposal: Proposal, probe: Probe) -> list[tuple[Entry, Tensor]]:
        """Return the slopes at the places of all units, (U, N', P) by product."""
        layer, moment = self.subject.layer, self._moment(probe)
        if layer is None:
            return [(entry, moment.slopes[entry.made].T[:, :, None]) for entry in self.entered[0].products]
        looked = self._looked_with is proposal
        slopes = layer.slopes_by_made(moment) if looked else layer.slopes_at(moment, self._radii(layer, proposal))
        return [(entry, _by_unit(slopes[entry.made])) for entry in self.entered[0].products]

    def _moment(self, probe: Probe) -> Moment:
        return moment_of(self.recording, self.subject.scores, probe)

    def _radii(self, layer: Layer, proposal: Proposal) -> Radii:
        typical = self.typical(proposal)
        by_made = {entry.made: typical[entry.key] for entry in self.entered[0].products}
        like = next(iter(typical.values()))
        return Radii(
            {entry.key: by_made[entry.made] for entry in layer.products},
            like.new_ones(self.block.rows).index_copy(0, proposal.rows, proposal.reach.to(like)),
        )

    def approximation(self) -> str:
        """Say what is approximated."""
        layer = self.subject.layer
        if layer is None:
            return "estimated from the slopes of the loss by the scores"
        return f"estimated from each unit's answer and {layer.source}"

    def verdict(self, trial: Proposal, costs: Tensor, exact: Tensor) -> str:
        """Say why exact costs tell more; nothing where they do not.

        On the first batch they agree least: feedback is new, and the scores of all classes are alike. So an estimate
        is left only where it points the wrong way, and one by feedback where all directions are cheap to have exactly.
        Most of what a single flip does is chance, so that there it has to point away by more than that.
        """
        if self.learns:
            cheap = (self.exact().affordable() or 1) >= _CHEAP * candidates_wanted(self.block)
            return "exact directions are so cheap that feedback is not needed" if cheap else ""
        cosine = cosine_of_rows(trial, costs, exact)
        agrees = cosine > self.moves.least_cosine(len(costs))
        return "" if agrees else f"costs have a cosine of {cosine:.2f} with exact ones"


def _by_unit(made: Tensor) -> Tensor:
    """Return what belongs to a product, (N', U, places...), unit by unit, (U, N', P)."""
    return made.movedim(1, 0).reshape(made.shape[1], made.shape[0], -1)


def offer_units(recording: Recording, block: Block) -> UnitResponseTier:
    """Return the tier that scores a block by the answers of its units.

    Args:
        recording: The commit pass.
        block: The parameters.

    Raises:
        NotOfferedError: Where it cannot, or need not.
    """
    check_slopes(block)
    if candidates_wanted(block) <= _FEW_CANDIDATES:
        raise NotOfferedError("so few candidates are scored exactly")
    if offer_from_tape(recording, block).approximation() and block.group["response_grid"]:
        raise NotOfferedError("a grid of responses is asked for")
    return offered(UnitResponseTier(block, recording))
