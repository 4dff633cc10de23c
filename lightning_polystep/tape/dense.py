"""Score: replay operations with given values of all units at once, as a forward pass that begins in the middle.

Batch normalisation keeps the statistics of the recorded step: when all samples are shifted at once, it would take away
what is to be seen. That a shift or a scaling of all samples alike does nothing is for the caller to mind.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_polystep.tape.apart import PRODUCTS
from lightning_polystep.tape.execute import execute
from lightning_polystep.tape.frame import Frame
from lightning_polystep.tape.fuse import MOST_WIDER, Loops, Region, partition
from lightning_polystep.tape.fuse import run as run_loop
from lightning_polystep.tape.norms import is_batch_norm, normalised_as_recorded
from lightning_polystep.tape.program import Program, Stage, Step
from lightning_polystep.tape.tape import Operation, Tape

aten = torch.ops.aten


@dataclass(eq=False)
class Dense:
    """Operations that lead from given values to wanted ones.

    Args:
        program: They are its steps, without a unit or a sample that an instance fixes.
        wanted: What they are run for.
        fused: The same with compiled loops.
        loops: Those.
    """

    program: Program
    wanted: list[int]
    fused: Sequence[Step | Region]
    loops: Loops

    @classmethod
    def of(cls, tape: Tape, program: Program, given: Collection[int], wanted: Sequence[int]) -> Dense:
        """Find the operations.

        Args:
            tape: Of the structure that the program was read off.
            program: Holds all operations that depend on the given values.
            given: Values that are given.
            wanted: Values that depend on them.
        """
        needed, steps = set(wanted), list[Step]()
        for step in reversed(program.steps):
            operation = program.operation(tape, step.number)
            if any(made in needed and made not in given for made in operation.outputs):
                steps.append(Step(step.number, Stage.WHOLE))
                needed.update(operation.operands)
        home = dict.fromkeys(program.home, (Stage.WHOLE, 0))
        whole = replace(program, unit=None, sample=None, home=home, steps=steps[::-1])
        works = list(partition(tape, whole, whole.steps, wanted=wanted)) if steps else []
        wide = any(_is_wider(tape, whole, work) for work in works if isinstance(work, Region))
        fused = whole.steps if wide else works
        return cls(whole, list(wanted), fused, Loops.of("What units pass on", fused))

    @property
    def steps(self) -> list[Step]:
        """The operations, in their order."""
        return self.program.steps

    @torch.no_grad()
    def run(
        self,
        tape: Tape,
        given: Mapping[int, Tensor],
        shifts: Mapping[int, Tensor] | None = None,
        runs: int = 0,
    ) -> dict[int, Tensor]:
        """Return the wanted values, (I, ...).

        Args:
            tape: Of the structure.
            given: Values of I instances, (I, ...).
            shifts: What is added to others, (I, ...): to what was recorded of them, or comes out on the way.
            runs: How often it has been run before, about, which decides whether loops pay.
        """
        if shifts or not self.loops.pay(runs, len(self.steps)) or self._is_elsewhere(tape, given):
            return self._run(tape, self.steps, given, shifts or {})
        found = self._run(tape, self.fused, given, {})
        return dict(self.loops.checked(found, lambda: self._run(tape, self.steps, given, {})))

    def _is_elsewhere(self, tape: Tape, given: Mapping[int, Tensor]) -> bool:
        """Tell whether loops would not do: on other devices, and where numbers that stand in them have changed."""
        return any(each.device.type != "cpu" for each in given.values()) or not self.program.holds_for(tape)

    def _run(
        self, tape: Tape, works: Sequence[Step | Region], given: Mapping[int, Tensor], shifts: Mapping[int, Tensor]
    ) -> dict[int, Tensor]:
        everyone = torch.arange(len(next(iter(given.values() if given else shifts.values()))))
        values = dict(given)
        if shifts:
            inside = {made for step in self.steps for made in self.program.operation(tape, step.number).outputs}
            values |= {made: tape.values[made].tensor + each for made, each in shifts.items() if made not in inside}
        frame = Frame(tape, self.program, Stage.WHOLE, everyone, torch.zeros_like(everyone), values=values)
        for work in works:
            if isinstance(work, Region):
                run_loop(frame, work)
                continue
            operation = self.program.operation(tape, work.number)
            if is_batch_norm(operation):
                made = operation.outputs[0]
                assert made is not None
                frame.values[made] = normalised_as_recorded(frame, operation)
            else:
                execute(frame, operation)
            for index in shifts.keys() & set(operation.outputs) if shifts else ():
                frame.values[index] = frame.read(index)[0] + shifts[index]
        return {index: frame.values[index] for index in self.wanted}


def _is_wider(tape: Tape, program: Program, region: Region) -> bool:
    """Tell whether a loop would go over many more places than its operations do, because their axes do not meet."""
    lanes = math.prod(program.labels.size((label,)) for label in region.lanes)
    made = [o for step in region.steps for o in program.operation(tape, step.number).outputs if o is not None]
    return lanes * len(region.statements) > MOST_WIDER * sum(tape.values[index].tensor.numel() for index in made)


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
