r"""Score candidates by how the loss of each sample answers to random shifts of a unit: node perturbation.

The pre-activation of unit u has P places in a sample: the positions of an image, the tokens of a sequence, the steps of
time. A replay of the tape adds :math:`\rho_{np} \sigma_{np}` to all of them, with random signs :math:`\sigma`, another
adds the opposite, and half the difference of the two losses of sample n,
:math:`o_n = (f_n(\rho\sigma) - f_n(-\rho\sigma)) / 2`, tells how much each place matters:
:math:`E[o_n \sigma_{np} / \rho_{np}]` is the mean slope of the loss there. With the inputs x of the place,

.. math:: g_u = \sum_{np} \frac{o_n \sigma_{np}}{\rho_{np}} x_{np}

estimates the slope by what the row is multiplied as (``slopes.py``), for any number of directions, from two replays of
a row. An estimate: unbiased where the response is linear within the radius, and noisy, the less so the more patterns a
step affords. The radius is that of the candidates, so that steps and thresholds within it are seen. Node perturbation
goes back to Widrow and Lehr (1990, "30 years of adaptive neural networks", section on MRIII); it is applied here to one
unit at a time, in mirrored pairs, under common random numbers.

Is it worth it? With noise of :math:`\nu` times the signal for one pattern, b patterns find the direction of steepest
descent with a squared cosine of :math:`1 / (1 + \nu / b)`; as many replays of b directions of D, exactly, with b / D.
So the estimate is used where :math:`D > b + \nu`, measured on the trial.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lightning_polystep.particles import Block, Proposal
from lightning_polystep.randomness import generator
from lightning_polystep.scoring.grid import offer_from_tape
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.slopes import Reaches, SlopeTier, add_slopes, check_slopes, odd_parts, of_samples
from lightning_polystep.scoring.taped import Recording
from lightning_polystep.scoring.tier import NotOfferedError
from lightning_polystep.subspaces import directions_wanted
from lightning_polystep.tape import Apart, Work, mixes_changes

# More patterns than this of a row say little more.
_MOST_PATTERNS = 8
# Later in training samples agree less than on the trial, and the estimate is so much noisier.
_NOISIER_LATER = 2.0


@dataclass
class NodePerturbationTier(SlopeTier):
    """Replays random shifts of each row, and estimates its candidates from them.

    Args:
        patterns: How many are drawn for each row in a step; each is replayed with both signs.
    """

    patterns: int = field(default=1, kw_only=True)
    name: ClassVar[str] = "nodes"

    @property
    def replays_of_row(self) -> int:
        """A pattern and its opposite."""
        return 2

    def obstacle(self) -> str:
        """Say why rows cannot be looked at on the batch that was recorded; nothing where they can."""
        entered = self.recording.entries(self.block)
        if entered is None or not mixes_changes(self.recording.taken(), entered[1].program):
            return "it does not reach the loss of each sample by products alone"
        return ""

    def work_of_row(self) -> Work:
        """Return what a replay of shifts costs."""
        return self.entered[1].work

    def slopes_of_rows(self, proposal: Proposal, probe: Probe, places: Tensor) -> dict[int, Tensor]:
        """Return the slope of the loss by what some rows are multiplied as, as estimated: (R, D) by value."""
        entries, script = self.entered
        reaches, tape = Reaches.of(self, entries, proposal), self.recording.taken()
        seed, step, micro_batch = probe.noise_key
        draw = generator(seed, step, f"nodes/{self.block.name}/{int(places[0])}", micro_batch)
        reach, shifts, signs = proposal.reach[places], dict[int, Tensor](), dict[object, Tensor]()
        for key, (entry, typical) in reaches.items():
            signs[key] = _signs((len(places), self.patterns, *typical.shape), draw, typical)
            one = signs[key] * typical * reach.reshape(-1, *[1] * (1 + typical.ndim)).to(typical)
            both = torch.stack([one, -one], 2).flatten(0, 2).unsqueeze(2)  # (R * K * 2, N', 1, ...)
            both = both.to(tape.values[entry.made].tensor.dtype)
            shifts |= {each.made: both for each in entries.products if each.key == key}
        rows = proposal.rows[places].repeat_interleave(2 * self.patterns)
        replays, samples = 2 * self.patterns * len(proposal.rows), script.program.samples
        losses = self.replayed(script, probe, replays, rows, {}, shifts, Apart(samples))
        each = losses.reshape(len(places), self.patterns, 2, samples)
        odd, slopes = 0.5 * (each[:, :, 0] - each[:, :, 1]), dict[int, Tensor]()
        for key, (entry, typical) in reaches.items():
            flat, own = typical.reshape(len(typical), -1), signs[key].reshape(*signs[key].shape[:3], -1)
            met = (of_samples(script.program, entry.made, odd.to(flat))[..., None] * own).mean(1)
            answer = met * torch.where(flat > 0, 1 / flat, 0.0) / reach[:, None, None]
            add_slopes(slopes, tape, entry, answer, proposal.rows[places])
        return slopes

    def approximation(self) -> str:
        """Say what is approximated."""
        return f"estimated from {2 * self.patterns} random shifts of each row"

    def verdict(self, trial: Proposal, costs: Tensor, exact: Tensor) -> str:
        """Say why exact costs of few directions tell more; nothing where they do not."""
        if trial.mirrored:
            costs, exact = (odd_parts(trial, each) for each in (costs, exact))
        noise = float((costs - exact).square().sum() / exact.square().sum().clamp(min=torch.finfo(exact.dtype).tiny))
        patterns = min(_MOST_PATTERNS, max(1, (self.affordable_rows() or 1) // self.block.rows_in_play))
        directions = directions_wanted(self.block)
        if directions > patterns + _NOISIER_LATER * noise:
            return ""
        return f"noise of {noise:.2g} times the signal, more than {patterns} of {directions} exact directions miss"

    def repeat(self, most: float) -> int:
        """Use as many patterns as can be paid for; return how many."""
        self.patterns = max(1, min(_MOST_PATTERNS, int(most)))
        return self.patterns

    @property
    def most_repeats(self) -> int:
        """How many patterns of a row are worth replaying."""
        return _MOST_PATTERNS


def _signs(shape: tuple[int, ...], draw: torch.Generator, like: Tensor) -> Tensor:
    drawn = torch.randint(0, 2, shape, generator=draw, dtype=torch.int8)
    return (2 * drawn - 1).to(like)


def offer_nodes(recording: Recording, block: Block) -> NodePerturbationTier:
    """Return the tier that estimates the costs of a block.

    Args:
        recording: The commit pass.
        block: The parameters.

    Raises:
        NotOfferedError: Where it cannot, or need not be estimated.
    """
    check_slopes(block)
    plain = offer_from_tape(recording, block)
    if plain.approximation() or plain.affords_all():
        raise NotOfferedError("its directions are scored by exact replays, or on a grid")
    entered = recording.entries(block)
    if entered is None or not mixes_changes(recording.taken(), entered[1].program):
        raise NotOfferedError("it does not reach the loss of each sample by products alone")
    return NodePerturbationTier(block, recording)
