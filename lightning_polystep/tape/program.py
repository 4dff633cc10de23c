"""What of a step a candidate has to replay, and in which order: read off the tape once per structure.

A candidate changes one row of a parameter. As long as its change stays *within its unit*, the place of an axis that the
row became, only that unit is computed, for all candidates at once (stage ``UNIT``). From where units are mixed, as by
the next product, whole samples are, but only those in which the unit changed (stage ``SAMPLE``, one level for each
product on the way). Where samples are taken together, as by the mean of a loss, one number per candidate is left
(stage ``WHOLE``). Where samples are mixed before that, as by batch normalisation, stage ``SAMPLE`` is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

import torch

from lightning_polystep.tape.axes import Labels
from lightning_polystep.tape.flow import SHAPE_ONLY, Axes, Flow, is_elementwise, read
from lightning_polystep.tape.merging import merge_equal, renamed
from lightning_polystep.tape.norms import is_norm, kept_apart
from lightning_polystep.tape.tape import Operation, Tape, Unknown

aten = torch.ops.aten

PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.mv, aten.convolution}
# Behind them what has changed may be as it was, so that a pair need not go on.
_FORGETFUL = {
    aten.gt, aten.ge, aten.lt, aten.le, aten.eq, aten.ne, aten.sign, aten.round, aten.floor, aten.ceil, aten.trunc,
    aten.heaviside, aten.relu, aten.clamp, aten.clamp_min, aten.clamp_max, aten.threshold, aten.hardtanh,
    aten.hardsigmoid, aten.argmax, aten.argmin, aten.maximum, aten.minimum, aten.max_pool2d_with_indices, aten.max,
    aten.min, aten.topk,
}  # fmt: skip
# Where numbers that compete are set against one another: what is added to all of them alike changes nothing.
_COMPETITIONS = {aten._log_softmax, aten._softmax, aten.logsumexp}
# A sum over samples: changes of samples add up.
SUMS = {aten.sum, aten.mean}


class Stage(IntEnum):
    """Of what a candidate's values are computed."""

    UNIT = 0
    SAMPLE = 1
    WHOLE = 2


class NotOnTapeError(Exception):
    """Says why candidates of a block cannot be replayed."""


@dataclass
class Step:
    """One operation of the program.

    Args:
        number: Of the operation on the tape.
        stage: Of what its outputs are computed.
        level: Of stage ``SAMPLE``: how many products lie before it.
        sums_samples: Whether it takes samples together that had been apart until then.
        thinned: Of stage ``SAMPLE``: whether pairs in which nothing changes may have been left out before it.
    """

    number: int
    stage: Stage
    level: int = 0
    sums_samples: bool = False
    thinned: bool = False


