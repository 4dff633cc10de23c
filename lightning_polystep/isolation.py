"""Probes leave no trace: logging and metrics muted, tensors put back (``snapshot.py`` finds all that there are)."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

# nn.Module's own tables: parameters are handled by the scoring tiers, hooks and children are not data.
MODULE_TABLES = frozenset(vars(nn.Module())) - {"training"}
# Larger tensors are watched by version counter instead of being copied at every step.
_LARGEST_COPY_BYTES = 16 * 2**20


class ProbeSideEffectError(RuntimeError):
    """A probe changed something that cannot be put back."""


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


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Return a module's own buffers; compiled ones keep theirs in a table that is no dict."""
    return dict(module._buffers.items()) if isinstance(module, torch.jit.ScriptModule) else module._buffers


def _tensor_attributes(module: nn.Module) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if name not in MODULE_TABLES and (value is None or isinstance(value, Tensor))
    ]


def _transient_buffers(module: nn.Module) -> list[str]:
    return [name for name in module._buffers if name in module._non_persistent_buffers_set]


def _remember(value: Tensor | None) -> Callable[[], Tensor | None]:
    """Return a function that brings a tensor back to what it is now, and returns it."""
    remembered = None if value is None else remember_tensor(value)

    def put_back() -> Tensor | None:
        if remembered is not None:
            remembered[0]()
        return value

    return put_back


def remember_tensor(tensor: Tensor, *, whole: bool = False) -> tuple[Callable[[], None], Tensor | None] | None:
    """Return what puts a tensor back as it is now, and the copy that it uses; None for what cannot be written.

    Args:
        tensor: Any tensor.
        whole: Whether it is copied whatever its size; otherwise one above 16 MiB is watched.
    """
    if _is_expanded(tensor) or (isinstance(tensor, nn.Parameter) and not whole):
        return None
    if not whole and not is_small(tensor.numel() * tensor.element_size()):
        return _watch_tensor(tensor), None
    # Another name for the same memory: a step may give the tensor other memory (`p.data = ...`).
    strided = _is_strided(tensor)
    memory, copy = tensor.detach(), tensor.detach().clone()

    def put_back() -> None:
        # Tensors of inference mode are written in it alone.
        with torch.no_grad(), torch.inference_mode() if tensor.is_inference() else nullcontext():
            if strided and (tensor.shape != copy.shape or tensor.data_ptr() != memory.data_ptr()):
                tensor.data = memory
            # By value: native kernels, and `tensor.data`, write without advancing the version counter. What has not
            # changed is not written, because it may be memory that only can be read.
            if not strided or not _holds(tensor, copy):
                tensor.copy_(copy)

    return put_back, copy


def _holds(tensor: Tensor, copy: Tensor) -> bool:
    if torch.equal(tensor, copy):
        return True
    return bool(((tensor == copy) | ((tensor != tensor) & (copy != copy))).all())  # noqa: PLR0124 - NaN equals NaN here


def _watch_tensor(tensor: Tensor) -> Callable[[], None]:
    version = _version(tensor)

    def check() -> None:
        if _version(tensor) != version:
            size = tensor.numel() * tensor.element_size() / 2**20
            msg = (
                f"The training step writes into a tensor of {size:.0f} MiB, which probes cannot undo: "
                "keep state that the step updates in tensors below 16 MiB, or update it in on_train_batch_end."
            )
            raise ProbeSideEffectError(msg)

    return check


# Names that are replaced for a while, by the table of attributes that holds them.
_REPLACED: dict[int, list[str]] = {}


def replaced_names(table: dict[str, Any]) -> Sequence[str]:
    """Return the attributes of an object that :func:`replaced` has replaced at the moment.

    Args:
        table: Of the object, ``vars(...)``.
    """
    return _REPLACED.get(id(table), ())


@contextmanager
def replaced(entries: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Replace attributes of objects while the body runs.

    Args:
        entries: Objects, each with the name of its attribute and what takes its place.
    """
    before = [(vars(target), name, vars(target).get(name, _MISSING), value) for target, name, value in entries]
    for table, name, _, value in before:
        table[name] = value
        _REPLACED.setdefault(id(table), []).append(name)
    try:
        yield
    finally:
        for table, name, original, _ in reversed(before):
            names = _REPLACED[id(table)]
            names.remove(name)
            if not names:
                del _REPLACED[id(table)]
            if original is _MISSING:
                table.pop(name, None)
            else:
                table[name] = original


@contextmanager
def silenced(targets: Iterable[tuple[Any, str]], replacement: Callable[..., Any]) -> Iterator[None]:
    """Replace methods on instances while the body runs.

    Args:
        targets: Pairs of an object and the name of its method.
        replacement: What is called instead.
    """
    with replaced([(target, name, replacement) for target, name in targets]):
        yield


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


class _Nowhere(io.TextIOBase):
    """A stream that forgets what is written to it."""

    def write(self, text: str, /) -> int:
        return len(text)


@contextmanager
def unheard() -> Iterator[None]:
    """Drop what the body prints and logs, and pass its breakpoints: a step that runs again has said it once.

    Errors and warnings are not dropped.

    Example:
        >>> with unheard():
        ...     print("once more")
    """
    stream, stop, handle = sys.stdout, sys.breakpointhook, logging.Logger.handle
    sys.stdout, sys.breakpointhook = _Nowhere(), _pass_by
    logging.Logger.handle = _pass_by  # type: ignore[method-assign]
    try:
        yield
    finally:
        sys.stdout, sys.breakpointhook = stream, stop
        logging.Logger.handle = handle  # type: ignore[method-assign]


def _pass_by(*_args: Any, **_kwargs: Any) -> None:
    """Do nothing."""


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
    return _is_strided(tensor) and is_small(tensor.numel() * tensor.element_size())


def _is_expanded(tensor: Tensor) -> bool:
    """Tell whether places of a tensor share memory, so that torch refuses to write into it."""
    if not _is_strided(tensor):
        return False
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _is_strided(tensor: Tensor) -> bool:
    # A nested tensor says that it is, and has no strides.
    return tensor.layout is torch.strided and not tensor.is_nested


def is_small(size: int) -> bool:
    """Tell whether so many bytes are copied rather than watched."""
    return size <= _LARGEST_COPY_BYTES
