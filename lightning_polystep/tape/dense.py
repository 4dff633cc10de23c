"""Score: replay operations with given values of all units at once, as a forward pass that begins in the middle.

Batch normalisation keeps the statistics of the recorded step: when all samples are shifted at once, it would take away
what is to be seen. That a shift or a scaling of all samples alike does nothing is for the caller to mind.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_polystep.tape.apart import PRODUCTS
from lightning_polystep.tape.execute import execute
from lightning_polystep.tape.frame import Frame
from lightning_polystep.tape.norms import is_batch_norm, is_norm, normalised_as_recorded
from lightning_polystep.tape.program import Program, Stage, Step
from lightning_polystep.tape.tape import Operation, Tape

aten = torch.ops.aten


@dataclass(eq=False)
class Dense:
    """Operations that lead from given values to wanted ones.

    Args:
        program: They are some of its steps, without a unit or a sample that an instance fixes.
        steps: In their order.
        wanted: What they are run for.
    """

    program: Program
    steps: list[Step]
    wanted: list[int]

    @classmethod
    def of(cls, tape: Tape, program: Program, given: Collection[int], wanted: Sequence[int]) -> Dense:
        """Find the operations.

        Args:
            tape: Of the structure that the program was read off.
            program: Holds all operations that depend on the given values.
            given: Values that are given.
            wanted: Values that depend on them.
        """
        whole = replace(program, unit=None, sample=None, home=dict.fromkeys(program.home, (Stage.WHOLE, 0)))
        needed, steps = set(wanted), list[Step]()
        for step in reversed(program.steps):
            operation = program.operation(tape, step.number)
            if any(made in needed and made not in given for made in operation.outputs):
                steps.append(step)
                needed.update(operation.operands)
        return cls(whole, steps[::-1], list(wanted))

    @torch.no_grad()
    def run(
        self, tape: Tape, given: Mapping[int, Tensor], shifts: Mapping[int, Tensor] | None = None
    ) -> dict[int, Tensor]:
        """Return the wanted values, (I, ...).

        Args:
            tape: Of the structure.
            given: Values of I instances, (I, ...).
            shifts: What is added to others, (I, ...): to what was recorded of them, or comes out on the way.
        """
        shifts = shifts or {}
        everyone = torch.arange(len(next(iter({**given, **shifts}.values()))))
        inside = {made for step in self.steps for made in self.program.operation(tape, step.number).outputs}
        begun = {made: tape.values[made].tensor + each for made, each in shifts.items() if made not in inside}
        values = {**given, **begun}
        frame = Frame(tape, self.program, Stage.WHOLE, everyone, torch.zeros_like(everyone), values=values)
        for step in self.steps:
            operation = self.program.operation(tape, step.number)
            if is_batch_norm(operation) or (self.program.as_recorded and is_norm(operation)):
                made = operation.outputs[0]
                assert made is not None
                frame.values[made] = normalised_as_recorded(frame, operation)
            else:
                execute(frame, operation)
            for index in shifts.keys() & set(operation.outputs):
                frame.values[index] = frame.read(index)[0] + shifts[index]
        return {index: frame.values[index] for index in self.wanted}


def last_products(tape: Tape, loss: int) -> list[int]:
    """Return what the products make behind which no other product lies, in their order: the scores of a network.

    Args:
        tape: Of a step.
        loss: The value of its loss.
    """
    maker = {made: number for number, each in enumerate(tape.operations) for made in each.outputs if made is not None}
    found, seen, waiting = dict[int, int](), set[int](), [loss]
    while waiting:
        index = waiting.pop()
        if index in seen or index not in maker:
            continue
        seen.add(index)
        operation = tape.operations[maker[index]]
        if _is_product(operation):
            found[maker[index]] = index
        else:
            waiting.extend(operation.operands)
    return [index for number, index in sorted(found.items()) if not _reaches_a_product(tape, number, index)]


def _is_product(operation: Operation) -> bool:
    return getattr(operation.function, "overloadpacket", None) in PRODUCTS


def _reaches_a_product(tape: Tape, number: int, index: int) -> bool:
    reached = {index}
    for operation in tape.operations[number + 1 :]:
        if reached.isdisjoint(operation.operands):
            continue
        if _is_product(operation):
            return True
        reached.update(made for made in operation.outputs if made is not None)
    return False
