"""What of a step a candidate has to replay, and in which order: read off the tape once per structure.

It is found in three steps: what depends on the candidate (``dependence.py``), which axes stay apart (``apart.py``), and
when each operation runs (``stages.py``).

A candidate changes one row of a parameter. As long as its change stays *within its unit*, the place of an axis that the
row became, only that unit is computed, for all candidates at once (stage ``UNIT``). From where units are mixed, as by
the next product, whole samples are, but only those in which the unit changed (stage ``SAMPLE``, one level for each
product on the way). Where samples are taken together, as by the mean of a loss, one number per candidate is left
(stage ``WHOLE``). Where samples are mixed before that, as by batch normalisation, stage ``SAMPLE`` is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from lightning_polystep.tape.apart import Outside, unit_of, within_unit
from lightning_polystep.tape.axes import Labels
from lightning_polystep.tape.dependence import operations_between
from lightning_polystep.tape.flow import Axes, Flow, read
from lightning_polystep.tape.merging import merge_equal, renamed
from lightning_polystep.tape.norms import batch_statistics, is_norm, kept_apart
from lightning_polystep.tape.program import NotOnTapeError, Program
from lightning_polystep.tape.stages import put_in_order
from lightning_polystep.tape.tape import Operation, Tape

_NO_LABEL = -1
_NOTHING = Operation(None, (), {}, (), ())


def compile_program(
    tape: Tape,
    rows: Mapping[int, int | None],
    loss: int,
    *,
    as_recorded: bool = False,
    keeps_statistics: bool = False,
) -> Program:
    """Find out what depends on some parameters, and how.

    Args:
        tape: Of a step.
        rows: The values that a candidate changes, each with the axis along which it changes one place only, or None.
        loss: The value of the loss.
        as_recorded: Whether normalisations are to keep the statistics of the step: an approximation.
        keeps_statistics: Whether those that are written by hand are to, too, where samples do not stay apart else.

    Raises:
        NotOnTapeError: When the loss does not depend on them, or not in a way that can be replayed.
    """
    program = _compiled(tape, rows, loss, as_recorded=as_recorded)
    if keeps_statistics and program.sample is None:
        statistics = batch_statistics(tape, program)
        apart = _compiled(tape, rows, loss, as_recorded=as_recorded, held=statistics) if statistics else program
        return program if apart.sample is None else apart
    return program


def _compiled(
    tape: Tape, rows: Mapping[int, int | None], loss: int, *, as_recorded: bool, held: Collection[int] = ()
) -> Program:
    same, merged = merge_equal(tape)
    fractions = tape.fractions()
    loss, escapes = same.get(loss, loss), tape.escapes
    repeated = {number for number, _ in merged}
    first = [number for number in range(len(tape.operations)) if number not in repeated]
    operations = {number: renamed(tape.operations[number], same) for number in first}
    tape = Tape(
        tape.values,
        [operations.get(n, _NOTHING) for n in range(len(tape.operations))],
        held={same.get(index, index) for index in (*tape.held, *held)},
    )
    relevant, seen = operations_between(tape, set(rows), loss)
    if not relevant:
        raise NotOnTapeError("the loss does not depend on it, as far as the tape shows")
    labels, axes, flows = _follow(tape, relevant, rows, as_recorded=as_recorded)
    changed = set(rows) | {o for number in relevant for o in tape.operations[number].outputs if o is not None}
    unit = unit_of(labels, axes, rows)
    needed = {loss} | {index for number in relevant for index in tape.operations[number].operands}
    local = within_unit(tape, relevant, needed, axes, flows, unit)
    # Without a unit all that a candidate changes is a whole parameter, which no sample holds.
    sample = None
    if unit is not None:
        outside = Outside(tape, [n for n in relevant if n not in local], set(rows), changed, set(), needed, axes, flows)
        outside.wide = changed - {o for number in local for o in tape.operations[number].outputs if o is not None}
        sample = outside.sample(labels, unit)
    samples = labels.size((sample,)) if sample is not None else 0
    program = Program([], labels, axes, flows, unit, sample, samples, {}, loss, same, merged)
    put_in_order(tape, relevant, changed, local, sample, program)
    program.fractions, program.as_recorded = fractions, as_recorded
    program.escapes = tuple(dict.fromkeys(e.place for e in escapes if same.get(e.value, e.value) in seen))
    return program


def whole_program(tape: Tape, sources: Sequence[int], loss: int) -> Program:
    """Find out what depends on values that change at all units and samples, and which axis the samples are.

    Args:
        tape: Of a step.
        sources: The values; some may depend on others.
        loss: The value of the loss.

    Raises:
        NotOnTapeError: When the loss does not depend on them, or not in a way that can be replayed.
    """
    program = compile_program(tape, dict.fromkeys(sources), loss)
    numbers = [step.number for step in program.steps]
    as_read = {number: program.operation(tape, number) for number in numbers}
    renamed_tape = Tape(tape.values, [as_read.get(n, _NOTHING) for n in range(len(tape.operations))])
    changed = set(sources) | {o for number in numbers for o in tape.operations[number].outputs if o is not None}
    needed = {program.loss} | {index for number in numbers for index in program.operation(tape, number).operands}
    outside = Outside(renamed_tape, numbers, set(sources), changed, changed, needed, program.axes, program.flows)
    sample = outside.sample(program.labels, _NO_LABEL)
    samples = program.labels.size((sample,)) if sample is not None else 0
    return replace(program, sample=sample, samples=samples)


def _follow(
    tape: Tape, relevant: Sequence[int], rows: Mapping[int, int | None], *, as_recorded: bool
) -> tuple[Labels, dict[int, Axes], dict[int, Flow]]:
    labels, axes, flows = Labels(), dict[int, Axes](), dict[int, Flow]()

    def axes_of(index: int) -> Axes:
        if index not in axes:
            axes[index] = tuple(labels.fresh(size) for size in tape.values[index].tensor.shape)
        return axes[index]

    of_rows = [axes_of(index)[axis] for index, axis in rows.items() if axis is not None]
    for other in of_rows[1:]:
        labels.unify(of_rows[0], other)
    for number in relevant:
        operation = tape.operations[number]
        made = [index for index in operation.outputs if index is not None]
        flow = read(operation, axes_of, [tape.values[index].tensor for index in made], labels)
        if as_recorded and is_norm(operation):
            flow = kept_apart(flow, axes_of(operation.operands[0]))
        flows[number] = flow
        axes.update(zip(made, flow.outputs, strict=True))
    resolved = {index: tuple(labels.resolve(axis) for axis in own) for index, own in axes.items()}
    return labels, resolved, flows
