"""What code can reach, as it is now, to be put back any number of times: modules, batches, and what they hold."""

from __future__ import annotations

import array
import io
import operator
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from types import CellType, CodeType, FunctionType, GeneratorType, MappingProxyType, MethodType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_polystep.isolation import (
    MODULE_TABLES,
    ProbeSideEffectError,
    buffers_of,
    is_small,
    remember_tensor,
    replaced_names,
)

# Packages whose objects are no state of a training step, or are put back by others.
_LEFT_ALONE = frozenset(
    {"torch", "pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "torchmetrics"}
    | {__name__.partition(".")[0]}
)
# Modules of those and of Python whose objects do hold state that a step may change.
_HOLD_STATE = ("collections", "queue", "weakref", "torch.optim", "torch.quasirandom")
_PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None), type(Ellipsis), slice, range})
# Larger containers are data rather than state, and to look through one takes longer than a step of a small network.
_MOST_ITEMS = 100_000
_CONTAINERS: tuple[type, ...] = (OrderedDict, defaultdict, Counter, dict, list, deque, set, bytearray)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_MISSING = object()

PutBack = Callable[[], None]


class Snapshot:
    """Everything that code may change of what it can reach, to be put back.

    From each root follows what it holds: attributes of modules, of objects of the user's own classes and of those of
    the libraries that the modules come from; items of containers and of their subclasses; variables that functions
    close over, and those of the user's own module that the code names, or a function or method which it calls;
    arguments of ``functools.partial``. All is put back in place, so that other references stay valid. Tensors and
    arrays up to 16 MiB are copied. Larger tensors are only watched, and a change is an error; what else cannot be put
    back is named by :attr:`unknown`.

    Args:
        roots: Modules, batches, or code.
        skip: Types of submodules to leave out, because they cannot change.
        parameters: Whether parameters are put back too, whatever their size.
        whole: Objects from which tensors are copied whatever their size: a batch.

    Raises:
        ProbeSideEffectError: From :meth:`restore`, when a watched large tensor was written.

    Example:
        >>> net = nn.BatchNorm1d(2)
        >>> net.seen = [1]
        >>> before = Snapshot(net)
        >>> net.seen.append(2)
        >>> net.note = "new"
        >>> _ = net.running_mean.add_(1.0)
        >>> before.restore()
        >>> net.seen, hasattr(net, "note"), net.running_mean.tolist()
        ([1], False, [0.0, 0.0])
    """

    def __init__(
        self, *roots: Any, skip: tuple[type[nn.Module], ...] = (), parameters: bool = False, whole: Iterable[Any] = ()
    ) -> None:
        self.roots = roots
        self.unknown: dict[str, str] = {}
        self._unknown_objects: dict[str, Any] = {}
        self.skip, self._with_parameters = skip, parameters
        self._known: dict[int, Any] = {}  # holds on to the objects, so that no other one gets their identity
        self._copies: dict[int, Tensor] = {}
        self._put_back: list[PutBack] = []
        modules = [part for root in roots if isinstance(root, nn.Module) for part in root.modules()]
        self._libraries = {_package(type(part)) for part in modules} - _LEFT_ALONE
        self._whole = True
        self._follow([("the batch", each) for each in whole])
        self._whole = False
        self._follow([("" if isinstance(root, nn.Module) else "the code", root) for root in roots])

    @classmethod
    def of_step(cls, module: nn.Module, code: Any, skip: tuple[type[nn.Module], ...]) -> Snapshot:
        """Return a snapshot of all that a training step may change, with its batch.

        Args:
            module: What is trained.
            code: The step, as a function, a method or a ``functools.partial``, which holds the batch.
            skip: As above.
        """
        return cls(module, code, skip=skip, parameters=True, whole=arguments_of(code))

    def restore(self) -> None:
        """Put everything back as it was."""
        problem: ProbeSideEffectError | None = None
        for put_back in self._put_back:
            try:
                put_back()
            except ProbeSideEffectError as error:  # the rest is put back all the same
                problem = error
        if problem is not None:
            raise problem

    def positions(self) -> dict[str, Any]:
        """Return where each of the :attr:`unknown` stands that can tell, by its path."""
        return {path: _position(value) for path, value in self._unknown_objects.items()}

    def known(self) -> list[Any]:
        """Return all objects that were found."""
        return list(self._known.values())

    def value(self, parameter: Tensor) -> Tensor:
        """Return what a parameter is put back to; what it is now, where it is not put back."""
        return self._copies.get(id(parameter), parameter.detach())

    def accept(self, parameters: Iterable[Tensor]) -> None:
        """Take parameters as they are now, because an optimizer has moved them.

        Args:
            parameters: Those that may have moved; what else has changed is still put back.
        """
        for parameter in parameters:
            if id(parameter) in self._copies:
                self._copies[id(parameter)].copy_(parameter.detach())

    # --- what holds what -------------------------------------------------------------------------------------------

    def _follow(self, found: list[tuple[str, Any]]) -> None:
        while found:
            path, value = found.pop()
            if type(value) not in _PLAIN and id(value) not in self._known:
                self._known[id(value)] = value
                found.extend(self._look_at(path, value))

    def _look_at(self, path: str, value: Any) -> Iterable[tuple[str, Any]]:
        """Remember one object, and return what it holds, each with its path."""
        looks: tuple[tuple[Any, Callable[[str, Any], Iterable[tuple[str, Any]]]], ...] = (
            (Tensor, self._tensor),
            (nn.Module, self._module),
            (np.ndarray, self._array),
            (_CODE, self._code),
            (_GENERATORS, self._generator),
            (_CONTAINERS, self._container),
            (array.array, self._numbers),
            ((tuple, frozenset), self._items),
            (MappingProxyType, lambda path, view: self._items(path, tuple(view.values()))),
            ((io.IOBase, Iterator), self._stream),
        )
        for kinds, look in looks:
            if isinstance(value, kinds):
                return look(path, value)
        return self._attributes(path, value)

    def _items(self, path: str, value: Any) -> Iterable[tuple[str, Any]]:
        return [(f"{path}[{place}]", item) for place, item in enumerate(value)]

    def _stream(self, path: str, value: Any) -> Iterable[tuple[str, Any]]:
        if _package(type(value)) not in _LEFT_ALONE:
            self._give_up(path, value, "a file" if isinstance(value, io.IOBase) else "an iterator")
        return ()

    def _give_up(self, path: str, value: Any, what: str) -> None:
        self.unknown[path], self._unknown_objects[path] = what, value

    def _module(self, path: str, module: nn.Module) -> Iterable[tuple[str, Any]]:
        if isinstance(module, self.skip):
            return
        yield from self._table(path, vars(module), MODULE_TABLES)
        compiled = isinstance(module, torch.jit.ScriptModule)
        buffers = buffers_of(module)
        if not compiled:
            yield from self._table(path, module._buffers)
            yield from ((_joined(path, name), child) for name, child in module._modules.items())
            hooks = [hook for name in _HOOKS for hook in vars(module).get(name, {}).values()]
            yield from ((f"a hook of {path or 'the module'}", hook) for hook in hooks)
            yield from self._class(path, type(module))
            if _is_users_own(_package(type(module))):
                yield from ((path, each) for each in _methods_called(type(module), type(module).forward))
        else:
            yield from ((_joined(path, name), child) for name, child in module.named_children())
        yield from ((_joined(path, name), tensor) for name, tensor in buffers.items())
        if self._with_parameters:
            yield from ((_joined(path, name), each) for name, each in module.named_parameters(recurse=False))

    def _attributes(self, path: str, value: Any) -> Iterable[tuple[str, Any]]:
        kind = type(value)
        if isinstance(value, type) or not self._is_followed(kind):
            return
        if hasattr(value, "__dict__"):
            yield from self._table(path, vars(value))
        names = [name for base in kind.__mro__ for name in _slots(base)]
        if names:
            yield from self._fields(path, value, names)
        yield from self._class(path, kind)

    def _is_followed(self, kind: type) -> bool:
        package = _package(kind)
        if kind is SimpleNamespace or package in self._libraries or _is_users_own(package):
            return True
        if any(kind.__module__ == name or kind.__module__.startswith(f"{name}.") for name in _HOLD_STATE):
            return True
        # A batch is data, whichever library it comes from.
        return self._whole and package not in _LEFT_ALONE and package not in sys.stdlib_module_names

    def _class(self, path: str, kind: type) -> Iterable[tuple[str, Any]]:
        """Look at data that all objects of the user's own classes share, such as a counter."""
        for base in kind.__mro__:
            if _is_users_own(_package(base)) and id(base) not in self._known:
                self._known[id(base)] = base
                names = [name for name, value in vars(base).items() if _is_data(name, value)]
                yield from self._fields(path, base, names)

    def _fields(self, path: str, owner: Any, names: list[str]) -> Iterable[tuple[str, Any]]:
        before = {name: getattr(owner, name, _MISSING) for name in names}

        def put_back() -> None:
            for name, value in before.items():
                now = getattr(owner, name, _MISSING)
                if value is not now and value is _MISSING:
                    delattr(owner, name)
                elif value is not now:
                    setattr(owner, name, value)

        self._put_back.append(put_back)
        return [(_joined(path, name), value) for name, value in before.items() if value is not _MISSING]

    def _table(
        self, path: str, table: dict[str, Any], leave: frozenset[str] = frozenset()
    ) -> Iterable[tuple[str, Any]]:
        """Remember attributes by name; those that a probe has replaced for a while are left to it."""
        before = {name: value for name, value in table.items() if name not in leave}

        def put_back() -> None:
            kept = replaced_names(table)
            for name in [name for name in table if name not in before and name not in leave and name not in kept]:
                del table[name]
            for name, value in before.items():
                if name not in kept and table.get(name, _MISSING) is not value:
                    table[name] = value

        self._put_back.append(put_back)
        return [(_joined(path, name), value) for name, value in before.items()]

    def _container(self, path: str, box: Any) -> Iterable[tuple[str, Any]]:
        yield from self._attributes(path, box)
        if len(box) > _MOST_ITEMS:
            self._give_up(path, box, f"a {type(box).__name__} of {len(box):,} items")
            return
        # Methods of Python's own class, because a subclass may count, check or refuse what goes through its own.
        kind: Any = next(each for each in _CONTAINERS if isinstance(box, each))
        before = kind.copy(box) if not isinstance(box, dict) else dict(box.items())
        fill: Any = getattr(dict if kind is Counter else kind, "update", None) or kind.extend

        def put_back() -> None:
            if not _holds_the_same(box, before):
                kind.clear(box)
                fill(box, before)

        self._put_back.append(put_back)
        if not isinstance(box, bytearray):
            pairs = before.items() if isinstance(box, dict) else enumerate(before)
            yield from ((f"{path}[{key!r}]" if type(key) in _PLAIN else path, item) for key, item in pairs)

    def _numbers(self, _path: str, numbers: array.array[Any]) -> Iterable[tuple[str, Any]]:
        before = numbers.tobytes()

        def put_back() -> None:
            if numbers.tobytes() != before:
                del numbers[:]
                numbers.frombytes(before)

        self._put_back.append(put_back)
        return ()

    def _code(self, path: str, code: Any) -> Iterable[tuple[str, Any]]:
        if isinstance(code, partial):
            return [(path, part) for part in (code.func, *code.args, *code.keywords.values())]
        if isinstance(code, MethodType):
            called = _methods_called(type(code.__self__), code.__func__)
            return [(path, code.__self__), *((path, each) for each in called)]
        if isinstance(code, CellType):
            return self._fields(path, code, ["cell_contents"])
        if code.__module__ is not None and code.__module__.partition(".")[0] in _LEFT_ALONE:
            return []
        names = dict.fromkeys(_names(code.__code__))
        table = {name: code.__globals__[name] for name in names if name in code.__globals__}
        self._put_back.append(lambda: _assign(code.__globals__, table))
        named = [(name, value) for name, value in table.items() if _may_be_written(value)]
        named += [each for kind in table.values() if isinstance(kind, type) for each in self._class(path, kind)]
        named += self._table(path, code.__dict__) if code.__dict__ else ()
        defaults = [*(code.__defaults__ or ()), *(code.__kwdefaults__ or {}).values()]
        cells = zip(code.__code__.co_freevars, code.__closure__ or (), strict=False)
        return [*named, *((path, each) for each in defaults), *cells]

    # --- what holds numbers ----------------------------------------------------------------------------------------

    def _tensor(self, _path: str, tensor: Tensor) -> Iterable[tuple[str, Any]]:
        is_parameter = isinstance(tensor, nn.Parameter)
        if is_parameter and not self._with_parameters:
            return ()
        if is_parameter:
            frozen = partial(tensor.requires_grad_, tensor.requires_grad)
            self._put_back.append(lambda: _drop(frozen()))
        remembered = remember_tensor(tensor, whole=self._whole or is_parameter)
        if remembered is not None:
            put_back, copy = remembered
            self._put_back.append(put_back)
            if copy is not None:
                self._copies[id(tensor)] = copy
        return ()

    def _array(self, path: str, array: np.ndarray[Any, Any]) -> Iterable[tuple[str, Any]]:
        if not array.flags.writeable:
            return []
        if not self._whole and not is_small(array.nbytes):
            self._give_up(path, array, f"an array of {array.nbytes / 2**20:.0f} MiB")
            return []
        copy = array.copy()

        def put_back() -> None:
            if array.dtype.hasobject or array.tobytes() != copy.tobytes():
                array[...] = copy

        self._put_back.append(put_back)
        return [(path, item) for item in copy.flat] if array.dtype.hasobject else []

    def _generator(self, path: str, generator: Any) -> Iterable[tuple[str, Any]]:
        try:
            self._put_back.append(_remember_generator(generator))
        except NotImplementedError:
            self._give_up(path, generator, "a source of random numbers without a state")
        return ()


