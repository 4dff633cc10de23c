"""What code can reach, as it is now, to be put back any number of times: modules, batches, and what they hold."""

from __future__ import annotations

import array
import io
import os
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import partial
from types import CellType, FunctionType, MappingProxyType, MethodType, ModuleType
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
from lightning_polystep.owners import (
    LEFT_ALONE,
    PARTS_OF_TRAINER,
    is_data,
    is_descriptor,
    is_looked_into,
    is_of_python,
    is_trainer,
    is_users_own,
    may_be_written,
    methods_called,
    named_by,
    names_in,
    package_of,
    parts_named,
    slots_of,
)
from lightning_polystep.positions import position
from lightning_polystep.remembering import (
    C_VALUES,
    GENERATORS,
    PutBack,
    assign,
    drop,
    holds_the_same,
    remember_generator,
    remember_memory,
    remember_numbers,
    remember_variable,
    restore_environment,
)

_PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None), type(Ellipsis), slice, range})
# Larger containers are data rather than state, and to look through one takes longer than a step of a small network.
_MOST_ITEMS = 100_000
# The same of what an object of an installed library holds, and its parts in all.
_MOST_FOREIGN = 2_000
_CONTAINERS: tuple[type, ...] = (OrderedDict, defaultdict, Counter, dict, list, deque, set, bytearray)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_MISSING = object()


