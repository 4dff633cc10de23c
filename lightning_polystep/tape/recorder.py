"""Observe: record the operations of a step, below Python, while it runs for real.

What is written in place is recorded as a new value, and whatever shares memory with it is read anew afterwards, as
torch's functionalisation does it; the tape then holds pure operations only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_polystep.tape.arguments import shape_of, structure_of, values_of
from lightning_polystep.tape.expected import Call
from lightning_polystep.tape.leaving import Leaving
from lightning_polystep.tape.memory import Memory, View
from lightning_polystep.tape.pause import pauses, unrecorded
from lightning_polystep.tape.recipes import RECIPES, Recipe, recipe_of
from lightning_polystep.tape.tape import Escape, Operation, Ref, Tape, Unknown, Value, references, substitute
from lightning_polystep.tape.writes import Facts, Said, facts_of, said, undone

aten = torch.ops.aten

_PACKAGES = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


@contextmanager
def moving(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Let the body write tensors beside the tape: what they hold afterwards comes from outside the step."""
    tensors = list(tensors)
    for recorder in _active.get():
        for tensor in tensors:
            recorder.forget(tensor)
    with unrecorded():
        yield


_active: ContextVar[tuple[Recorder, ...]] = ContextVar("active", default=())


def hold(tensor: Tensor) -> None:
    """Take a tensor that the step has just computed for a constant of all candidates, if the step is being recorded."""
    for recorder in _active.get():
        recorder.hold(tensor)


# What they return has not been written yet.
_UNWRITTEN = {
    aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default, aten.new_empty.default,
    aten.new_empty_strided.default,
}  # fmt: skip
# They keep of their first operand what they do not write.
_PARTIAL = {
    aten.select_scatter, aten.slice_scatter, aten.diagonal_scatter, aten.scatter, aten.index_put, aten.index_copy,
    aten.index_fill, aten.index_add, aten.scatter_add, aten.masked_scatter, aten.where, aten.masked_fill,
}  # fmt: skip


