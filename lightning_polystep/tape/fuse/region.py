"""Score: runs of a program that become one loop, written out number by number.

A *region* is a run of elementwise operations and views, the neurons between two products with all their time steps.
Along its *lanes*, samples or units or positions, it works place by place; places of all other axes, as time, are
written out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_polystep.tape.flow import is_elementwise
from lightning_polystep.tape.flow_rules import REDUCTIONS
from lightning_polystep.tape.fuse.expressions import (
    NoExpressionError,
    Symbol,
    cast,
    constant,
    expression,
    has_expression,
)
from lightning_polystep.tape.program import Program, Stage, Step
from lightning_polystep.tape.tape import Operation, Ref, Tape

aten = torch.ops.aten

_VIEWS = {
    aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias, aten.squeeze, aten.unsqueeze, aten.expand,
    aten.transpose, aten.permute, aten.t,
}  # fmt: skip
# These name places of an axis, which are then written out.
_PLACES = {aten.select, aten.unbind, aten.stack, aten.slice}
_PRODUCTS = {aten.mm, aten.addmm}

_MOST_PLACES = 128
_MOST_STATEMENTS = 6_000
_FEWEST_STEPS = 3
Symbols = NDArray[Any]


class Input(NamedTuple):
    """What a loop reads.

    Args:
        name: Of the array.
        value: Index of the value; of a product the one that it makes.
        kind: Where it is read. ``"frame"``: from an earlier step, by instance. ``"unit"`` or ``"sample"``: recorded, by
            the instance's unit or sample. ``"shared"``: recorded, the same for all. ``"rows"``: a matrix, by unit.
            ``"new"`` and ``"old"``: of a value of stage ``UNIT``, at the instance's unit and sample, for its candidate
            and in the step. ``"shift"``: what a candidate's row adds to the output of a product.
        by_lane: Whether it differs from lane to lane.
        dtype: Of its numbers.
        places: How many of its places are written out.
    """

    name: str
    value: int
    kind: str
    by_lane: bool
    dtype: torch.dtype
    places: int = 1


@dataclass
class Region:
    """A run of operations as one loop.

    Args:
        steps: The operations.
        stage: Where they run.
        lanes: Labels of the axes along which the loop runs.
        inputs: What it reads.
        statements: The loop's body.
        outputs: Values that others read: their numbers, in the order of their places.
        loops: The region as compiled, by the number of places along its lanes.
    """

    steps: list[Step]
    stage: Stage
    lanes: list[int]
    inputs: list[Input] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)
    outputs: dict[int, list[Symbol]] = field(default_factory=dict)
    loops: dict[int, Callable[..., None]] = field(default_factory=dict, repr=False, compare=False)


def partition(
    tape: Tape,
    program: Program,
    steps: Sequence[Step],
    shifted: Collection[int] = (),
    wanted: Collection[int] = (),
) -> Iterator[Step | Region]:
    """Cut steps of one stage and level into regions and single operations, in an order in which they can run.

    Args:
        tape: Of a step.
        program: Read off it.
        steps: Some of its steps, whose operands from outside are there.
        shifted: Products of stage ``UNIT``, by what they make, that are given by what candidates add to them.
        wanted: What is read of them beside the loss and what other steps of the program read.
    """
    remaining = list(steps)
    made_inside = {o for step in steps for o in tape.operations[step.number].outputs}
    done: set[int] = set()
    times = _written_out(tape, program, steps)

    def ready(step: Step, more: set[int]) -> bool:
        operands = program.operation(tape, step.number).operands
        return all(index not in made_inside or index in done or index in more for index in operands)

    while remaining:
        single = next(
            (s for s in remaining if not _fusable(tape, program, s, times, shifted) and ready(s, set())), None
        )
        if single is not None:
            yield single
            remaining.remove(single)
            done |= {o for o in tape.operations[single.number].outputs if o is not None}
            continue
        run: list[Step] = []
        inside: set[int] = set()
        for step in remaining:
            if _fusable(tape, program, step, times, shifted) and ready(step, inside):
                run.append(step)
                inside |= {o for o in tape.operations[step.number].outputs if o is not None}
        taken = {id(step) for step in run}
        remaining = [step for step in remaining if id(step) not in taken]
        done |= inside
        region = _write(tape, program, run, times, wanted) if len(run) >= _FEWEST_STEPS else None
        if region is None:
            yield from run
        else:
            yield region


def _written_out(tape: Tape, program: Program, steps: Sequence[Step]) -> set[int]:
    """Return the labels of axes whose places operations name one by one."""
    labels: set[int] = set()
    for step in steps:
        operation = program.operation(tape, step.number)
        packet = getattr(operation.function, "overloadpacket", None)
        if packet not in _PLACES:
            continue
        for index, mixed in zip(operation.operands, program.flows[step.number].mixed, strict=True):
            labels |= {label for position in mixed for label in program.axes[index][position]}
        if packet is aten.stack:
            made = operation.outputs[0]
            assert made is not None
            rank = len(program.axes[made])
            labels |= set(program.axes[made][(operation.args[1] if len(operation.args) > 1 else 0) % rank])
    return labels


def _fusable(tape: Tape, program: Program, step: Step, times: set[int], shifted: Collection[int]) -> bool:
    operation = program.operation(tape, step.number)
    packet = getattr(operation.function, "overloadpacket", None)
    whole = step.stage == Stage.WHOLE  # then units and samples are lanes like others
    if packet in _PRODUCTS if whole else step.sums_samples or program.unit is None:
        return False
    # A candidate's parameters themselves: there is one of each, not one for each sample.
    of_parameters = any(o is not None and program.position(o, program.sample) is None for o in operation.outputs)
    if packet in _PRODUCTS or (step.stage == Stage.UNIT and of_parameters):
        simple = packet in _PRODUCTS and _is_simple_product(program, step, operation, times)
        return simple and (step.stage != Stage.UNIT or operation.outputs[0] in shifted)
    mixed = {
        label
        for index, positions in zip(operation.operands, program.flows[step.number].mixed, strict=False)
        for position in positions
        for label in program.axes[index][position]
    }
    if not mixed <= times or any(program.labels.size((label,)) > _MOST_PLACES for label in mixed):
        return False
    return bool(mixed) if packet in {aten.sum, aten.mean} else _is_written_out(operation, packet)


def _is_written_out(operation: Operation, packet: Any) -> bool:
    """Tell whether there are words for an operation that works place by place."""
    if packet in _VIEWS or packet in _PLACES:
        strided = packet is aten.slice and len(operation.args) > 4 and operation.args[4] != 1
        return not strided and operation.function is not aten.view.dtype
    return is_elementwise(operation.function) and has_expression(operation.function) and packet not in REDUCTIONS


def _is_simple_product(program: Program, step: Step, operation: Operation, times: set[int]) -> bool:
    """Tell whether a product only adds a shift, or a change of rank one, to what was recorded of it."""
    if operation.kwargs:
        return False
    *added, left, right = operation.operands
    home, unit = program.home, program.unit
    if step.stage == Stage.UNIT:
        return left not in home and right in home
    from_unit = left in home and home[left][0] == Stage.UNIT and right not in home and not any(a in home for a in added)
    # Each instance has one change for each written-out place, and one row of the weight for all lanes.
    fixed = {unit, program.sample, *times}
    apart = unit not in times and set(program.axes[left][0]) <= fixed - {unit} and fixed.isdisjoint(
        label for axis in program.axes[right] for label in axis
    )  # fmt: skip
    return from_unit and apart and program.axes[left][1] == (unit,)


class _Writer:
    """Runs operations on symbols instead of numbers."""

    def __init__(self, tape: Tape, program: Program, steps: Sequence[Step], times: set[int]) -> None:
        self.tape, self.program, self.times = tape, program, times
        self.stage = steps[0].stage
        of_pairs = {program.sample} if self.stage == Stage.SAMPLE else set[int | None]()
        self.fixed = {program.unit} if self.stage == Stage.UNIT else of_pairs - {None}
        self.symbols: dict[int, Symbols] = {}
        self.inputs: list[Input] = []
        self.statements: list[str] = []
        # Samples are outermost, so that parts of them can be cut out.
        self.lanes: list[int] = [program.sample] if self.stage == Stage.UNIT and program.sample is not None else []
        self._loaded: dict[tuple[int, str], Symbols] = {}

    def shape(self, index: int) -> list[int]:
        """Return the shape of a value's written-out places, every lane having one."""
        size = self.program.labels.size
        return [
            int(np.prod([size((label,)) for label in axis if label in self.times])) for axis in self.program.axes[index]
        ]

    def lanes_of(self, index: int) -> list[int]:
        """Return the labels of a value along which the loop runs."""
        lanes = [
            label
            for axis in self.program.axes[index]
            for label in axis
            if label not in self.times and label not in self.fixed
        ]
        if len(set(lanes)) < len(lanes):
            raise NoExpressionError("two axes that are the same cannot both be lanes")
        return lanes

    def take(self, index: int) -> Symbols:
        """Return the symbols of a value that a step reads."""
        if index in self.symbols:
            return self.symbols[index]
        program = self.program
        kind = "shared"
        if index in program.home:
            kind = "frame"
        elif self.stage == Stage.UNIT and program.position(index, program.unit) is not None:
            kind = "unit"
        elif self.stage == Stage.SAMPLE and program.position(index, program.sample) is not None:
            kind = "sample"
        self.symbols[index] = self.load(index, kind, self.shape(index), self.lanes_of(index))
        return self.symbols[index]

    def load(self, index: int, kind: str, shape: Sequence[int], lanes: Sequence[int]) -> Symbols:
        """Return symbols for an input, which the loop reads where it needs them."""
        known = self._loaded.get((index, kind))
        if known is not None:
            return known
        dtype = self.tape.values[index].tensor.dtype
        constant(0, dtype)  # a type that loops know
        name = f"a{len(self.inputs)}"
        count = int(np.prod(shape)) if len(shape) else 1
        self.inputs.append(Input(name, index, kind, bool(lanes), dtype, count))
        self._note_lanes(lanes)
        instance = {"frame": "i", "unit": "units[i]", "sample": "samples[i]", "shared": "0", "rows": "units[i]"}
        row, lane = instance.get(kind, "i"), "l" if lanes else "0"
        if kind in {"new", "old"}:
            row, lane = ("candidates[i]", "samples[i]") if kind == "new" else ("units[i]", "samples[i]")
            lane = "0" if self.program.position(index, self.program.sample) is None else lane
        flat = [f"{name}[{place},{row},{lane}]" for place in range(count)]
        loaded = np.empty(len(flat), dtype=object)
        for place, text in enumerate(flat):
            variable = f"{name}_{place}"
            self.statements.append(f"{variable} = {text}")
            loaded[place] = Symbol(variable, dtype)
        self._loaded[index, kind] = loaded = loaded.reshape(tuple(shape))
        return loaded

    def _note_lanes(self, lanes: Sequence[int]) -> None:
        self.lanes.extend(label for label in lanes if label not in self.lanes)

    def assign(self, text: str, dtype: torch.dtype) -> Symbol:
        """Return a new variable that holds an expression."""
        name = f"v{len(self.statements)}"
        self.statements.append(f"{name} = {text}")
        return Symbol(name, dtype)

    def run(self, step: Step) -> None:
        """Write out one operation."""
        operation = self.program.operation(self.tape, step.number)
        packet = operation.function.overloadpacket
        made = operation.outputs[0]
        assert made is not None
        if packet in _PRODUCTS:
            self.symbols[made] = self._product(operation, made)
        elif packet in {aten.sum, aten.mean}:
            self.symbols[made] = self._sum(operation, made)
        elif packet in _VIEWS or packet in _PLACES:
            self._view(operation, packet)
        else:
            self.symbols[made] = self._elementwise(operation, made)

    def _product(self, operation: Operation, made: int) -> Symbols:
        left, right = operation.operands[-2:]
        dtype = self.tape.values[made].tensor.dtype
        lanes, shape = self.lanes_of(made), self.shape(made)
        recorded = self.load(made, "unit" if self.stage == Stage.UNIT else "sample", shape, lanes)
        if self.stage == Stage.UNIT:
            added = [each.text for each in self.load(made, "shift", shape, lanes).flat]
        else:
            row = self.load(right, "rows", [1], lanes).flat[0].text
            new, old = (self.load(left, kind, self.shape(left), []) for kind in ("new", "old"))
            changes = (f"{cast(n, dtype)} - {cast(o, dtype)}" for n, o in zip(new.flat, old.flat, strict=True))
            added = [f"({change}) * {row}" for change in changes]
        out = np.empty(recorded.size, dtype=object)
        for place, (before, change) in enumerate(zip(recorded.flat, added, strict=True)):
            out[place] = self.assign(f"({before.text} + {change})", dtype)
        return out.reshape(tuple(shape))

    def _sum(self, operation: Operation, made: int) -> Symbols:
        given = self.take(operation.operands[0])
        dtype = self.tape.values[made].tensor.dtype
        mixed = self.program.flows[self._number(operation)].mixed[0]
        terms = np.moveaxis(given, sorted(mixed), range(len(mixed))).reshape(-1, *[
            size for axis, size in enumerate(given.shape) if axis not in mixed
        ])  # fmt: skip
        rest = terms.shape[1:]
        out = np.empty(int(np.prod(rest)) if rest else 1, dtype=object)
        count = len(terms)
        for place, column in enumerate(terms.reshape(count, -1).T):
            text = cast(column[0], dtype)
            for symbol in column[1:]:
                text = self.assign(f"({text} + {cast(symbol, dtype)})", dtype).text
            if operation.function.overloadpacket is aten.mean:
                text = f"({text} / {constant(count, dtype).text})"
            out[place] = self.assign(text, dtype)
        return out.reshape(tuple(self.shape(made)))

    def _number(self, operation: Operation) -> int:
        made = operation.outputs[0]
        assert made is not None
        number = self.tape.values[made].producer
        assert number is not None
        return number

    def _elementwise(self, operation: Operation, made: int) -> Symbols:
        dtype, shape = self.tape.values[made].tensor.dtype, tuple(self.shape(made))
        size = int(np.prod(shape)) if shape else 1
        arrays: list[Any] = []
        for argument in operation.args:
            if isinstance(argument, Ref):
                arrays.append(np.broadcast_to(self.take(argument.index), shape).reshape(-1) if shape else
                              self.take(argument.index).reshape(-1))  # fmt: skip
            elif isinstance(argument, bool | int | float):
                number = dtype if dtype != torch.bool else self._number_type(operation, argument)
                arrays.append([constant(argument, number)] * size)
            elif argument is None:
                arrays.append([None] * size)
            else:
                raise NoExpressionError(str(operation.function))
        out = np.empty(size, dtype=object)
        for place in range(size):
            text = expression(operation.function, [array[place] for array in arrays], operation.kwargs, dtype)
            out[place] = self.assign(text, dtype)
        return out.reshape(shape)

    def _number_type(self, operation: Operation, argument: float) -> torch.dtype:
        """Return the type in which a comparison takes a number."""
        own = self.tape.values[operation.operands[0]].tensor.dtype
        whole = isinstance(argument, int)
        return (
            own if own.is_floating_point or (whole and own != torch.bool) else torch.int64 if whole else torch.float32
        )

    def _view(self, operation: Operation, packet: Any) -> None:
        made = [index for index in operation.outputs if index is not None]
        if packet is aten.stack:
            axis = operation.args[1] if len(operation.args) > 1 else 0
            self.symbols[made[0]] = np.stack([self.take(index) for index in operation.operands], axis)
            return
        given = self.take(operation.operands[0])
        args = operation.args
        if packet is aten.select:
            self.symbols[made[0]] = np.take(given, args[2], axis=args[1])
        elif packet is aten.unbind:
            axis = args[1] if len(args) > 1 else 0
            for place, index in enumerate(operation.outputs):
                if index is not None:
                    self.symbols[index] = np.take(given, place, axis=axis)
        elif packet is aten.slice:
            axis = (args[1] if len(args) > 1 else 0) % given.ndim
            label_free = given.shape[axis] != self.tape.values[operation.operands[0]].tensor.shape[axis]
            start, stop = (args[2] if len(args) > 2 else 0) or 0, args[3] if len(args) > 3 else None
            chosen = slice(None) if label_free else slice(start, stop)
            self.symbols[made[0]] = given[(*[slice(None)] * axis, chosen)]
        elif packet in {aten.transpose, aten.permute, aten.t}:
            order = list(range(given.ndim))
            if packet is aten.transpose:
                order[args[1]], order[args[2]] = order[args[2]], order[args[1]]
            else:
                order = order[::-1] if packet is aten.t else [place % given.ndim for place in args[1]]
            self.symbols[made[0]] = given.transpose(order)
        elif packet is aten.expand:
            self.symbols[made[0]] = np.broadcast_to(given, tuple(self.shape(made[0])))
        else:
            self.symbols[made[0]] = given.reshape(tuple(self.shape(made[0])))


