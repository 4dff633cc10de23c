"""Score: run the operations behind a parameter again for many candidates at once, on what each of them changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_polystep.tape.execute import execute, gone_axes, sum_axes
from lightning_polystep.tape.frame import Apart, Blend, Frame, difference, pick
from lightning_polystep.tape.fuse import Region, run
from lightning_polystep.tape.pairs import next_level, pairs_of
from lightning_polystep.tape.program import Program, Stage
from lightning_polystep.tape.schedule import Segment
from lightning_polystep.tape.tape import Operation, Tape


@torch.no_grad()
def replay(
    tape: Tape,
    program: Program,
    segments: Sequence[Segment],
    rows: Tensor,
    changed: Mapping[int, Tensor],
    shifts: Mapping[int, Tensor] | None = None,
    blend: Blend | Apart | None = None,
) -> Tensor:
    """Return the loss of each candidate.

    Args:
        tape: What the step did.
        program: What of it depends on the parameters.
        segments: The program in the order in which it runs.
        rows: The unit of each candidate, (K,).
        changed: For each value that candidates change what it is for them, (K, ...): with a unit, its axis has a single
            place.
        shifts: Of products of stage ``UNIT``, by what they make, what a candidate adds to its unit, (K, ..., 1).
        blend: What candidates are made of those that are replayed; by default they are these.

    Returns:
        Shape (K,).
    """
    everyone = torch.arange(len(rows), device=rows.device)
    units = Frame(tape, program, Stage.UNIT, everyone, rows, values=dict(changed), shifts=dict(shifts or {}))
    if blend is None:
        whole = Frame(tape, program, Stage.WHOLE, everyone, rows, earlier=(units, everyone))
    else:
        of_rows = blend.of_candidates(rows)
        whole = Frame(tape, program, Stage.WHOLE, torch.arange(len(of_rows), device=rows.device), of_rows)
    if program.unit is None:
        whole.values.update(changed)
    frame, level = units, 0
    for segment in segments:
        while segment.stage != Stage.UNIT and level < segment.level:
            level += 1
            exits = program.exits.get(level, [])
            frame = pairs_of(units, exits) if level == 1 else next_level(frame, exits)
        if segment.sums_samples:
            operation = program.operation(tape, segment.work.number)  # type: ignore[union-attr]
            _sum_samples(frame, whole, units, operation, blend)
        else:
            _run(units if segment.stage == Stage.UNIT else whole if segment.stage == Stage.WHOLE else frame, segment)
        for index in segment.releases:
            _release(index, frame, whole)
    return whole.read(program.loss)[0].reshape(whole.count)


def mixes_changes(tape: Tape, program: Program) -> bool:
    """Tell whether a :class:`Blend` of candidates can be told from their changes of each sample.

    That is so where samples are apart up to sums over them, and nothing else is read of them.

    Args:
        tape: Of the structure that the program was read off.
        program: The program.
    """
    if program.sample is None or program.unit is None:
        return False
    for step in program.steps:
        operation = program.operation(tape, step.number)
        homes = [program.home[index][0] for index in operation.operands if index in program.home]
        if step.stage == Stage.UNIT and program.mixes(operation, step.number, program.sample):
            return False
        if step.sums_samples:
            made = operation.outputs[0]
            assert made is not None
            if Stage.UNIT in homes and tape.values[made].tensor.ndim:
                return False
        elif step.stage == Stage.WHOLE and any(home != Stage.WHOLE for home in homes):
            return False
    return True


def places_kept_apart(tape: Tape, program: Program, index: int) -> tuple[int, ...]:
    """Return the labels of a changed value, other than samples, of which each place has a loss of its own.

    The tokens of a sequence have where each is a word to tell, the steps of time have not where spikes are counted.

    Args:
        tape: Of the structure that the program was read off.
        program: The program; changes of its samples must be told apart (:func:`mixes_changes`).
        index: The value.
    """
    others = {program.unit, program.sample}
    labels = [label for label in program.slots(index) if label is not None and label not in others]
    return tuple(label for label in labels if _kept_apart(tape, program, label))


def _kept_apart(tape: Tape, program: Program, label: int) -> bool:
    """Tell whether places of a label meet nowhere before they are added up with the samples."""
    read = {program.loss} | {i for step in program.steps for i in program.operation(tape, step.number).operands}
    for step in program.steps:
        operation = program.operation(tape, step.number)
        changed = [index for index in operation.operands if index in program.home]
        made = [index for index in operation.outputs if index in read and index is not None]
        if step.sums_samples:
            added_up = program.position(operation.operands[0], label) is not None
            if not added_up or any(tape.values[index].tensor.numel() > 1 for index in made):
                return False
        elif step.stage != Stage.WHOLE:
            held = all(program.position(index, label) is not None for index in (*changed, *made))
            if not held or program.mixes(operation, step.number, label):
                return False
    return True


def _run(frame: Frame, segment: Segment) -> None:
    if isinstance(segment.work, Region):
        run(frame, segment.work)
        return
    operation = frame.program.operation(frame.tape, segment.work.number)
    if not _only_for_shifts(frame, operation):
        execute(frame, operation)


def _only_for_shifts(frame: Frame, operation: Operation) -> bool:
    """Tell whether an operation works on a parameter that is given by its shifts alone."""
    return frame.stage == Stage.UNIT and all(
        index not in frame.values and index in frame.program.home for index in operation.operands
    )


def _sum_samples(frame: Frame, whole: Frame, units: Frame, operation: Operation, blend: Blend | Apart | None) -> None:
    """Add the changes of a candidate's samples to what was recorded of their sum."""
    index, made = operation.operands[0], operation.outputs[0]
    assert made is not None
    unit = frame.program.position(index, frame.program.unit)
    of_unit = frame.enters(index) and unit in gone_axes(frame, operation)
    if blend is not None and of_unit:
        change = blend.totals(_places_apart(units, operation, blend.places))
    elif blend is not None and blend.places:
        change = blend.totals(frame.by_sample(_places_apart(frame, operation, blend.places)[:, 0]))
    elif blend is not None:
        change = blend.totals(frame.by_sample(_sum_of_samples(frame, operation)))
    else:
        change = _sum_of_unit(units, operation) if of_unit else frame.by_candidate(_sum_of_samples(frame, operation))
    recorded = frame.tape.values[made].tensor
    whole.values[made] = recorded + change.reshape(whole.count, *recorded.shape).to(recorded.dtype)


