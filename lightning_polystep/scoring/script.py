"""Score: how candidates are replayed: operation by operation, or by compiled loops once these pay."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_polystep.tape import Program, Region, Segment, Shifted, Tape, Work, replay, schedule, warn_of_loops

# Loops that write values so many times as large as operations by themselves are left out.
_WIDER = 4
# What a statement of a loop takes to be compiled, an element of an operation to be computed, and an operation to be
# called for all candidates at once.
_SECONDS_PER_STATEMENT, _SECONDS_PER_ELEMENT, _SECONDS_PER_OPERATION = 4e-3, 1e-9, 4e-5


@dataclass(eq=False)
class Script:
    """How candidates of some parameters, or of some values, are replayed.

    Args:
        name: Of what candidates change, for people.
        program: What of the step depends on it.
        plain: The same in the order in which it runs, operation by operation.
        fused: Likewise with compiled loops; equal to ``plain`` where there are none.
        work: What a candidate costs.
        products: Those that rows of parameters shift.
        shifts_only: Whether nothing but these products reads the parameters.
        compiling: Seconds that the loops take to be compiled, about.
    """

    name: str
    program: Program
    plain: list[Segment]
    fused: list[Segment]
    work: Work
    products: list[Shifted] = field(default_factory=list)
    shifts_only: bool = False
    compiling: float = 0.0
    _compared: bool = field(default=False, init=False, repr=False)

    @classmethod
    def of(
        cls,
        name: str,
        tape: Tape,
        program: Program,
        products: Sequence[Shifted] = (),
        shifted: Collection[int] = (),
        *,
        alone: bool = False,
        fuse: bool = True,
    ) -> Script:
        """Put a program into the order in which it runs.

        Args:
            name: Of what candidates change.
            tape: Of a step.
            program: Read off it.
            products: Those that rows of parameters shift.
            shifted: Values that are given by what candidates add to them.
            alone: Whether nothing but these products reads the parameters.
            fuse: Whether loops may be made of it.
        """
        plain = schedule(tape, program, fuse=False)
        fused = schedule(tape, program, fuse=True, shifted=shifted) if fuse else plain
        work = Work.of(tape, program, fused)
        # Where axes do not meet, a loop would write their outer product.
        if fused is not plain and work.widest > _WIDER * Work.of(tape, program, plain).widest:
            fused, work = plain, Work.of(tape, program, plain)
        statements = sum(len(each.work.statements) for each in fused if isinstance(each.work, Region))
        return cls(name, program, plain, fused, work, list(products), alone, _SECONDS_PER_STATEMENT * statements)

    def losses(self, tape: Tape, step: int, replays: int, *given: Any) -> Tensor:
        """Return losses from a replay, float64.

        Args:
            tape: Of a step of the structure.
            step: Its number. It decides when loops are compiled, and not a clock, so that a run that is resumed does
                what it would have done.
            replays: How many candidates are replayed in a step.
            given: Further arguments of :func:`~lightning_polystep.tape.replay`.
        """
        if self.fused is self.plain or not self._pays(step, replays) or not self.program.holds_for(tape):
            return replay(tape, self.program, self.plain, *given).double()
        losses = replay(tape, self.program, self.fused, *given)
        if not self._compared:
            self._compare(losses, replay(tape, self.program, self.plain, *given))
        return losses.double()

    def _pays(self, step: int, replays: int) -> bool:
        """Tell whether so much time has gone into replays that compiled loops are worth their compilation."""
        computing, calling = replays * self.work.plain * _SECONDS_PER_ELEMENT, len(self.plain) * _SECONDS_PER_OPERATION
        return step * (computing + calling) >= self.compiling

    def _compare(self, losses: Tensor, plain: Tensor) -> None:
        """Compare loops with the operations that they stand for, once."""
        self._compared = True
        if not torch.allclose(losses, plain, rtol=1e-4, atol=1e-6, equal_nan=True):
            self.fused = self.plain
            warn_of_loops(self.name, float((losses - plain).abs().max()))
