"""Score parameters that are operands by themselves: scales and shifts of norms, biases, positions, tables, gains.

Where a parameter is added, multiplied with, looked up, or scales a norm, what slopes by the result say of it is known
(``tape/ways_back.py``), and slopes by the result are told as for any layer (``layers.py``). So the costs of all
candidates of all rows are their products with one slope. An estimate, as that of units, and checked likewise.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from lightning_polystep.particles import Block, Proposal
from lightning_polystep.scoring.chunks import Chunking
from lightning_polystep.scoring.grid import offer_from_tape
from lightning_polystep.scoring.precision import precise
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.scores import Scores
from lightning_polystep.scoring.slopes import cosine_of_rows, scored_exactly
from lightning_polystep.scoring.subjects import Subjects, moment_of, offered
from lightning_polystep.scoring.takers import Moment, forget_slopes
from lightning_polystep.scoring.taped import Recording, TapeTier
from lightning_polystep.scoring.tier import NotOfferedError
from lightning_polystep.scoring.uses import Use, uses_of
from lightning_polystep.subspaces import candidates_wanted
from lightning_polystep.tape import NotOnTapeError, way_back

# Of how well costs agree with exact ones on the first batch, at the least.
_LEAST_COSINE = 0.3
# Below so many candidates all are scored exactly, where that takes no more than such a share of a forward pass: behind
# convolutions and norms of whole batches a few take longer than all other layers together.
_FEW_CANDIDATES, _SMALL_SHARE = 63, 0.5
# Candidates whose displacements are made out at once.
_AT_ONCE = 4096


class _Operands(NamedTuple):
    """What is known of a block on steps of one structure."""

    scores: Scores
    uses: list[Use]


@dataclass
class OperandTier(TapeTier):
    """Scores all candidates of a block whose parameters are operands by themselves."""

    _subjects: Subjects[_Operands] = field(init=False, repr=False)
    _told: bool = field(default=False, init=False, repr=False)

    name: ClassVar[str] = "operands"
    fills_budget: ClassVar[bool] = False
    follows_estimates: ClassVar[bool] = True
    # What lies behind are mirrors, which are learned from random inputs.
    needs_samples: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._subjects = Subjects(self.recording)

    @property
    def subject(self) -> _Operands:
        """What is known of the block on steps of this structure.

        Raises:
            NotOnTapeError: Where it is not known what it does.
        """
        return self._subjects.find(lambda layers: _Operands(layers.scores, uses_of(layers, self.block)))

    def look(self, proposal: Proposal, probe: Probe) -> None:
        """Learn from what this micro-batch shows."""
        del proposal
        tape = self.recording.taken()
        forget_slopes(tape)
        tape.arrays.pop((self, "slopes"), None)
        for use in self.subject.uses:
            use.layer.learn(self._moment(probe))

    def score(self, proposal: Proposal, probe: Probe, start: int, stop: int) -> Tensor:
        """Return the losses of the candidates [start, stop), shape (stop - start,), float64."""
        try:
            _ = self.subject
        except NotOnTapeError as error:
            told, self._told = self._told, True
            return scored_exactly(self, str(error), proposal, probe, range(start, stop), told=told)
        slopes, loss, costs = self._slopes(probe), self.known_loss(), []
        assert loss is not None
        for first in range(start, stop, _AT_ONCE):
            candidates = torch.arange(first, min(stop, first + _AT_ONCE), device=slopes.device)
            rows, moved = proposal.displacements_of(candidates)
            costs.append((moved.to(slopes) * slopes[rows]).sum(1))
        return loss + torch.cat(costs).double()

    def _slopes(self, probe: Probe) -> Tensor:
        """Return the slope of the loss by each number of the block, (rows, D), found once a step."""
        tape, moment = self.recording.taken(), self._moment(probe)
        key = (self, "slopes")
        if key not in tape.arrays:
            sums = [torch.zeros_like(precise(parameter.detach())) for parameter in self.block.parameters]
            for use in self.subject.uses:
                made = use.operation.outputs[0]
                assert made is not None
                slopes = use.layer.slopes_by_made(moment)[made]
                if use.is_bias:
                    own = slopes.movedim(1, 0).flatten(1).sum(1)
                else:
                    own = way_back(tape, use.operation, use.operand, slopes)
                flat = sums[use.parameter].view(-1)
                flat.index_add_(0, use.places.flatten().to(own.device), own.flatten().to(flat))
            tape.arrays[key] = self.block.join(sums)
        slopes_of_rows: Tensor = tape.arrays[key]
        return slopes_of_rows

    def _moment(self, probe: Probe) -> Moment:
        return moment_of(self.recording, self.subject.scores, probe)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def exact(self) -> TapeTier:
        """Return the tier that replays each candidate."""
        return TapeTier(self.block, self.recording)

    def affordable(self) -> int | None:
        """Return that candidates are nearly free; of a table as many as the rows want that a batch usually reads."""
        return candidates_wanted(self.block) if self.block.lookups else None

    def chunking(self, memory_budget: int) -> Chunking:
        """Return that all candidates are scored at once."""
        del memory_budget
        return Chunking(sys.maxsize)

    def piece(self, proposal: Proposal, chunk: int) -> int:
        """Return that one process scores all of them."""
        del chunk
        return proposal.candidates

    def approximation(self) -> str:
        """Say what is approximated."""
        return "estimated from slopes of the loss by what it is an operand of"

    def verdict(self, trial: Proposal, costs: Tensor, exact: Tensor) -> str:
        """Say why exact costs tell more: the estimate hardly agrees with them.

        Where a step affords few of them, it has to point away by more than chance: of n numbers a cosine strays by
        about one over their root, and mirrors and first weights are new.
        """
        cosine = cosine_of_rows(trial, costs, exact)
        least = _LEAST_COSINE if self.exact().affords_all() else -(max(1, len(trial.rows)) ** -0.5)
        return f"costs have a cosine of {cosine:.2f} with exact ones, {least} is asked for" if cosine < least else ""


def offer_operands(recording: Recording, block: Block) -> OperandTier:
    """Return the tier that scores a block whose parameters are operands by themselves.

    Args:
        recording: The commit pass.
        block: The parameters.

    Raises:
        NotOfferedError: Where it cannot, or need not.
    """
    if block.constant or block.population is not None or block.subspace not in {"inputs", "gaussian", "full"}:
        raise NotOfferedError("its candidates are no moves of single rows")
    if block.wants_exact:
        raise NotOfferedError(block.wants_exact)
    exact, wanted = offer_from_tape(recording, block), candidates_wanted(block)
    if wanted <= _FEW_CANDIDATES and wanted * exact.work().candidate <= _SMALL_SHARE * exact.work().forward:
        raise NotOfferedError("so few candidates are scored exactly")
    return offered(OperandTier(block, recording))