def _write(
    tape: Tape, program: Program, run: Sequence[Step], times: set[int], wanted: Collection[int]
) -> Region | None:
    """Write a run out as a loop; None where something in it has no expression, or it gets too long."""
    if program.sample in times:
        return None  # what is written out is no lane
    writer = _Writer(tape, program, run, times)
    try:
        for step in run:
            writer.run(step)
            if len(writer.statements) > _MOST_STATEMENTS:
                return None
        return _closed(tape, program, run, writer, wanted)
    except (NoExpressionError, ValueError, IndexError, AssertionError):
        return None


def _closed(
    tape: Tape, program: Program, run: Sequence[Step], writer: _Writer, wanted: Collection[int]
) -> Region | None:
    """Return a run that has been written out, with what others read of it."""
    own = {step.number for step in run}
    made = {o for step in run for o in tape.operations[step.number].outputs if o is not None}
    read_outside = {
        index
        for step in program.steps
        if step.number not in own
        for index in program.operation(tape, step.number).operands
    }
    region = Region(list(run), writer.stage, writer.lanes, writer.inputs, writer.statements)
    for index in sorted(made & (read_outside | {program.loss, *wanted}) & set(writer.symbols)):
        region.outputs[index] = list(writer.symbols[index].reshape(-1))
        if not set(writer.lanes_of(index)) <= set(region.lanes):
            return None
    return region if region.outputs else None