class Recorder(TorchDispatchMode):
    """Records every operation that runs while it is entered; what runs is what would run without it.

    Args:
        expected: The calls of an earlier step, by the number of their operation: what is done again is written down
            faster.

    Attributes:
        tape: What has been recorded.
        calls: The calls of this step, to be expected of the next one.

    Example:
        >>> weight = torch.ones(2)
        >>> with torch.no_grad(), Recorder() as recorder:
        ...     loss = (3 * weight).sum()
        >>> [str(operation.function) for operation in recorder.tape.operations]
        ['aten.mul.Tensor', 'aten.sum.default']
    """

    serves_tape: ClassVar[bool] = True

    def __init__(self, expected: dict[int, Call] | None = None) -> None:
        super().__init__()
        self.tape = Tape()
        self.calls: dict[int, Call] = {}
        self._expected = expected or {}
        self._alive: list[Tensor] = []
        self._memory = Memory()
        # Values whose memory nothing has been written into.
        self._unwritten: set[int] = set()

    def __enter__(self) -> Recorder:
        """Start to record."""
        self._token, self._pauses = _active.set((*_active.get(), self)), pauses()
        super().__enter__()
        self._leaving = Leaving(self._leaves, self._reassigned)
        self._leaving.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Record no more."""
        self._leaving.__exit__(*exception)
        del self._leaving  # it knows the recorder: a circle would keep all values of the step until it is found
        super().__exit__(*exception)
        _active.reset(self._token)

    def hold(self, tensor: Tensor) -> None:
        """Take a tensor for a constant of all candidates."""
        index = self._value(tensor)
        self.tape.held.add(index)
        self.tape.key.append(("held", index))

    def forget(self, tensor: Tensor) -> None:
        """Keep what a tensor was, and take it in anew when it is read again."""
        if id(tensor) in self.tape.index_of:
            self._memory.preserve(tensor, self.tape.values)
            self._memory.written(tensor)
            del self.tape.index_of[id(tensor)]

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and record it."""
        del types
        if pauses() > self._pauses:
            return function(*args, **(kwargs or {}))
        call = self._expected.get(len(self.tape.operations))
        if call is not None and call.function is function and self._is_repeated(call, args, kwargs):
            return self._repeat(call, args, kwargs)
        return self._record(function, args, kwargs or {})

    def _record(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation and record it, whatever it is."""
        if function is aten._local_scalar_dense.default:
            self._leaves(args[0])
            return function(*args)
        how = RECIPES.get(function) or recipe_of(function)
        if how.beside:
            return function(*args, **kwargs)
        if how.decomposition is not None:
            with _Redispatched(self):
                result = how.decomposition(*args, **kwargs)
            if result is not NotImplemented:
                return self._as_it_runs(function, args, kwargs, result) if how.rounds else result
        if how.writes:
            return self._record_write(function, how, args, kwargs)
        taken, named = self._taken(args), self._taken(kwargs) if kwargs else kwargs
        hidden = how.hidden(args) if how.hidden is not None else None
        for target in hidden.targets if hidden else ():
            self._memory.preserve(target, self.tape.values)
        result = how.run(*args, **kwargs)
        number = self._append(how.recorded, taken, named, result if isinstance(result, tuple | list) else (result,))
        if how.is_view:
            self._remember_views(args, result)
        if how.hidden is None and function not in _UNWRITTEN and isinstance(result, Tensor):
            self._expect(function, how, number, result)
        if hidden:
            self._record_outputs(Said(hidden.functional, taken, named), hidden.targets)
        return result

    def _expect(self, function: Any, how: Recipe, number: int, result: Tensor) -> None:
        """Keep a call for the next step."""
        operation = self.tape.operations[number]
        if not result.is_nested and self._unwritten.isdisjoint(operation.operands):
            self.calls[number] = Call.of(function, operation, self.tape.key[-1], result, how.run, how.is_view)

    def _is_repeated(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> bool:
        """Tell whether a call of the step before is made again, of the same values."""
        return (
            call.output == len(self.tape.values)
            and call.takes(args, kwargs, self.tape.index_of)
            and self._unwritten.isdisjoint(call.operation.operands)
            and not self._memory.any_stale(args)
        )

    def _repeat(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        """Run and record a call that the step before made."""
        result = call.run(*args, **kwargs) if kwargs else call.run(*args)
        tape, number, key = self.tape, len(self.tape.operations), id(result)
        tape.values.append(Value(result, number))
        tape.operations.append(call.operation)
        if call.is_view or key in tape.index_of:
            self._name(result, call.output)
        else:
            self._alive.append(result)
            tape.index_of[key] = call.output
            self._memory.moved_in(result, call.output)
        if result.shape != call.shape:  # another number of samples
            call = call._replace(key=(*call.key[:-1], shape_of(result)), shape=result.shape)
        tape.key.append(call.key)
        self.calls[number] = call
        if call.is_view:
            self._remember_views(args, result)
        return result

    def _as_it_runs(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], said: Any) -> Any:
        """Return what an operation itself computes, to the last bit, in the place of what was recorded of it."""
        result = function(*args, **kwargs)
        both = zip(*(each if isinstance(each, tuple) else (each,) for each in (said, result)), strict=True)
        for recorded, own in both:
            if isinstance(own, Tensor):
                index = self._value(recorded)
                self.tape.values[index].tensor = own
                self._name(own, index)
        return result

    def _leaves(self, tensor: Tensor) -> None:
        """Take note that Python reads the numbers of a tensor."""
        if pauses() > self._pauses or id(tensor) not in self.tape.index_of:
            return
        index = self._value(tensor)
        # A number that was there before the step is the same for every candidate.
        if self.tape.values[index].producer is not None:
            self.tape.escapes.append(Escape(index, _place()))

    def _append(self, function: Any, args: Any, kwargs: Any, results: Sequence[Any]) -> int:
        """Append an operation and the tensors that it made; return its index."""
        tape, number = self.tape, len(self.tape.operations)
        operands = (*values_of(args), *(references(kwargs) if kwargs else ()))
        if self._unwritten and not isinstance(function, Unknown):
            function = self._checked(function, operands)
        outputs: list[int | None] = []
        for output in results:
            if not isinstance(output, Tensor):
                outputs.append(None)
                continue
            index = len(tape.values)
            outputs.append(index)
            tape.values.append(Value(output, number))
            self._name(output, index)
        if function in _UNWRITTEN:
            self._unwritten.update(o for o in outputs if o is not None and tape.values[o].tensor.numel())
        tape.operations.append(Operation(function, args, kwargs, tuple(outputs), operands))
        tape.key.append(
            (
                function,
                structure_of(args),
                structure_of(kwargs),
                *(None if o is None else shape_of(tape.values[o].tensor) for o in outputs),
            )
        )
        return number

    def _checked(self, function: Any, operands: tuple[int, ...]) -> Any:
        """Return an operator, or that it reads memory that something beside the tape must have written."""
        read = [index for index in operands if index in self._unwritten]
        packet = getattr(function, "overloadpacket", None)
        if not read or function in _UNWRITTEN or facts_of(function).is_view:
            return function
        if packet in _PARTIAL and (read == [operands[0]] or packet is aten.where):
            return function
        return Unknown(f"{function} reads what code that the tape does not see has written", blind=True)

    def _name(self, tensor: Tensor, index: int) -> None:
        """Take note that a tensor holds a value now."""
        key = id(tensor)
        if key not in self.tape.index_of:
            self._alive.append(tensor)
        self.tape.index_of[key] = index
        self._memory.read(tensor, index)

    def _value(self, tensor: Tensor) -> int:
        """Return the value that a tensor holds now."""
        index = self.tape.index_of.get(id(tensor))
        if index is None:
            return self._leaf(tensor)
        return self._read_anew(tensor) if self._memory.is_stale(tensor) else index

    def _leaf(self, tensor: Tensor) -> int:
        """Take in a tensor from outside the step."""
        tape = self.tape
        neighbour = self._memory.neighbour(tensor)
        if neighbour is None:
            index = tape.leaves[id(tensor)] = len(tape.values)
            tape.values.append(Value(tensor))
            self._name(tensor, index)
            tape.key.append((shape_of(tensor), tensor.dtype))
            return index
        parent = Ref(self._value(neighbour))
        if tensor.shape == neighbour.shape and tensor.stride() == neighbour.stride():
            made = Said(aten.alias.default, (parent,), {})
        elif tensor.is_contiguous() and neighbour.is_contiguous() and tensor.numel() == neighbour.numel():
            made = Said(aten.view.default, (parent, list(tensor.shape)), {})
        else:
            made = Said(Unknown("two tensors from before the step share a part of their memory"), (parent,), {})
        number = self._append(made.function, made.args, {}, (tensor,))
        self._remember_view(tensor, neighbour, number, 0)
        return tape.index_of[id(tensor)]

    def _read_anew(self, tensor: Tensor) -> int:
        """Record again how a tensor was cut out of memory that has been written since."""
        view = self._memory.view(tensor)
        if view is None:
            raise RuntimeError("The memory of a tensor was written without a word of the tensor itself.")
        parent, made = self._value(view.parent), self.tape.operations[view.operation]
        results: list[Tensor | None] = [None] * len(made.outputs)
        results[view.output] = tensor
        self._append(made.function, (Ref(parent), *made.args[1:]), made.kwargs, results)
        return self.tape.index_of[id(tensor)]

    def _taken(self, arguments: Any) -> Any:
        """Return arguments with each tensor replaced by a reference."""
        if isinstance(arguments, Tensor):
            return Ref(self._value(arguments))
        if isinstance(arguments, tuple):
            return tuple([self._taken(argument) for argument in arguments])
        if isinstance(arguments, list):
            return [self._taken(argument) for argument in arguments]
        if isinstance(arguments, dict):
            return {name: self._taken(argument) for name, argument in arguments.items()}
        return arguments

    def _remember_views(self, args: tuple[Any, ...], result: Any) -> None:
        parent, number = args[0], len(self.tape.operations) - 1
        if isinstance(parent, Tensor):
            for output, view in enumerate(result if isinstance(result, tuple | list) else (result,)):
                if isinstance(view, Tensor) and view is not parent:
                    self._remember_view(view, parent, number, output)

    def _remember_view(self, view: Tensor, parent: Tensor, number: int, output: int) -> None:
        index = self.tape.index_of[id(view)]
        self._memory.cut(view, index, View(parent, number, output))
        if self.tape.index_of.get(id(parent)) in self._unwritten:
            self._unwritten.add(index)

    # Writes

    def _record_write(self, function: Any, how: Recipe, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation that writes, and record what it writes as new values."""
        facts, targets = how.facts, how.facts.targets(args, kwargs)
        taken, named = self._taken(args), self._taken(kwargs)
        named = {name: value for name, value in named.items() if name not in facts.written_names}
        if facts.turns:
            return self._record_turn(function, facts, targets[0], (taken, named), args)
        # What the memory held so far is still an operand of what has been recorded.
        for target in targets:
            self._memory.preserve(target, self.tape.values)
        result = how.run(*args, **kwargs)
        made = result if isinstance(result, tuple | list) else (result,)
        others = [each for each in made if isinstance(each, Tensor) and all(each is not target for target in targets)]
        if facts.random and not others:
            for target in targets:
                self._record_noise(function, target)
            return result
        steps = None
        if len(targets) == 1 and not others:
            steps = said(function, taken, named, targets[0], lambda index: self.tape.values[index].tensor)
        elif facts.functional is not None and not others and len(targets) == len(made):
            steps = [Said(facts.functional, taken, named)]
        if steps is None:
            steps = [Said(Unknown(f"{function} writes in a way that the tape does not know"), (taken, named), {})]
        self._record_steps(steps, [*targets, *others])
        return result

    def _record_turn(
        self, function: Any, facts: Facts, target: Tensor, said_with: tuple[Any, Any], args: tuple[Any, ...]
    ) -> Any:
        """Record that a tensor changes its shape: from now on it is a view of what it was."""
        before = aten.alias.default(target)
        self._memory.preserve(target, self.tape.values)
        self._stand_in(before, target)
        result = function(*args)
        number = self._append(facts.functional, *said_with, (target,))
        self._remember_view(target, before, number, 0)
        return result

    def _stand_in(self, other: Tensor, tensor: Tensor) -> None:
        """Let another tensor take the place of one that is about to become something else."""
        self._alive.append(other)
        self._memory.stand_in(other, tensor)
        self.tape.index_of[id(other)] = self.tape.index_of[id(tensor)]

    def _record_noise(self, function: Any, target: Tensor) -> None:
        """Record that a generator has written a tensor."""
        index = len(self.tape.values)
        self.tape.values.append(Value(target))
        self.tape.key.append((function, tuple(target.shape)))
        self._spread(target, index, self._chain(target))

    def _record_steps(self, steps: list[Said], targets: list[Tensor]) -> None:
        """Record operations, the last of which leaves what a write has left."""
        index = -1
        for step in steps[:-1]:
            args = _continued(step.args, index)
            value = step.function(*_found(self.tape, args), **step.kwargs)
            self._append(step.function, args, step.kwargs, (value,))
            index = self.tape.index_of[id(value)]
        self._record_outputs(steps[-1]._replace(args=_continued(steps[-1].args, index)), targets)

    def _record_outputs(self, made: Said, targets: Sequence[Tensor]) -> None:
        """Record that an operation has left what tensors hold now."""
        chains = [self._chain(target) for target in targets]
        number = self._append(made.function, made.args, made.kwargs, targets)
        for target, index, chain in zip(targets, self.tape.operations[number].outputs, chains, strict=True):
            assert index is not None
            self._spread(target, index, chain)

    def _chain(self, target: Tensor) -> list[tuple[View, int]]:
        """Return the views from a tensor up to what holds the memory, each with its parent's value so far."""
        chain = []
        view = self._memory.view(target)
        while view is not None:
            chain.append((view, self._value(view.parent)))
            view = self._memory.view(view.parent)
        return chain

    def _spread(self, target: Tensor, index: int, chain: list[tuple[View, int]]) -> None:
        """Record what a write into a view makes of the tensors that it was cut out of."""
        self._memory.written(target)
        self._name(target, index)
        for view, before in chain:
            made = self.tape.operations[view.operation]
            back = undone(made, view.output, Ref(before), Ref(index), view.parent)
            self._append(back.function, back.args, back.kwargs, (view.parent,))
            index = self.tape.index_of[id(view.parent)]

    def _reassigned(self, tensor: Tensor, value: Tensor, assign: Any) -> None:
        """Run ``tensor.data = value``, after which the one is a view of the other."""
        if pauses() > self._pauses:
            assign()
            return
        self._value(tensor)
        source = Ref(self._value(value))
        self._memory.preserve(tensor, self.tape.values)
        before = aten.alias.default(tensor)
        self._stand_in(before, tensor)
        assign()
        number = self._append(aten.alias.default, (source,), {}, (tensor,))
        self._remember_view(tensor, value, number, 0)


class _Redispatched:
    """Sends what a decomposition runs through the recorder again."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __enter__(self) -> None:
        TorchDispatchMode.__enter__(self._recorder)

    def __exit__(self, *exception: object) -> None:
        TorchDispatchMode.__exit__(self._recorder, *exception)


def _continued(args: tuple[Any, ...], index: int) -> tuple[Any, ...]:
    """Return arguments that name what the operation before made."""
    return tuple(Ref(index) if isinstance(each, Ref) and each.index == -1 else each for each in args)


def _found(tape: Tape, args: tuple[Any, ...]) -> Any:
    return substitute(args, lambda index: tape.values[index].tensor)


def _place() -> str:
    """Return the file and line of the innermost frame that belongs neither to torch nor to the recorder."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGES):
        frame = frame.f_back  # type: ignore[assignment]
    return "" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