def arguments_of(code: Any) -> list[Any]:
    """Return what is bound to code by ``functools.partial``, as the batch is to a training step.

    Args:
        code: Anything; what is no partial has no arguments.

    Example:
        >>> arguments_of(partial(partial(print, 1), 2))
        [1, 2]
        >>> arguments_of(partial(map, partial(print, [1])))
        [[1]]
    """
    if not isinstance(code, partial):
        return []
    bound = [code.func, *code.args, *code.keywords.values()]
    return [each for part in bound for each in (arguments_of(part) if callable(part) else [part])]


_CODE = (FunctionType, MethodType, CellType, partial)
_GENERATORS = (
    torch.Generator,
    random.Random,
    np.random.Generator,
    np.random.RandomState,
    np.random.BitGenerator,
    np.random.SeedSequence,
)


def _remember_generator(generator: Any) -> PutBack:
    if isinstance(generator, np.random.SeedSequence):
        raise NotImplementedError  # it counts its children where nobody can set the count
    if isinstance(generator, torch.Generator):
        state = generator.get_state()
        return lambda: _drop(generator.set_state(state))
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    if isinstance(generator, np.random.RandomState):
        return partial(generator.set_state, generator.get_state())
    bits: Any = generator.bit_generator if isinstance(generator, np.random.Generator) else generator
    return partial(setattr, bits, "state", bits.state)


