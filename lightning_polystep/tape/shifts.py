"""Score: products that take a parameter as it is: directions that rows share are multiplied once for all rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from lightning_polystep.tape.program import Program, Stage
from lightning_polystep.tape.tape import Tape

aten = torch.ops.aten


class Shifted(NamedTuple):
    """A product whose output a candidate's row shifts at its unit.

    Args:
        made: What it makes.
        inputs: What the row is multiplied with, (..., D).
        columns: Which of the parameters act on it: their places in the block.
    """

    made: int
    inputs: int
    columns: tuple[int, ...]


def shifted_products(tape: Tape, program: Program, parameters: Sequence[int | None]) -> tuple[list[Shifted], bool]:
    """Find the products of stage ``UNIT`` that take a block's weight, and perhaps its bias, as they are.

    Args:
        tape: Of the structure that the program was read off.
        program: The program.
        parameters: The values of the block's parameters, in their order; None for one that the step does not use.

    Returns:
        The products, and whether nothing else reads the parameters.
    """
    own = {index: place for place, index in enumerate(parameters) if index is not None}
    turned = {
        program.operation(tape, step.number).outputs[0]: program.operation(tape, step.number).operands[0]
        for step in program.steps
        if tape.operations[step.number].function is aten.t.default
        and program.operation(tape, step.number).operands[0] in own
    }
    products, alone = [], True
    for step in program.steps:
        operation = program.operation(tape, step.number)
        if operation.outputs[0] in turned:
            continue
        read = [index for index in operation.operands if index in own or index in turned]
        if not read:
            continue
        packet = getattr(operation.function, "overloadpacket", None)
        if packet not in {aten.mm, aten.addmm} or step.stage != Stage.UNIT or operation.kwargs:
            alone = False
            continue
        *added, left, right = operation.operands
        if right not in turned or left in program.home or tape.values[left].tensor.ndim != 2:
            alone = False
            continue
        columns = [own[turned[right]]]
        if added and added[0] in own:
            columns.append(own[added[0]])
        elif added and added[0] in program.home:
            alone = False
            continue
        made = operation.outputs[0]
        assert made is not None
        products.append(Shifted(made, left, tuple(columns)))
    return products, alone
