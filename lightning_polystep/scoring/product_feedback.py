r"""Score rows whose units cannot be followed, as of recurrence and attention: by learned feedback at their products.

The weights of a recurrence act on what they have made before, and those of attention on heads that are cut apart at
once: no unit of theirs answers by itself. What they enter are still products, at places q: steps of time, tokens. All
units are shifted at random at all places, in two mirrored replays of the whole step from there, with the recurrence.
What that does to the scores is learned over steps (``feedback.py``), and with the slopes of the loss by the scores
(``scores.py``) it gives the slopes at all places, and so the costs of all candidates (``slopes.py``).

This is an estimate that is followed without being scored candidate by candidate: feedback is the mean over samples, and
what a row is multiplied with is taken as it was in the step, though it would be another if the row were. The plan
compares it with exact costs and prints the error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from lightning_polystep.particles import Block, Proposal
from lightning_polystep.scoring.answers import random_signs
from lightning_polystep.scoring.feedback import MOST_NUMBERS, Feedback
from lightning_polystep.scoring.grid import offer_from_tape
from lightning_polystep.scoring.precision import half_difference, precise
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.scores import Scores, places_of_samples, sizes_and_samples
from lightning_polystep.scoring.script import Script
from lightning_polystep.scoring.slopes import check_slopes, cosine_of_rows
from lightning_polystep.scoring.subjects import offered
from lightning_polystep.scoring.taped import Recording
from lightning_polystep.scoring.tier import NotOfferedError
from lightning_polystep.scoring.whole_layer import WholeLayerTier
from lightning_polystep.subspaces import candidates_wanted, directions_wanted
from lightning_polystep.tape import Dense, Entries, Entry, NotOnTapeError, Program, products_of, whole_program

# Below so many candidates all are scored exactly.
_FEW_CANDIDATES = 256
# Costs that agree less with exact ones are not followed: those of a recurrence of threshold neurons have a cosine of
# 0.35 and learn, those of an LSTM, of 0.14, learn worse than exact costs of few rows.
_LEAST_COSINE = 0.2


class _Products(NamedTuple):
    """What is known of a block on steps of one structure.

    Args:
        entries: The products that its rows enter.
        scores: Of the step.
        whole: Leads from the products to the scores, through later products of the same rows.
        program: What lies behind the products, with the labels of their axes.
    """

    entries: Entries
    scores: Scores
    whole: Dense
    program: Program


@dataclass
class ProductFeedbackTier(WholeLayerTier):
    """Scores all candidates of all rows by learned feedback at their products."""

    _known: dict[Program, _Products] = field(default_factory=dict, init=False, repr=False)

    name: ClassVar[str] = "feedback"
    needs_samples: ClassVar[bool] = True

    @property
    def entered(self) -> tuple[Entries, Script]:
        """Where the rows of the block enter the step, and how candidates are replayed."""
        return self.subject.entries, self.recording.script(self.block)

    @property
    def feedback(self) -> Feedback:
        """What is known of what lies behind."""
        return Feedback(self.recording.learned.setdefault(self.block.name, {}))

    @property
    def subject(self) -> _Products:
        """What is known of the block on steps of this structure.

        Raises:
            NotOnTapeError: Where it reaches the loss in other ways too, or is too large.
        """
        program = self.recording.script(self.block).program
        if program not in self._known:
            self._known[program] = _read(self.recording, self.block)
        return self._known[program]

    def look(self, proposal: Proposal, probe: Probe) -> None:
        """Learn feedback from what this micro-batch shows."""
        if not self.obstacle():
            self._learn(self.feedback, proposal, probe)

    def at_places(self, proposal: Proposal, probe: Probe) -> list[tuple[Entry, Tensor]]:
        """Return the slopes of the loss at the places of all units, (U, N', 1) by product."""
        products, feedback = self.subject, self.feedback
        if feedback.is_new:  # the plan tries it: what is learned of a trial is not kept
            feedback = Feedback({})
            self._learn(feedback, proposal, probe)
        of_scores = products.scores.mean_of_samples(
            products.program, products.scores.slopes(self.recording, probe.noise_key[1])
        )
        answers = []
        for place, entry in enumerate(products.entries.products):
            shape = self.recording.taken().values[entry.made].tensor.shape
            answer = _from_samples(products.program, entry.made, feedback.credit(place, of_scores), shape)
            answers.append((entry, answer.T[:, :, None]))
        return answers

    def _learn(self, feedback: Feedback, proposal: Proposal, probe: Probe) -> None:
        """Shift all units at all places at random, and see what the scores make of it."""
        tape, products, typical = self.recording.taken(), self.subject, self.typical(proposal)
        entered, program = products.entries.products, products.program
        for draw in feedback.draws(probe.noise_key, self.block.name):
            shifts = dict[int, Tensor]()
            for entry in entered:
                made = precise(tape.values[entry.made].tensor)
                shifts[entry.made] = random_signs(tuple(made.shape), draw).to(made) * typical[entry.key][:, None]
            both = products.whole.run(tape, {}, {made: torch.stack([each, -each]) for made, each in shifts.items()})
            changed = {index: half_difference(each) for index, each in both.items()}
            by_sample = [places_of_samples(program, entry.made, shifts[entry.made]) for entry in entered]
            feedback.learn([each.flatten(1) for each in by_sample], products.scores.changed(program, changed))

    def approximation(self) -> str:
        """Say what is approximated."""
        del self
        return "estimated from learned feedback"

    def verdict(self, trial: Proposal, costs: Tensor, exact: Tensor) -> str:
        """Say why exact costs tell more: they have half of all directions, or the estimate hardly agrees with them.

        Rows move as far whatever their costs are worth: those of which feedback tells little would move at random.
        """
        affordable = (self.exact().affordable() or 1) / (2 * self.block.rows_in_play)
        if 2 * affordable >= directions_wanted(self.block):
            return "so many exact directions can be afforded that feedback is not needed"
        cosine = cosine_of_rows(trial, costs, exact)
        least = _LEAST_COSINE
        return f"costs have a cosine of {cosine:.2f} with exact ones, {least} is asked for" if cosine < least else ""


def _from_samples(program: Program, index: int, apart: Tensor, shape: torch.Size) -> Tensor:
    """Undo :func:`~lightning_polystep.scoring.scores.places_of_samples`."""
    sizes, at = sizes_and_samples(program, index)
    moved = [sizes[at], *sizes[:at], *sizes[at + 1 :]]
    return apart.reshape(moved).movedim(0, at).reshape(shape)


def _read(recording: Recording, block: Block) -> _Products:
    """Find the products that a block's rows enter.

    Raises:
        NotOnTapeError: Where it reaches the loss in other ways too, or is too large.
    """
    tape, loss, scores = recording.taken(), recording.loss, Scores.of(recording)
    products = products_of(tape, recording.leaves_of(block))
    if scores is None or loss is None or products is None:
        raise NotOnTapeError("it does not reach the scores of each sample by products alone")
    made = [entry.made for entry in products]
    program = whole_program(tape, made, loss)
    holds_samples = program.sample is not None and all(
        index in program.axes and program.position(index, program.sample) == 0 for index in [*made, *scores.made]
    )
    if not holds_samples:
        raise NotOnTapeError("samples are mixed before the loss")
    numbers = sum(tape.values[index].tensor.numel() for index in made) // program.samples
    width = tape.values[scores.made[0]].tensor.numel() // program.samples
    if numbers * width > MOST_NUMBERS:
        raise NotOnTapeError("what its units do to the scores has too many numbers to be learned")
    inside = {output for step in program.steps for output in program.operation(tape, step.number).outputs}
    whole = Dense.of(tape, program, set(made) - inside, scores.made)
    return _Products(Entries(products, [], program), scores, whole, program)


def offer_feedback(recording: Recording, block: Block) -> ProductFeedbackTier:
    """Return the tier that scores a block by learned feedback.

    Args:
        recording: The commit pass.
        block: The parameters.

    Raises:
        NotOfferedError: Where it cannot, or need not.
    """
    check_slopes(block)
    offer_from_tape(recording, block)
    if candidates_wanted(block) <= _FEW_CANDIDATES:
        raise NotOfferedError("so few candidates are scored exactly")
    return offered(ProductFeedbackTier(block, recording))