def _position(value: Any) -> Any:
    """Return something that differs once an object has moved on, of those objects that can tell."""
    if isinstance(value, GeneratorType):
        frame = value.gi_frame
        return None if frame is None else (frame.f_lasti, repr(frame.f_locals))
    if isinstance(value, io.IOBase):
        return None if value.closed or not value.seekable() else value.tell()
    if isinstance(value, np.random.SeedSequence):
        return value.n_children_spawned
    return (repr(value), operator.length_hint(value, 0)) if isinstance(value, Iterator) else None


def _may_be_written(value: Any) -> bool:
    """Tell whether a global variable is followed: all but functions that are not the user's own."""
    return not isinstance(value, FunctionType) or _is_users_own((value.__module__ or "").partition(".")[0])


def _methods_called(kind: type, first: Any) -> list[FunctionType]:
    """Return a method of a class, with those that it calls by name, and so on, as far as they are the user's own."""
    called, waiting = list[FunctionType](), [first]
    while waiting:
        method = waiting.pop()
        if isinstance(method, FunctionType) and method not in called:
            called.append(method)
            found = (getattr(kind, name, None) for name in _names(method.__code__))
            waiting += [each for each in found if isinstance(each, FunctionType) and _may_be_written(each)]
    return called


def _drop(_result: Any) -> None:
    """Return nothing."""


