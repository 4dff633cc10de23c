"""Score: run the operations behind a parameter again for many candidates at once, on what each of them changes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_polystep.tape.execute import execute, gone_axes, sum_axes
from lightning_polystep.tape.frame import Frame, difference
from lightning_polystep.tape.program import Program, Stage
from lightning_polystep.tape.tape import Operation, Tape


@torch.no_grad()
def replay(tape: Tape, program: Program, rows: Tensor, changed: Mapping[int, Tensor]) -> Tensor:
    """Return the loss of each candidate.

    Args:
        tape: What the step did.
        program: What of it depends on the parameters.
        rows: The unit of each candidate, (K,).
        changed: For each value that candidates change what it is for them, (K, ...): with a unit, its axis has a single
            place.

    Returns:
        Shape (K,).
    """
    everyone = torch.arange(len(rows), device=rows.device)
    units = Frame(tape, program, Stage.UNIT, everyone, rows, values=dict(changed))
    whole = Frame(tape, program, Stage.WHOLE, everyone, rows, earlier=(units, everyone))
    if program.unit is None:
        whole.values.update(changed)
    frame = units
    level = 0
    for place, step in enumerate(program.steps):
        operation = program.operation(tape, step.number)
        if step.stage == Stage.UNIT:
            execute(units, operation)
        elif step.stage == Stage.SAMPLE or step.sums_samples:
            while level < step.level:
                level += 1
                frame = _next_level(frame, program, level)
            if step.sums_samples:
                _sum_samples(frame, whole, operation)
            else:
                execute(frame, operation)
        else:
            execute(whole, operation)
        for index in program.releases.get(place, ()):
            _release(index, units, frame, whole)
    return whole.read(program.loss)[0].reshape(len(rows))


def _next_level(frame: Frame, program: Program, level: int) -> Frame:
    """Keep the instances in which something that is read from now on has changed."""
    exits = program.exits.get(level, [])
    if frame.stage == Stage.UNIT:
        return _pairs(frame, program, exits)
    changed = torch.zeros(frame.count, dtype=torch.bool, device=frame.candidates.device)
    for index in exits:
        if frame.enters(index):
            new, old = frame.at_unit(index), frame.recorded(index, with_unit=True)[0]
        else:
            new, old = frame.read(index)[0], frame.recorded(index)[0]
        changed |= (new != old).flatten(1).any(1)
    kept = _at_least_one(changed.nonzero().squeeze(1))
    samples = None if frame.samples is None else frame.samples[kept]
    return Frame(
        frame.tape, program, Stage.SAMPLE, frame.candidates[kept], frame.units[kept], samples, earlier=(frame, kept)
    )


def _pairs(units: Frame, program: Program, exits: list[int]) -> Frame:
    """Find the pairs (candidate, sample) in which a unit does something else than in the step."""
    changed = torch.zeros(units.count, program.samples, dtype=torch.bool, device=units.candidates.device)
    for index in exits:
        differs = units.values[index] != units.recorded(index)[0]
        if program.position(index, program.sample) is None:
            changed |= differs.flatten(1).any(1)[:, None]
            continue
        slots = [label for own in program.axes[index] for label in (own or (None,))]
        sizes = [1 if s is None or s == program.unit else program.labels.size((s,)) for s in slots]
        apart = differs.reshape(units.count, *sizes).movedim(slots.index(program.sample) + 1, 1)
        changed |= apart.flatten(2).any(2)
    pairs = changed.nonzero()
    if not len(pairs):
        pairs = pairs.new_zeros(1, 2)
    candidates, samples = pairs.unbind(1)
    return Frame(
        units.tape, program, Stage.SAMPLE, candidates, units.units[candidates], samples, earlier=(units, candidates)
    )


def _at_least_one(kept: Tensor) -> Tensor:
    return kept if len(kept) else kept.new_zeros(1)


def _sum_samples(frame: Frame, whole: Frame, operation: Operation) -> None:
    """Add the changes of a candidate's samples to what was recorded of their sum."""
    index, made = operation.operands[0], operation.outputs[0]
    assert made is not None
    unit = frame.program.position(index, frame.program.unit)
    if frame.enters(index) and unit in gone_axes(frame, operation):
        change = frame.change(index)
    else:
        change = difference(frame.read(index)[0], frame.recorded(index)[0])
    change = sum_axes(frame, operation, change)
    recorded = frame.tape.values[made].tensor
    total = change.new_zeros(whole.count, *change.shape[1:]).index_add_(0, frame.candidates, change)
    whole.values[made] = recorded + total.reshape(whole.count, *recorded.shape)


def _release(index: int, *frames: Frame) -> None:
    for frame in frames:
        each: Frame | None = frame
        while each is not None:
            each.values.pop(index, None)
            each = each.earlier[0] if each.earlier is not None else None
