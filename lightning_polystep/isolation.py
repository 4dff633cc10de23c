"""Probes leave no trace: logging muted, metrics muted, every plain attribute and buffer of the module put back."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

# nn.Module's own tables: parameters are handled by the scoring tiers, hooks and children are not data.
_MODULE_TABLES = frozenset(vars(nn.Module())) - {"training"}
# Larger tensors are watched by version counter instead of being copied at every step.
_LARGEST_COPY_BYTES = 16 * 2**20


class ProbeSideEffectError(RuntimeError):
    """A probe changed something that cannot be put back."""


class Snapshot:
    """The plain attributes and buffers of a module tree, to be put back after probing.

    Containers (those of Python, nested), NumPy arrays and torch generators are restored in place, so that other
    references to them stay valid. Tensors and arrays up to 16 MiB are copied. Larger tensors are only watched, and a
    change is an error; larger arrays, and objects of other types, are left alone.

    Args:
        module: Root of the tree.
        skip: Types of submodules to leave out, because they cannot change.

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

    def __init__(self, module: nn.Module, skip: tuple[type[nn.Module], ...] = ()) -> None:
        modules = [m for m in module.modules() if not isinstance(m, skip)]
        self._attributes = [(m, _remember_attributes(m)) for m in modules]
        self._buffers = [_remember(_buffers(m)) for m in modules if m._buffers]

    def restore(self) -> None:
        """Put everything back as it was."""
        for module, attributes in self._attributes:
            for name in [n for n in vars(module) if n not in attributes and n not in _MODULE_TABLES]:
                del vars(module)[name]
            for name, put_back in attributes.items():
                vars(module)[name] = put_back()
        for put_back in self._buffers:
            put_back()


class TensorState:
    """The hidden state of modules: plain attributes that are tensors or None, and buffers that no checkpoint keeps.

    Other attributes (functions, settings) and persistent buffers are left alone, also where they have changed.

    Args:
        modules: The modules themselves, without their children.

    Example:
        >>> cell = nn.Module()
        >>> cell.register_buffer("membrane", torch.zeros(2), persistent=False)
        >>> before = TensorState([cell])
        >>> cell.membrane, cell.last = torch.ones(2), torch.ones(1)
        >>> before.restore()
        >>> cell.membrane, hasattr(cell, "last")
        (tensor([0., 0.]), False)
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._remembered = [
            (table, chosen, {name: _remember(table[name]) for name in chosen(module)}, module)
            for module in modules
            for table, chosen in ((vars(module), _tensor_attributes), (module._buffers, _transient_buffers))
        ]

    def restore(self) -> None:
        """Put the state back as it was."""
        for table, chosen, remembered, module in self._remembered:
            for name in [name for name in chosen(module) if name not in remembered]:
                del table[name]
            for name, put_back in remembered.items():
                table[name] = put_back()


def _buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """Return a module's own buffers; compiled ones keep theirs in a table that is no dict."""
    return dict(module._buffers.items()) if isinstance(module, torch.jit.ScriptModule) else module._buffers


def _tensor_attributes(module: nn.Module) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if name not in _MODULE_TABLES and (value is None or isinstance(value, Tensor))
    ]


def _transient_buffers(module: nn.Module) -> list[str]:
    return [name for name in module._buffers if name in module._non_persistent_buffers_set]


def _remember_attributes(module: nn.Module) -> dict[str, Callable[[], Any]]:
    return {name: _remember(value) for name, value in vars(module).items() if name not in _MODULE_TABLES}


def _remember(value: Any) -> Callable[[], Any]:
    """Return a function that brings the value back to what it is now, keeping its identity."""
    if isinstance(value, Tensor):
        return _remember_tensor(value)
    # By exact type: a subclass of the user's own may hold more than its items.
    remember = _REMEMBER.get(type(value))
    return remember(value) if remember is not None else lambda: value


def _remember_mapping(box: Any) -> Callable[[], Any]:
    entries = {key: _remember(entry) for key, entry in box.items()}

    def put_back() -> Any:
        before = {key: entry() for key, entry in entries.items()}
        box.clear()
        box.update(before)
        return box

    return put_back


def _remember_items(box: Any) -> Callable[[], Any]:
    remembered = [_remember(item) for item in box]
    fill = box.update if isinstance(box, set) else box.extend

    def put_back() -> Any:
        before = [item() for item in remembered]
        box.clear()
        fill(before)
        return box

    return put_back


def _remember_tuple(box: tuple[Any, ...]) -> Callable[[], Any]:
    remembered = [_remember(item) for item in box]

    def put_back() -> Any:
        for item in remembered:
            item()
        return box

    return put_back


