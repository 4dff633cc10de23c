"""Score: a single number of the whole step on the way to the loss, as a penalty on the mean of all spikes is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_polystep.scoring.layer import Layer, Radii
from lightning_polystep.scoring.precision import half_difference, precise
from lightning_polystep.scoring.takers import Moment
from lightning_polystep.tape import Entry, Program, Segment, Tape, compile_program, replay, schedule

# How far it is moved to see what that does to the loss: in parts of itself, and at least.
_PART, _LEAST = 0.1, 1e-3


@dataclass(eq=False, repr=False)
class Number(Layer):
    """A layer of one unit for the whole step: no sample has a part in it of its own, so it is moved as a whole.

    Args:
        made: The number.
        program: What lies behind it.
        segments: The same in the order in which it runs.
    """

    made: int
    program: Program
    segments: Sequence[Segment]

    @classmethod
    def of(cls, tape: Tape, made: int, loss: int) -> Number:
        """Find what lies behind a number.

        Args:
            tape: Of the step.
            made: The number.
            loss: The value of the loss.

        Raises:
            NotOnTapeError: Where that cannot be replayed.
        """
        program = compile_program(tape, {made: None}, loss)
        return cls(made, program, schedule(tape, program, fuse=False))

    @property
    def products(self) -> list[Entry]:
        """Itself."""
        return [Entry(self.made, self.made, None, None)]

    @property
    def learns(self) -> bool:
        """That nothing of it is learned."""
        return False

    def _learn(self, moment: Moment, radii: Radii | None) -> None:
        del moment, radii

    def _usual(self, tape: Tape) -> Radii:
        return Radii({}, precise(tape.values[self.made].tensor).new_ones(1))

    def slopes_at(self, moment: Moment, radii: Radii) -> dict[int, Tensor]:
        """Return the slope of the loss by it, whatever it is shifted by elsewhere."""
        del radii
        tape, value = moment.tape, precise(moment.tape.values[self.made].tensor)
        far = (_PART * value.abs()).clamp(min=_LEAST)
        both = torch.stack([value + far, value - far]).to(tape.values[self.made].tensor)
        rows = torch.zeros(2, dtype=torch.long, device=value.device)
        losses = replay(tape, self.program, self.segments, rows, {self.made: both})
        return {self.made: half_difference(losses.double()).to(value) / far}