@dataclass(eq=False)
class Program:
    """How candidates of some parameters are replayed.

    Args:
        steps: In the order in which they are to run.
        labels: Of all axes.
        axes: Of all values that are read or made, resolved.
        flows: Of the operations, by number.
        unit: The label of the axis that a candidate's row became; None where a candidate changes everything.
        sample: The label of the axis of samples; None where samples are mixed.
        samples: How many there are.
        home: Stage and level in which each changed value is computed.
        same: Values that are equal because equal operations made them, each with the first of them.
        merged: Operations whose work an equal one before them has done, each with that one.
        exits: For each level of stage ``SAMPLE``, the values of earlier stages or levels that it or a later one reads.
        fractions: Numbers in the arguments of its operations, which are data and may differ from tape to tape.
        loss: The value of the loss.
        escapes: Where Python reads numbers that depend on them.
        as_recorded: Whether normalisations keep the statistics of the step, and so act place by place.
    """

    steps: list[Step]
    labels: Labels
    axes: dict[int, Axes]
    flows: dict[int, Flow]
    unit: int | None
    sample: int | None
    samples: int
    home: dict[int, tuple[Stage, int]]
    loss: int
    same: dict[int, int] = field(default_factory=dict)
    merged: list[tuple[int, int]] = field(default_factory=list)
    exits: dict[int, list[int]] = field(default_factory=dict)
    fractions: tuple[str, ...] = ()
    escapes: tuple[str, ...] = ()
    as_recorded: bool = False

    def position(self, value: int, label: int | None) -> int | None:
        """Return the axis of a value that holds a label; None where none does."""
        if label is None:
            return None
        return next((i for i, axis in enumerate(self.axes[value]) if label in axis), None)

    def slots(self, value: int) -> list[int | None]:
        """Return the labels of a value's axes one by one, None for an axis of size one that has none."""
        return [label for axis in self.axes[value] for label in (axis or (None,))]

    def mixes(self, operation: Operation, number: int, label: int) -> bool:
        """Tell whether an operation takes places of an axis with a label together.

        Args:
            operation: The operation.
            number: Its place on the tape.
            label: The label.
        """
        return _mixes(self.axes, operation, self.flows[number], label)

    def competes(self, tape: Tape) -> bool:
        """Tell whether units are the scores of a softmax, which no product has taken together before."""
        return self.unit is not None and any(
            getattr(tape.operations[step.number].function, "overloadpacket", None) in _COMPETITIONS
            and self.mixes(self.operation(tape, step.number), step.number, self.unit)
            for step in self.steps
        )

    def operation(self, tape: Tape, number: int) -> Operation:
        """Return an operation that reads, of equal values, always the first."""
        known = tape.bound.setdefault(self, {})
        if number not in known:
            known[number] = renamed(tape.operations[number], self.same)
        return known[number]

    def holds_for(self, tape: Tape) -> bool:
        """Tell whether the numbers in its operations are the same on another tape of the same structure."""
        return self.fractions == tape.fractions()

    @property
    def levels(self) -> int:
        """How many levels stage ``SAMPLE`` has, with the sums behind it."""
        return max((step.level for step in self.steps if step.stage == Stage.SAMPLE or step.sums_samples), default=0)


def compile_program(tape: Tape, rows: Mapping[int, int | None], loss: int, *, as_recorded: bool = False) -> Program:
    """Find out what depends on some parameters, and how.

    Args:
        tape: Of a step.
        rows: The values that a candidate changes, each with the axis along which it changes one place only, or None.
        loss: The value of the loss.
        as_recorded: Whether normalisations are to keep the statistics of the step: an approximation.

    Raises:
        NotOnTapeError: When the loss does not depend on them, or not in a way that can be replayed.
    """
    same, merged = merge_equal(tape)
    fractions = tape.fractions()
    loss, escapes = same.get(loss, loss), tape.escapes
    repeated = {number for number, _ in merged}
    first = [number for number in range(len(tape.operations)) if number not in repeated]
    operations = {number: renamed(tape.operations[number], same) for number in first}
    tape = Tape(
        tape.values,
        [operations.get(n, _NOTHING) for n in range(len(tape.operations))],
        held={same.get(index, index) for index in tape.held},
    )
    relevant, seen = operations_between(tape, set(rows), loss)
    if not relevant:
        raise NotOnTapeError("the loss does not depend on it, as far as the tape shows")
    labels, axes, flows = _follow(tape, relevant, rows, as_recorded=as_recorded)
    changed = set(rows) | {o for number in relevant for o in tape.operations[number].outputs if o is not None}
    unit = _unit(labels, axes, rows)
    needed = {loss} | {index for number in relevant for index in tape.operations[number].operands}
    local = _within_unit(tape, relevant, needed, axes, flows, unit)
    # Without a unit all that a candidate changes is a whole parameter, which no sample holds.
    sample = None
    if unit is not None:
        parts = _Parts(tape, [n for n in relevant if n not in local], set(rows), changed, set(), needed, axes, flows)
        parts.wide = changed - {o for number in local for o in tape.operations[number].outputs if o is not None}
        sample = parts.sample(labels, unit)
    program = _staged(tape, relevant, changed, local, sample, Program(
        [], labels, axes, flows, unit, sample, labels.size((sample,)) if sample is not None else 0, {}, loss,
        same, merged,
    ))  # fmt: skip
    program.fractions, program.as_recorded = fractions, as_recorded
    _find_exits(tape, program)
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
    parts = _Parts(renamed_tape, numbers, set(sources), changed, changed, needed, program.axes, program.flows)
    sample = parts.sample(program.labels, _NO_LABEL)
    samples = program.labels.size((sample,)) if sample is not None else 0
    return replace(program, sample=sample, samples=samples)