def _remember_array(array: np.ndarray[Any, Any]) -> Callable[[], Any]:
    if not array.flags.writeable or array.nbytes > _LARGEST_COPY_BYTES:
        return lambda: array
    copy = array.copy()

    def put_back() -> Any:
        array[...] = copy
        return array

    return put_back


def _remember_generator(generator: torch.Generator) -> Callable[[], Any]:
    state = generator.get_state()
    return lambda: generator.set_state(state)


_REMEMBER: dict[type, Callable[[Any], Callable[[], Any]]] = {
    **dict.fromkeys((list, deque, set), _remember_items),
    **dict.fromkeys((dict, OrderedDict, defaultdict, Counter), _remember_mapping),
    tuple: _remember_tuple,
    np.ndarray: _remember_array,
    torch.Generator: _remember_generator,
}


def _remember_tensor(tensor: Tensor) -> Callable[[], Tensor]:
    if tensor.is_inference() or isinstance(tensor, nn.Parameter) or _is_expanded(tensor):
        return lambda: tensor
    if not _is_small(tensor):
        return _watch_tensor(tensor)
    copy = tensor.detach().clone()

    def put_back() -> Tensor:
        # Always by value: native kernels may write without advancing the version counter.
        with torch.no_grad():
            if tensor.shape != copy.shape:
                tensor.resize_(copy.shape)
            tensor.copy_(copy)
        return tensor

    return put_back


def _watch_tensor(tensor: Tensor) -> Callable[[], Tensor]:
    version = tensor._version

    def check() -> Tensor:
        if tensor._version != version:
            size = tensor.numel() * tensor.element_size() / 2**20
            msg = (
                f"The training step writes into a tensor of {size:.0f} MiB, which probes cannot undo: "
                "keep state that the step updates in tensors below 16 MiB, or update it in on_train_batch_end."
            )
            raise ProbeSideEffectError(msg)
        return tensor

    return check


@contextmanager
def silenced(targets: Iterable[tuple[Any, str]], replacement: Callable[..., Any]) -> Iterator[None]:
    """Replace methods on instances while the body runs.

    Args:
        targets: Pairs of an object and the name of its method.
        replacement: What is called instead.
    """
    replaced = [(vars(target), name, vars(target).get(name, _MISSING)) for target, name in targets]
    for table, name, _ in replaced:
        table[name] = replacement
    try:
        yield
    finally:
        for table, name, original in reversed(replaced):
            if original is _MISSING:
                del table[name]
            else:
                table[name] = original


_MISSING = object()


@contextmanager
def metrics_muted(module: nn.Module) -> Iterator[None]:
    """Make every torchmetrics object of the tree inert: no update, and NaN as its value.

    A loss that turns NaN by this *depends* on a metric; the plan finds that out and leaves metrics live then.
    """
    metrics = [m for m in module.modules() if isinstance(m, Metric)]
    names = ("forward", "update", "compute", "reset")
    with silenced([(metric, name) for metric in metrics for name in names], _not_a_number):
        yield


def _not_a_number(*_args: Any, **_kwargs: Any) -> Tensor:
    return torch.tensor(float("nan"))


class BufferWatch:
    """Tells which buffers have been written since it was made.

    By value, because native kernels (batch normalisation's running statistics) write without advancing the version
    counter; sparse buffers and those above 16 MiB by identity and version.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> watch = BufferWatch(norm)
        >>> _ = norm(torch.randn(4, 2))
        >>> sorted(watch.written(norm))
        ['num_batches_tracked', 'running_mean', 'running_var']
    """

    def __init__(self, module: nn.Module) -> None:
        self._before = {
            name: (buffer, _version(buffer), buffer.detach().clone() if _is_comparable(buffer) else None)
            for name, buffer in module.named_buffers()
        }

    def written(self, module: nn.Module) -> set[str]:
        """Return the names of buffers that are other tensors, or hold other values, than before."""
        return {name for name, buffer in module.named_buffers() if self._differs(name, buffer)}

    def _differs(self, name: str, buffer: Tensor) -> bool:
        if name not in self._before:
            return True
        before, version, values = self._before[name]
        if buffer is not before:
            return True
        return _version(buffer) != version if values is None else not torch.equal(buffer, values)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _is_comparable(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and _is_small(tensor)


def _is_expanded(tensor: Tensor) -> bool:
    """Tell whether places of a tensor share memory, so that torch refuses to write into it."""
    if tensor.layout is not torch.strided:
        return False
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _is_small(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() <= _LARGEST_COPY_BYTES
