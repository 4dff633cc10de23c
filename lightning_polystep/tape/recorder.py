"""Observe: record the operations of a step, below Python, while it runs for real.

What is written in place is recorded as a new value, and whatever shares memory with it is read anew afterwards, as
torch's functionalisation does it; the tape then holds pure operations only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_polystep.tape.decompositions import DECOMPOSITIONS
from lightning_polystep.tape.tape import Escape, Operation, Ref, Tape, Value, references

aten = torch.ops.aten

_PACKAGES = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


_paused: ContextVar[bool] = ContextVar("paused", default=False)


@contextmanager
def unrecorded() -> Iterator[None]:
    """Run the body beside the tape: what the package itself computes on the way is no part of the user's step."""
    token = _paused.set(True)
    try:
        yield
    finally:
        _paused.reset(token)


_active: ContextVar[tuple[Recorder, ...]] = ContextVar("active", default=())


def hold(tensor: Tensor) -> None:
    """Take a tensor that the step has just computed for a constant of all candidates, if the step is being recorded."""
    for recorder in _active.get():
        recorder.tape.held.add(recorder._value(tensor))


class _Facts(NamedTuple):
    """What is known of an operator from its schema.

    Args:
        written: Positions of the arguments that it writes.
        written_names: Likewise of those given by name.
        is_view: Whether what it returns shares memory with its first argument.
        functional: What it computes, as an operator that writes nothing; None where it is that already.
        random: Whether what it writes comes from a generator and from no tensor.
    """

    written: tuple[int, ...]
    written_names: tuple[str, ...]
    is_view: bool
    functional: Callable[..., Any] | None
    random: bool


_facts: dict[Any, _Facts] = {}


def _facts_of(function: Any) -> _Facts:
    known = _facts.get(function)
    if known is None:
        arguments = function._schema.arguments
        writes = [i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]
        aliased = [r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns]
        random = torch.Tag.nondeterministic_seeded in function.tags
        known = _facts[function] = _Facts(
            tuple(i for i in writes if not arguments[i].kwarg_only),
            tuple(arguments[i].name for i in writes if arguments[i].kwarg_only),
            any(aliased),
            _functional(function) if writes else None,
            random and bool(writes) and sum("Tensor" in str(a.type) for a in arguments) == len(writes),
        )
    return known


def _functional(function: Any) -> Callable[..., Any] | None:
    """Return the operator that computes what another one writes in place or into ``out``."""
    name = function._schema.name.removeprefix("aten::")
    overload = function._overloadname
    if name.endswith("_") and not name.endswith("__"):
        packet = getattr(aten, name[:-1], None)
        return getattr(packet, overload, None) if packet is not None else None
    packet = getattr(aten, name)
    for candidate in (overload.removesuffix("out").rstrip("_") or "default", "Tensor", "default"):
        if overload.endswith("out") and candidate in packet.overloads():
            return getattr(packet, candidate)
    return None


class _View(NamedTuple):
    """How a tensor was cut out of another one.

    Args:
        parent: The other one.
        operation: The operation that did it, by index.
        output: Which of its outputs the tensor is.
    """

    parent: Tensor
    operation: int
    output: int