def _sum_of_samples(frame: Frame, operation: Operation) -> Tensor:
    """Return by how much what a sum adds up changes for each instance, (I, ...)."""
    index, made = operation.operands[0], operation.outputs[0]
    new, program, tape = frame.read(index)[0], frame.program, frame.tape
    if frame.samples is None or program.position(index, program.sample) is None:
        return sum_axes(frame, operation, difference(new, frame.recorded(index)[0]))
    key = (program, made, "sum of each sample")
    if key not in tape.arrays:
        every = torch.arange(program.samples, device=new.device)
        apart = pick(program, index, tape.values[index].tensor.double(), {program.sample: every})
        tape.arrays[key] = sum_axes(frame, operation, apart)
    old: Tensor = tape.arrays[key]
    return sum_axes(frame, operation, new, torch.float64) - old[frame.samples]


def _sum_of_unit(units: Frame, operation: Operation) -> Tensor:
    """Return by how much a sum over samples and units changes for each candidate: what its unit adds, (K, ...)."""
    index, made = operation.operands[0], operation.outputs[0]
    program, tape = units.program, units.tape
    new = sum_axes(units, operation, units.values[index].double())
    key = (program, made, "sum of each unit")
    if key not in tape.arrays:
        assert program.unit is not None
        every = torch.arange(program.labels.size((program.unit,)), device=new.device)
        apart = pick(program, index, tape.values[index].tensor.double(), {program.unit: every})
        tape.arrays[key] = sum_axes(units, operation, apart)
    old: Tensor = tape.arrays[key]
    return new - old[units.units]


def _places_apart(frame: Frame, operation: Operation, labels: tuple[int, ...]) -> Tensor:
    """Return what each place with these labels adds to a sum, (I, N, P); N is 1 where an instance is of one sample."""
    index, program = operation.operands[0], frame.program
    new, slots = frame.read(index)[0], program.slots(index)
    change = difference(new, frame.recorded(index)[0]).double()
    sizes = [1 if label is None or label in frame.fixed else frame.size(label) for label in slots]
    kept = [slots.index(label) + 1 for label in (program.sample, *labels)]
    apart = change.reshape(frame.count, *sizes).movedim(kept, list(range(1, len(kept) + 1)))
    apart = apart.reshape(*apart.shape[:2], math.prod(apart.shape[2 : len(kept) + 1]), -1).sum(-1)
    if operation.function.overloadpacket is torch.ops.aten.mean:
        apart = apart / frame.tape.values[index].tensor.numel()
    return apart


def _release(index: int, frame: Frame, whole: Frame) -> None:
    """Forget a value, in the latest frame and in all that it continues."""
    whole.values.pop(index, None)
    each: Frame | None = frame
    while each is not None:
        each.values.pop(index, None)
        each = each.earlier[0] if each.earlier is not None else None