_NO_LABEL = -1
_NOTHING = Operation(None, (), {}, (), ())


def operations_between(tape: Tape, sources: set[int], loss: int) -> tuple[list[int], set[int]]:
    """Return the operations on the way from some values to the loss, and all values that depend on them."""
    changed, forward = set(sources), []
    for number, operation in enumerate(tape.operations):
        if getattr(operation.function, "overloadpacket", None) in SHAPE_ONLY:
            continue
        blind = isinstance(operation.function, Unknown) and operation.function.blind
        if blind or any(index in changed for index in operation.operands):
            made = [o for o in operation.outputs if o is not None and o not in tape.held]
            if made:
                forward.append(number)
                changed.update(made)
    needed, relevant = {loss}, []
    for number in reversed(forward):
        operation = tape.operations[number]
        if any(o in needed for o in operation.outputs):
            relevant.append(number)
            needed.update(operation.operands)
    if loss not in changed:
        return [], changed
    for number in relevant:
        _check_repeatable(tape, tape.operations[number], changed)
    return relevant[::-1], changed


def _check_repeatable(tape: Tape, operation: Operation, changed: set[int]) -> None:
    """Raise where what an operation does for another candidate cannot be told."""
    function = operation.function
    if isinstance(function, Unknown):
        raise NotOnTapeError(function.reason)
    if not any(index in changed for index in operation.operands):
        return
    tags = getattr(function, "tags", ())
    if torch.Tag.nondeterministic_seeded in tags and not _drops_nothing(operation):
        raise NotOnTapeError(f"{function} draws at random what depends on it")
    # Which numbers are picked by an index of numbers changes no shape, which places by a mask does.
    packet = getattr(function, "overloadpacket", None)
    masks = [i for i in operation.operands if tape.values[i].tensor.dtype in {torch.bool, torch.uint8}]
    if packet in {aten.index, aten.index_put, aten.masked_select, aten.masked_scatter}:
        varies = any(index in changed for index in masks)
    else:
        varies = torch.Tag.dynamic_output_shape in tags
    if varies:
        raise NotOnTapeError(f"how many values {function} returns depends on it")


def _drops_nothing(operation: Operation) -> bool:
    """Tell whether an operator of attention is called without dropout, and so draws nothing."""
    arguments = operation.function._schema.arguments
    given = dict(zip((a.name for a in arguments), operation.args, strict=False)) | operation.kwargs
    shares = [given.get(a.name, a.default_value) for a in arguments if a.name in {"dropout_p", "dropout"}]
    return shares == [0.0]


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


def _unit(labels: Labels, axes: Mapping[int, Axes], rows: Mapping[int, int | None]) -> int | None:
    """Return the one label of the rows' axes; None where there is none, or several."""
    found = {axes[index][axis] if axis is not None else () for index, axis in rows.items()}
    if len(found) != 1:
        return None
    axis = labels.resolve(next(iter(found)))
    # A square weight that meets its transpose has one axis twice: a row is then no place of it.
    return axis[0] if len(axis) == 1 and not any(_twice(axes[index], axis[0]) for index in rows) else None


def _mixes(axes: Mapping[int, Axes], operation: Operation, flow: Flow, label: int) -> bool:
    """Tell whether an operation takes places of an axis with a label together."""
    pairs = zip(operation.operands, flow.mixed, strict=True)
    return any(label in axes[index][position] for index, mixed in pairs for position in mixed)


def _twice(own: Axes, label: int) -> bool:
    return sum(axis.count(label) for axis in own) > 1


