"""Score: how candidates are replayed: operation by operation, or by compiled loops once these pay."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightning_polystep.tape import MOST_WIDER, Loops, Program, Segment, Shifted, Tape, Work, replay, schedule


@dataclass(eq=False)
class Script:
    """How candidates of some parameters, or of some values, are replayed.

    Args:
        name: Of what candidates change, for people.
        program: What of the step depends on it.
        plain: The same in the order in which it runs, operation by operation.
        fused: Likewise with compiled loops; equal to ``plain`` where there are none.
        work: What a candidate costs.
        loops: Those of ``fused``.
        products: Those that rows of parameters shift.
        shifts_only: Whether nothing but these products reads the parameters.
    """

    name: str
    program: Program
    plain: list[Segment]
    fused: list[Segment]
    work: Work
    loops: Loops
    products: list[Shifted] = field(default_factory=list)
    shifts_only: bool = False

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
        if fused is not plain and work.widest > MOST_WIDER * Work.of(tape, program, plain).widest:
            fused, work = plain, Work.of(tape, program, plain)
        loops = Loops.of(name, (each.work for each in fused))
        return cls(name, program, plain, fused, work, loops, list(products), alone)

    def losses(self, tape: Tape, step: int, replays: int, *given: Any) -> Tensor:
        """Return losses from a replay, float64.

        Args:
            tape: Of a step of the structure.
            step: Its number. It decides when loops are compiled, and not a clock, so that a run that is resumed does
                what it would have done.
            replays: How many candidates are replayed in a step.
            given: Further arguments of :func:`~lightning_polystep.tape.replay`.
        """
        if not self.loops.pay(step, len(self.plain), replays * self.work.plain) or not self.program.holds_for(tape):
            return replay(tape, self.program, self.plain, *given).double()
        losses = replay(tape, self.program, self.fused, *given)
        right = self.loops.checked({0: losses}, lambda: {0: replay(tape, self.program, self.plain, *given)})
        return right[0].double()