class Snapshot:
    """Everything that code may change of what it can reach, to be put back.

    From each root follows what it holds: attributes of modules, of objects of the user's own classes and of those of
    installed libraries; items of containers and of their subclasses; variables that functions close over, and those of
    the user's own modules that the code names, or a function or method which it calls; context variables, the
    environment and attributes of the Trainer that the code names; arguments of ``functools.partial``. All is put back
    in place, so that other references stay valid. Tensors and arrays up to 16 MiB are copied. Larger tensors are only
    watched, and a change is an error; what else cannot be put back is named by :attr:`unknown`.

    Args:
        roots: Modules, batches, or code.
        skip: Types of submodules to leave out, because they cannot change; elsewhere they are put back.
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
        self._opaque: dict[str, Any] = {}
        self._names: dict[str, None] = {}
        self._trainers: list[tuple[str, Any]] = []
        self._looked_through: set[tuple[int, int]] = set()
        self._foreign = 0
        modules = [part for root in roots if isinstance(root, nn.Module) for part in root.modules()]
        self._skipped = {id(part) for part in modules if isinstance(part, skip)}
        self._libraries = {package_of(type(part)) for part in modules} - LEFT_ALONE
        self._whole = True
        self._follow([("the batch", each) for each in whole])
        self._whole = False
        self._follow([("" if isinstance(root, nn.Module) else "the code", root) for root in roots])
        # Last, because of a Trainer only what some code names is followed.
        self._follow([found for path, trainer in self._trainers for found in self._trainer(path, trainer)])

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
        """Return where all that is not put back stands, as far as it can tell, by its path."""
        return {path: position(value) for path, value in (self._opaque | self._unknown_objects).items()}

    def what_is(self, path: str) -> str:
        """Say what stands at the path of something that is not put back."""
        return self.unknown.get(path) or f"an object of {type(self._opaque[path]).__name__}"

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
                try:
                    found.extend(self._look_at(path, value))
                except Exception:  # objects of others may raise anything when they are asked for attributes
                    self._give_up(path, value, "an object that raises an error when it is looked into")

    def _look_at(self, path: str, value: Any) -> Iterable[tuple[str, Any]]:
        """Remember one object, and return what it holds, each with its path."""
        looks: tuple[tuple[Any, Callable[[str, Any], Iterable[tuple[str, Any]]]], ...] = (
            (Tensor, self._tensor),
            (nn.Module, self._module),
            (np.ndarray, self._array),
            (_CODE, self._code),
            (GENERATORS, self._generator),
            (_CONTAINERS, self._container),
            (array.array, self._numbers),
            (C_VALUES, self._c_value),
            ((tuple, frozenset), self._items),
            (MappingProxyType, lambda path, view: self._items(path, tuple(view.values()))),
            ((io.StringIO, io.BytesIO), self._memory),
            ((io.IOBase, Iterator), self._stream),
            (ContextVar, self._context_variable),
        )
        for kinds, look in looks:
            if isinstance(value, kinds):
                return look(path, value)
        return self._attributes(path, value)

    def _items(self, path: str, value: Any) -> Iterable[tuple[str, Any]]:
        return [(f"{path}[{place}]", item) for place, item in enumerate(value)]

    def _memory(self, path: str, value: io.StringIO | io.BytesIO) -> Iterable[tuple[str, Any]]:
        """Remember a file that is none."""
        if value.closed:
            return ()
        if not is_small(len(value.getvalue())):
            return self._stream(path, value)
        self._put_back.append(remember_memory(value))
        return ()

    def _stream(self, path: str, value: Any) -> Iterable[tuple[str, Any]]:
        if package_of(type(value)) not in LEFT_ALONE:
            self._give_up(path, value, "a file" if isinstance(value, io.IOBase) else "an iterator")
        return ()

    def _give_up(self, path: str, value: Any, what: str) -> None:
        self.unknown[path], self._unknown_objects[path] = what, value

    def _module(self, path: str, module: nn.Module) -> Iterable[tuple[str, Any]]:
        if id(module) in self._skipped:
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
            if is_users_own(package_of(type(module))):
                yield from ((path, each) for each in methods_called(type(module), type(module).forward))
        else:
            yield from ((_joined(path, name), child) for name, child in module.named_children())
        yield from ((_joined(path, name), tensor) for name, tensor in buffers.items())
        if self._with_parameters:
            yield from ((_joined(path, name), each) for name, each in module.named_parameters(recurse=False))

    def _attributes(self, path: str, value: Any) -> Iterable[tuple[str, Any]]:
        kind = type(value)
        if is_trainer(kind):
            self._trainers.append((path, value))
            return
        if isinstance(value, type) or not self._is_followed(kind):
            if not (
                self._whole
                or isinstance(value, _CONTAINERS)
                or hasattr(value, "__dict__")
                or package_of(kind) in LEFT_ALONE
            ):
                self._opaque[path] = value
            return
        if not is_users_own(package_of(kind)):
            self._foreign += 1
            if self._foreign > _MOST_FOREIGN:
                self._give_up(path, value, f"an object of {package_of(kind)} with many parts")
                return
        if hasattr(value, "__dict__"):
            yield from self._table(path, vars(value))
        names = [name for base in kind.__mro__ for name in slots_of(base)]
        if names:
            yield from self._fields(path, value, names)
        yield from self._class(path, kind)

    def _is_followed(self, kind: type) -> bool:
        package = package_of(kind)
        if package in self._libraries or is_looked_into(kind):
            return True
        # A batch is data, whichever library it comes from.
        return self._whole and package not in LEFT_ALONE and not is_of_python(package)

    def _trainer(self, path: str, trainer: Any) -> Iterable[tuple[str, Any]]:
        """Look at what some code names of a Trainer: attributes, callbacks and data."""
        table, named = vars(trainer), [name for name in self._names if not hasattr(type(trainer), name)]
        before = {name: table[name] for name in named if name in table}
        missing = [name for name in named if name not in table]

        def put_back() -> None:
            assign(table, before)
            for name in missing:
                table.pop(name, None)

        self._put_back.append(put_back)
        yield from ((_joined(path, name), value) for name, value in before.items())
        for part, get in PARTS_OF_TRAINER.items():
            if any(part in name for name in self._names):
                yield from ((_joined(path, part), each) for each in get(trainer))

    def _class(self, path: str, kind: type) -> Iterable[tuple[str, Any]]:
        """Look at data that all objects of the user's own classes share, such as a counter."""
        for base in kind.__mro__:
            if is_users_own(package_of(base)) and id(base) not in self._known:
                self._known[id(base)] = base
                names = [name for name, value in vars(base).items() if is_data(name, value)]
                yield from self._fields(path, base, names)
                yield from ((_joined(path, name), each) for name, each in vars(base).items() if is_descriptor(each))

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
            if not holds_the_same(box, before):
                kind.clear(box)
                fill(box, before)

        self._put_back.append(put_back)
        if not isinstance(box, bytearray):
            pairs = before.items() if isinstance(box, dict) else enumerate(before)
            yield from ((f"{path}[{key!r}]" if type(key) in _PLAIN else path, item) for key, item in pairs)
            if isinstance(box, dict):
                yield from ((path, key) for key in before if type(key) not in _PLAIN)

    def _numbers(self, _path: str, numbers: array.array[Any]) -> Iterable[tuple[str, Any]]:
        before = numbers.tobytes()

        def put_back() -> None:
            if numbers.tobytes() != before:
                del numbers[:]
                numbers.frombytes(before)

        self._put_back.append(put_back)
        return ()

    def _context_variable(self, path: str, variable: ContextVar[Any]) -> Iterable[tuple[str, Any]]:
        try:
            value = variable.get()
        except LookupError:  # nobody can take a value away again
            self._give_up(path, variable, "a context variable without a value")
            return []
        self._put_back.append(remember_variable(variable))
        return [(path, value)]

    def _c_value(self, _path: str, value: Any) -> Iterable[tuple[str, Any]]:
        self._put_back.append(remember_numbers(value))
        return ()

    def _code(self, path: str, code: Any) -> Iterable[tuple[str, Any]]:
        if isinstance(code, partial):
            return [(path, part) for part in (code.func, *code.args, *code.keywords.values())]
        if isinstance(code, MethodType):
            called = methods_called(type(code.__self__), code.__func__)
            return [(path, code.__self__), *((path, each) for each in called)]
        if isinstance(code, CellType):
            return self._fields(path, code, ["cell_contents"])
        if code.__module__ is not None and code.__module__.partition(".")[0] in LEFT_ALONE:
            return []
        self._names |= dict.fromkeys(names_in(code.__code__))
        named = named_by(code)
        self._put_back.append(
            partial(assign, code.__globals__, {n: v for n, v in named.items() if n in code.__globals__})
        )
        found = list(self._variables(code, named))
        found += self._table(path, code.__dict__) if code.__dict__ else ()
        defaults = [*(code.__defaults__ or ()), *(code.__kwdefaults__ or {}).values()]
        cells = zip(code.__code__.co_freevars, code.__closure__ or (), strict=False)
        return [*found, *((path, each) for each in defaults), *cells]

    def _variables(self, code: FunctionType, table: dict[str, Any]) -> Iterable[tuple[str, Any]]:
        """Look at variables that code names: its globals, and those of the user's own modules among them."""
        for name, value in table.items():
            if isinstance(value, ModuleType):
                yield from self._variables_of(value, code)
            elif may_be_written(value):
                yield name, value
            if isinstance(value, type):
                yield from self._class(name, value)

    def _variables_of(self, module: ModuleType, code: FunctionType) -> Iterable[tuple[str, Any]]:
        if module is os and "environ" in self._names:
            before = dict(os.environ)
            self._put_back.append(lambda: restore_environment(before))
        if not is_users_own(module.__name__.partition(".")[0]) or (id(module), id(code)) in self._looked_through:
            return
        self._looked_through.add((id(module), id(code)))
        named = parts_named(module, code)
        self._put_back.append(partial(assign, vars(module), named))
        yield from self._variables(code, named)

    # --- what holds numbers ----------------------------------------------------------------------------------------

    def _tensor(self, _path: str, tensor: Tensor) -> Iterable[tuple[str, Any]]:
        is_parameter = isinstance(tensor, nn.Parameter)
        if is_parameter and not self._with_parameters:
            return ()
        if is_parameter:
            frozen = partial(tensor.requires_grad_, tensor.requires_grad)
            self._put_back.append(lambda: drop(frozen()))
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
            self._put_back.append(remember_generator(generator))
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


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
