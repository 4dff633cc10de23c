r"""Score: how the loss of each sample answers to its scores, which is what the last products of a step make.

A score k of sample n, the pre-activation of a unit of the readout, may have several places, as the steps of time. Two
replays of the tape move all of them by :math:`\pm\rho`, and

.. math:: e_{nk} = \frac{1}{R} \sum_\rho \frac{f_n(s_k + \rho) - f_n(s_k - \rho)}{2 \rho}

is the slope of the loss by the score, over three radii, so that thresholds near and far are seen. No derivative: the
loss may be any function of the scores. All places of a score are taken to matter alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_polystep.scoring.slopes import precise
from lightning_polystep.scoring.taped import FORWARDS, Recording
from lightning_polystep.tape import (
    Apart,
    NotOnTapeError,
    Program,
    Segment,
    Work,
    compile_program,
    last_products,
    mixes_changes,
    replay,
    schedule,
)

# In parts of the standard deviation of the scores.
_RADII = (0.1, 0.3, 0.9)


@dataclass(eq=False)
class Scores:
    """The scores of a step.

    Args:
        made: What the last products make, all of one shape, (N', K).
        program: What lies behind them.
        segments: The same in the order in which it runs.
    """

    made: list[int]
    program: Program
    segments: list[Segment]

    @classmethod
    def of(cls, recording: Recording) -> Scores | None:
        """Find the scores of a step; None where each sample's loss is no function of its own."""
        tape, loss = recording.taken(), recording.loss
        if loss is None:
            return None
        made = last_products(tape, loss)
        shapes = {tape.values[index].tensor.shape for index in made}
        if len(shapes) != 1 or len(next(iter(shapes))) != 2:
            return None
        try:
            program = compile_program(tape, dict.fromkeys(made, 1), loss)
        except NotOnTapeError:
            return None
        if not mixes_changes(tape, program) or any(program.position(index, program.sample) != 0 for index in made):
            return None
        segments = schedule(tape, program, fuse=False)
        work = Work.of(tape, program, segments)
        scores = next(iter(shapes))[1]
        dear = 2 * len(_RADII) * scores * work.candidate > FORWARDS * work.forward
        return None if dear else cls(made, program, segments)

    def slopes(self, recording: Recording) -> Tensor:
        """Return the slope of the loss by each place of a score, (N', K), once for a tape."""
        tape = recording.taken()
        # Every layer has a program of its own, and all of them the same scores.
        key = ("slopes by scores", *self.made)
        if key not in tape.arrays:
            tape.arrays[key] = self._measured(recording)
        slopes: Tensor = tape.arrays[key]
        return slopes

    def _measured(self, recording: Recording) -> Tensor:
        tape, program = recording.taken(), self.program
        values = {index: tape.values[index].tensor for index in self.made}
        spread = torch.stack([precise(value).std() for value in values.values()]).mean()
        count = next(iter(values.values())).shape[1]
        steps = torch.tensor([*_RADII, *(-each for each in _RADII)]).to(spread) * spread
        rows = torch.arange(count, device=spread.device).repeat_interleave(len(steps))
        moved = steps.repeat(count)
        changed = {
            index: value.T[rows].unsqueeze(2) + moved.reshape(-1, 1, 1).to(value) for index, value in values.items()
        }
        losses = replay(tape, program, self.segments, rows, changed, {}, Apart(program.samples)).double()
        up, down = losses.reshape(count, 2, len(_RADII), -1).unbind(1)
        radii = (steps[: len(_RADII)].double())[:, None]
        mean = ((up - down) / (2 * radii.clamp(min=torch.finfo(torch.float64).tiny))).mean(1)  # (K, samples)
        return self._spread_over_places(mean.to(spread))

    def _spread_over_places(self, of_sample: Tensor) -> Tensor:
        """Give each place of a score its part, (N', K), of what was measured of all of them, (K, samples)."""
        program, made = self.program, self.made[0]
        axis = program.axes[made][0]
        sizes = [program.labels.size((label,)) for label in axis]
        others = [size if label == program.sample else 1 for label, size in zip(axis, sizes, strict=True)]
        count = len(of_sample)
        whole = of_sample.reshape(count, *others).expand(count, *sizes).reshape(count, -1)
        return whole.T / (len(self.made) * (whole.shape[1] / program.samples))

    def of_samples(self, program: Program, value: Tensor) -> Tensor:
        """Return what belongs to the scores of each sample, (N, S).

        Their places are added up where the loss makes no difference between them, as between steps of time.

        Args:
            program: Of a layer, which knows where samples are.
            value: Of the scores, (N', K).
        """
        apart = places_of_samples(program, self.made[0], value)
        return apart.flatten(1) if self.program.samples > len(apart) else apart.sum(1)

    def changed(self, program: Program, values: Mapping[int, Tensor]) -> Tensor:
        """Return how the scores of each sample changed, all products taken together, (N, S).

        Args:
            program: Of a layer, which knows where samples are.
            values: What changed of what each product makes.
        """
        return torch.stack([self.of_samples(program, values[index]) for index in self.made]).sum(0)


def sizes_and_samples(program: Program, index: int) -> tuple[list[int], int]:
    """Return the sizes of a value's labels one by one, and which of them the samples are.

    Args:
        program: Knows the labels.
        index: The value.
    """
    slots = program.slots(index)
    return [1 if label is None else program.labels.size((label,)) for label in slots], slots.index(program.sample)


def places_of_samples(program: Program, index: int, value: Tensor) -> Tensor:
    """Return what a product makes of each sample, (N, places, K).

    Args:
        program: Knows where samples are.
        index: What the product makes.
        value: As large as that, (N', K).
    """
    sizes, at = sizes_and_samples(program, index)
    return value.reshape(sizes).movedim(at, 0).reshape(sizes[at], -1, value.shape[-1])