class Recorder(TorchDispatchMode):
    """Records every operation that runs while it is entered; what runs is what would run without it.

    Example:
        >>> weight = torch.ones(2)
        >>> with torch.no_grad(), Recorder() as recorder:
        ...     loss = (3 * weight).sum()
        >>> [str(operation.function) for operation in recorder.tape.operations]
        ['aten.mul.Tensor', 'aten.sum.default']
    """

    def __init__(self) -> None:
        super().__init__()
        self.tape = Tape()
        self._alive: list[Tensor] = []
        self._views: dict[int, _View] = {}
        # How often the memory of a tensor that is no view has been written, and what each value of it was read at.
        self._versions: dict[int, int] = {}
        self._read_at: dict[int, int] = {}
        self._inhabitants: dict[int, list[int]] = {}

    def __enter__(self) -> Recorder:
        """Start to record."""
        self._tokens = _active.set((*_active.get(), self)), _paused.set(False)
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Record no more."""
        super().__exit__(*exception)
        active, paused = self._tokens
        _active.reset(active)
        _paused.reset(paused)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and record it."""
        del types
        kwargs = kwargs or {}
        if _paused.get():
            return function(*args, **kwargs)
        if function is aten._local_scalar_dense.default:
            return self._escape(function, args)
        decomposition = DECOMPOSITIONS.get(function)
        if decomposition is not None:
            with _Redispatched(self):
                result = decomposition(*args, **kwargs)
            if result is not NotImplemented:
                return result
        facts = _facts_of(function)
        if facts.written or facts.written_names:
            return self._record_write(function, facts, args, kwargs)
        taken, named = self._taken(args), self._taken(kwargs) if kwargs else kwargs
        result = function(*args, **kwargs)
        self._record(function, taken, named, result)
        if facts.is_view:
            self._remember_views(args, result)
        return result

    def _escape(self, function: Any, args: tuple[Any, ...]) -> Any:
        index = self._value(args[0])
        # A number that was there before the step is the same for every candidate.
        if self.tape.values[index].producer is not None:
            self.tape.escapes.append(Escape(index, len(self.tape.operations), _place()))
        return function(*args)

    def _record(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
        """Append an operation and what it made; return its index."""
        tape, number = self.tape, len(self.tape.operations)
        outputs: list[int | None] = []
        for output in result if isinstance(result, tuple | list) else (result,):
            if not isinstance(output, Tensor):
                outputs.append(None)
                continue
            outputs.append(len(tape.values))
            tape.values.append(Value(output, number))
            self._name(output, outputs[-1])
        operands = (*references(args), *references(kwargs))
        tape.operations.append(Operation(function, args, kwargs, tuple(outputs), operands))
        tape.key.append((function, _shape_of(args), _shape_of(kwargs), *(_sizes(tape, o) for o in outputs)))
        return number

    def _name(self, tensor: Tensor, index: int) -> None:
        """Take note that a tensor holds a value now."""
        key = id(tensor)
        if key not in self.tape.index_of:
            self._alive.append(tensor)
        self.tape.index_of[key] = index
        root = self._root(tensor)
        self._inhabitants.setdefault(id(root), []).append(index)
        if self._versions:
            self._read_at[key] = self._versions.get(id(root), 0)

    def _value(self, tensor: Tensor) -> int:
        """Return the value that a tensor holds now."""
        key = id(tensor)
        index = self.tape.index_of.get(key)
        if index is None:
            index = self.tape.leaves[key] = len(self.tape.values)
            self.tape.values.append(Value(tensor))
            self._name(tensor, index)
            self.tape.key.append((tuple(tensor.shape), tensor.dtype))
        elif self._versions:
            version = self._versions.get(id(self._root(tensor)), 0)
            if self._read_at.get(key, 0) != version:
                index = self._read_anew(tensor)
        return index

    def _read_anew(self, tensor: Tensor) -> int:
        """Record again how a tensor was cut out of memory that has been written since."""
        view = self._views[id(tensor)]
        parent, made = self._value(view.parent), self.tape.operations[view.operation]
        args = (Ref(parent), *made.args[1:])
        number, index = len(self.tape.operations), len(self.tape.values)
        outputs: list[int | None] = [None] * len(made.outputs)
        outputs[view.output] = index
        self.tape.values.append(Value(tensor, number))
        self.tape.operations.append(
            Operation(made.function, args, made.kwargs, tuple(outputs), (*references(args), *references(made.kwargs)))
        )
        self.tape.key.append((made.function, _shape_of(args), _shape_of(made.kwargs), tuple(tensor.shape)))
        self._name(tensor, index)
        return index

    def _root(self, tensor: Tensor) -> Tensor:
        view = self._views.get(id(tensor))
        while view is not None:
            tensor = view.parent
            view = self._views.get(id(tensor))
        return tensor

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
        if not isinstance(parent, Tensor):
            return
        for output, view in enumerate(result if isinstance(result, tuple | list) else (result,)):
            if isinstance(view, Tensor) and view is not parent:
                self._views[id(view)] = _View(parent, number, output)
                root, index = self._root(parent), self.tape.index_of[id(view)]
                self._inhabitants[id(root)].append(index)
                if self._versions:
                    self._read_at[id(view)] = self._versions.get(id(root), 0)

    def _record_write(self, function: Any, facts: _Facts, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation that writes, and record what it writes as new values."""
        targets = [args[i] for i in facts.written if i < len(args)]
        targets += [kwargs[name] for name in facts.written_names if name in kwargs]
        taken, named = self._taken(args), self._taken(kwargs)
        # What the memory held so far is still an operand of what has been recorded.
        chains = [self._chain(target) for target in targets]
        for target in targets:
            self._preserve(self._root(target))
        result = function(*args, **kwargs)
        if len(targets) != 1 or (facts.functional is None and not facts.random):
            self.tape.obstacle = self.tape.obstacle or f"{function} writes in a way that the tape does not know"
            return result
        target = targets[0]
        named = {name: value for name, value in named.items() if name not in facts.written_names}
        index = self._written(function, facts, taken, named, target)
        self._propagate(target, index, chains[0])
        return result

    def _written(self, function: Any, facts: _Facts, args: Any, kwargs: Any, target: Tensor) -> int:
        """Record the value that a write leaves in its target; return its index."""
        index = len(self.tape.values)
        if facts.random:
            self.tape.values.append(Value(target))
            self.tape.key.append((function, tuple(target.shape)))
            return index
        steps: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [(facts.functional, args, kwargs)]
        if function is aten.copy_.default:
            steps = self._copied(args[1], target)
        elif function in {aten.fill_.Scalar, aten.zero_.default}:
            steps = [(aten.full_like.default, (args[0], args[1] if len(args) > 1 else 0), {})]
        for step, (operator, arguments, named) in enumerate(steps):
            last = step == len(steps) - 1
            source = arguments[0]
            if isinstance(source, Ref) and source.index == -1:
                arguments = (Ref(index), *arguments[1:])
            value = target if last else operator(self.tape.values[source.index].tensor, *arguments[1:], **named)
            number, index = len(self.tape.operations), len(self.tape.values)
            self.tape.values.append(Value(value, number))
            operands = (*references(arguments), *references(named))
            self.tape.operations.append(Operation(operator, arguments, named, (index,), operands))
            self.tape.key.append((operator, _shape_of(arguments), _shape_of(named), tuple(value.shape)))
        return index

    def _copied(self, source: Ref, target: Tensor) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
        """Return how ``target.copy_(source)`` is said by operations that write nothing."""
        if not isinstance(source, Ref):
            return [(aten.full_like.default, (Ref(self._value(target)), source), {})]
        tensor = self.tape.values[source.index].tensor
        steps: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        if tensor.shape != target.shape:
            steps.append((aten.expand.default, (source, list(target.shape)), {}))
        if tensor.dtype != target.dtype:
            steps.append((aten._to_copy.default, (Ref(-1) if steps else source,), {"dtype": target.dtype}))
        return steps or [(aten.clone.default, (source,), {})]

    def _chain(self, target: Tensor) -> list[tuple[_View, int]]:
        """Return the views from a tensor up to what holds the memory, each with its parent's value so far."""
        chain = []
        view = self._views.get(id(target))
        while view is not None:
            chain.append((view, self._value(view.parent)))
            view = self._views.get(id(view.parent))
        return chain

    def _preserve(self, root: Tensor) -> None:
        """Copy what the values in a piece of memory were, before it is written."""
        for index in self._inhabitants.pop(id(root), []):
            value = self.tape.values[index]
            value.tensor = value.tensor.clone()
        self._inhabitants[id(root)] = []

    def _propagate(self, target: Tensor, index: int, chain: list[tuple[_View, int]]) -> None:
        """Record what a write into a view makes of the tensors that it was cut out of."""
        root = self._root(target)
        self._versions[id(root)] = self._versions.get(id(root), 0) + 1
        self._name(target, index)
        for view, before in chain:
            made = self.tape.operations[view.operation]
            undo = _undo(made, view.output, before, index, view.parent)
            if undo is None:
                self.tape.obstacle = self.tape.obstacle or f"a write through {made.function} cannot be recorded"
                return
            operator, args = undo
            number, index = len(self.tape.operations), len(self.tape.values)
            self.tape.values.append(Value(view.parent, number))
            self.tape.operations.append(Operation(operator, args, {}, (index,), tuple(references(args))))
            self.tape.key.append((operator, _shape_of(args), (), tuple(view.parent.shape)))
            self._name(view.parent, index)


class _Redispatched:
    """Sends what a decomposition runs through the recorder again."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __enter__(self) -> None:
        TorchDispatchMode.__enter__(self._recorder)

    def __exit__(self, *exception: object) -> None:
        TorchDispatchMode.__exit__(self._recorder, *exception)


def _undo(
    made: Operation, output: int, before: int, written: int, parent: Tensor
) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
    """Return the operation that puts a written view back into what it was cut out of."""
    function, args = made.function, made.args
    if function in {aten.view.default, aten._unsafe_view.default, aten.squeeze.dim, aten.squeeze.default}:
        return aten.view.default, (Ref(written), list(parent.shape))
    if function in {aten.unsqueeze.default, aten.squeeze.dims}:
        return aten.view.default, (Ref(written), list(parent.shape))
    if function in {aten.detach.default, aten.alias.default, aten.lift_fresh.default}:
        return aten.alias.default, (Ref(written),)
    if function is aten.t.default:
        return aten.t.default, (Ref(written),)
    if function is aten.transpose.int:
        return aten.transpose.int, (Ref(written), *args[1:])
    if function is aten.permute.default:
        order = [axis % parent.ndim for axis in args[1]]
        return aten.permute.default, (Ref(written), [order.index(axis) for axis in range(parent.ndim)])
    if function is aten.select.int:
        return aten.select_scatter.default, (Ref(before), Ref(written), *args[1:])
    if function is aten.slice.Tensor:
        return aten.slice_scatter.default, (Ref(before), Ref(written), *args[1:])
    if function is aten.unbind.int:
        axis = args[1] if len(args) > 1 else 0
        return aten.select_scatter.default, (Ref(before), Ref(written), axis, output)
    return None


def _shape_of(arguments: Any) -> Any:
    """Return what of arguments belongs to the structure of a tape: all but fractions, which are data."""
    if isinstance(arguments, Ref):
        return ("value", arguments.index)
    if isinstance(arguments, float):
        return float
    if isinstance(arguments, tuple | list):
        return tuple([_shape_of(argument) for argument in arguments])
    if isinstance(arguments, dict):
        return tuple([(name, _shape_of(argument)) for name, argument in arguments.items()])
    return arguments if isinstance(arguments, int | bool | str | None | torch.dtype) else str(arguments)


def _sizes(tape: Tape, index: int | None) -> Any:
    return None if index is None else tuple(tape.values[index].tensor.shape)


def _place() -> str:
    """Return the file and line of the innermost frame that belongs neither to torch nor to the recorder."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGES):
        frame = frame.f_back  # type: ignore[assignment]
    return "" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