def _holds_the_same(box: Any, before: Any) -> bool:
    if len(box) != len(before):
        return False
    if isinstance(box, bytearray | set):
        return bool(box == before)
    if isinstance(box, dict):
        return all(a is b and c is d for (a, c), (b, d) in zip(dict.items(box), before.items(), strict=True))
    return all(a is b for a, b in zip(box, before, strict=True))


def _assign(table: dict[str, Any], before: dict[str, Any]) -> None:
    for name, value in before.items():
        if table.get(name, _MISSING) is not value:
            table[name] = value


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_data(name: str, value: Any) -> bool:
    """Tell whether an entry of a class is no method, no property and nothing that Python has put there."""
    return not (name.startswith("__") or name.startswith("_abc") or callable(value) or hasattr(type(value), "__get__"))


def _slots(kind: type) -> list[str]:
    slots = vars(kind).get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if name not in {"__dict__", "__weakref__"}]


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


@lru_cache(maxsize=4096)
def _is_users_own(package: str) -> bool:
    """Tell whether a package is neither Python's nor installed: its objects are the user's own."""
    if package in _LEFT_ALONE or package in sys.stdlib_module_names - {"__main__"}:
        return False
    places = [
        getattr(sys.modules.get(package), "__file__", None) or "",
        *getattr(sys.modules.get(package), "__path__", ()),
    ]
    return not any("site-packages" in place or "dist-packages" in place for place in places)