def _within_unit(
    tape: Tape,
    relevant: Sequence[int],
    needed: set[int],
    axes: Mapping[int, Axes],
    flows: Mapping[int, Flow],
    unit: int | None,
) -> set[int]:
    """Return the operations whose outputs change at one unit only, the candidate's."""
    if unit is None:
        return set()
    spread: set[int] = set()
    local: set[int] = set()
    for number in relevant:
        operation, flow = tape.operations[number], flows[number]
        outputs = [o for o in operation.outputs if o is not None]
        stays = not any(index in spread for index in operation.operands)
        if _mixes(axes, operation, flow, unit) or any(_twice(axes[index], unit) for index in operation.operands):
            stays = False
        read = [o for o in outputs if o in needed]
        stays = stays and all(not _twice(axes[o], unit) and any(unit in axis for axis in axes[o]) for o in read)
        if stays:
            local.add(number)
        else:
            spread.update(outputs)
    return local


def is_sum_over_samples(operation: Operation) -> bool:
    """Tell whether an operation takes samples together so that their changes add up."""
    return getattr(operation.function, "overloadpacket", None) in SUMS


@dataclass
class _Parts:
    """What of a program is not within a unit.

    Args:
        tape: Of the step.
        outside: The operations.
        rows: What candidates change.
        changed: What depends on it.
        wide: Values that change at more than one unit.
        needed: Values that are read, or the loss.
        axes: Of values.
        flows: Of the operations.
    """

    tape: Tape
    outside: list[int]
    rows: set[int]
    changed: set[int]
    wide: set[int]
    needed: set[int]
    axes: Mapping[int, Axes]
    flows: Mapping[int, Flow]

    def sample(self, labels: Labels, unit: int) -> int | None:
        """Return the label of the samples: the largest that nothing mixes but sums whose results meet none again."""
        candidates = {
            label
            for number in self.outside
            for index in self.tape.operations[number].operands
            if index in self.changed
            for axis in self.axes[index]
            for label in axis
        } - {unit}
        ranked = sorted(candidates, key=lambda label: (-labels.size((label,)), label))
        return next((label for label in ranked if self._keeps_apart(label)), None)

    def _holds(self, index: int, label: int) -> bool:
        return any(label in axis for axis in self.axes[index])

    def _keeps_apart(self, label: int) -> bool:
        summed = False
        for number in self.outside:
            operation, flow = self.tape.operations[number], self.flows[number]
            outputs = [o for o in operation.outputs if o is not None and o in self.needed]
            if any(_twice(self.axes[index], label) for index in (*operation.operands, *outputs)):
                return False
            mixes = _mixes(self.axes, operation, flow, label)
            enters, leaves = self._enters(operation, label), [self._holds(o, label) for o in outputs]
            if mixes and (not is_sum_over_samples(operation) or any(leaves)):
                return False
            if not mixes and (enters or any(leaves)) and not (all(leaves) and self._meets(operation, label, enters)):
                return False
            summed = summed or mixes
        return summed

    def _enters(self, operation: Operation, label: int) -> bool:
        return any(self._holds(index, label) for index in operation.operands)

    def _meets(self, operation: Operation, label: int, enters: bool) -> bool:
        """Tell whether an operation with samples in its output can run on one of them."""
        packet, within = getattr(operation.function, "overloadpacket", None), set[int]()
        by_place = is_elementwise(operation.function)
        if not any(index in self.changed and self._holds(index, label) for index in operation.operands):
            # Samples begin here: with data that meet what has changed, or where a value is repeated along them.
            begins = by_place or packet in PRODUCTS or packet in {aten.embedding, aten.gather}
            if not (begins if enters else packet is aten.expand):
                return False
        # What has no sample, but changes as a whole, would have to be copied for each sample that it meets.
        if packet in {aten.addmm, aten.embedding} or by_place:
            within = self.rows & set(operation.operands[:1] if packet is aten.addmm else operation.operands)
        return not any(i in self.wide and i not in within and not self._holds(i, label) for i in operation.operands)


def _staged(
    tape: Tape, relevant: Sequence[int], changed: set[int], local: set[int], sample: int | None, program: Program
) -> Program:
    """Give each operation its stage and level, and order them so that a level is complete before the next."""
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
    return program


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
