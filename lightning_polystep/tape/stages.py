"""Stages and levels: when each operation of a program runs, so that a level is complete before the next begins."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_polystep.tape.apart import PRODUCTS
from lightning_polystep.tape.program import Program, Stage, Step
from lightning_polystep.tape.tape import Tape

aten = torch.ops.aten

# Behind them what has changed may be as it was, so that a pair need not go on.
_FORGETFUL = {
    aten.gt, aten.ge, aten.lt, aten.le, aten.eq, aten.ne, aten.sign, aten.round, aten.floor, aten.ceil, aten.trunc,
    aten.heaviside, aten.relu, aten.clamp, aten.clamp_min, aten.clamp_max, aten.threshold, aten.hardtanh,
    aten.hardsigmoid, aten.argmax, aten.argmin, aten.maximum, aten.minimum, aten.max_pool2d_with_indices, aten.max,
    aten.min, aten.topk,
}  # fmt: skip


def put_in_order(
    tape: Tape, relevant: Sequence[int], changed: set[int], local: set[int], sample: int | None, program: Program
) -> None:
    """Give each operation its stage and level, and order them so that a level is complete before the next.

    Args:
        tape: Of a step.
        relevant: Numbers of the operations that depend on a candidate.
        changed: Values that do.
        local: Operations that stay within a unit.
        sample: The label of samples; None where they are mixed.
        program: Its steps, homes and exits are filled in.
    """
    home = program.home
    for index in changed:
        home.setdefault(index, (Stage.UNIT if program.unit is not None else Stage.WHOLE, 0))
    steps, forgotten, thinned = [], set[int](), set[int]()
    for number in relevant:
        operation = tape.operations[number]
        outputs = [o for o in operation.outputs if o is not None]
        packet = getattr(operation.function, "overloadpacket", None)
        forgets = packet in _FORGETFUL or any(i in forgotten for i in operation.operands)
        if number in local:
            step = Step(number, Stage.UNIT)
        else:
            from_samples = [
                index
                for index in operation.operands
                if index in changed and program.position(index, sample) is not None
            ]
            to_samples = any(program.position(o, sample) is not None for o in outputs)
            level = 1
            inner = {i: home[i][1] for i in operation.operands if i in changed and home[i][0] == Stage.SAMPLE}
            begins = packet in PRODUCTS and any(i in forgotten for i in inner)
            forgets = forgets and not begins
            if inner:
                level = max(inner.values()) + (1 if begins else 0)
            if sample is None or not (from_samples or to_samples):
                step = Step(number, Stage.WHOLE)
            elif to_samples:
                thin = any(i in thinned or i in forgotten for i in operation.operands)
                step = Step(number, Stage.SAMPLE, level, thinned=thin)
            else:
                step = Step(number, Stage.WHOLE, level if inner else 1, sums_samples=True)
        if forgets:
            forgotten.update(outputs)
        if step.thinned:
            thinned.update(outputs)
        for o in outputs:
            home[o] = (step.stage, step.level if step.stage == Stage.SAMPLE else 0)
        steps.append(step)
    # Sums run with the level of what they add up, all else of stage WHOLE at the end.
    program.steps = sorted(
        steps,
        key=lambda step: (
            (0, 0) if step.stage == Stage.UNIT
            else (1, step.level) if step.stage == Stage.SAMPLE or step.sums_samples
            else (2, 0)
        ),
    )  # fmt: skip
    _find_exits(tape, program)


def _find_exits(tape: Tape, program: Program) -> None:
    program.exits = {level: [] for level in range(1, program.levels + 1)}
    read_at: dict[int, int] = {}
    for step in program.steps:
        if step.stage == Stage.SAMPLE or step.sums_samples:
            for index in tape.operations[step.number].operands:
                if index in program.home:
                    read_at[index] = max(read_at.get(index, 0), step.level)
    for level in program.exits:
        for index, last in read_at.items():
            stage, own = program.home[index]
            if (stage == Stage.UNIT or (stage == Stage.SAMPLE and own < level)) and last >= level:
                program.exits[level].append(index)
