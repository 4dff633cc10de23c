"""Observe: which tensors of a step share memory, and which of their values that memory still holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_polystep.tape.tape import Value


class View(NamedTuple):
    """How a tensor was cut out of another one.

    Args:
        parent: The other one.
        operation: The operation that did it, by index.
        output: Which of its outputs the tensor is.
    """

    parent: Tensor
    operation: int
    output: int


class Memory:
    """Tensors by the memory that they share: each piece of it has one *root*, a tensor that is no view."""

    def __init__(self) -> None:
        self._views: dict[int, View] = {}
        # How often the memory of a root has been written, and at which of its versions each tensor was read last.
        self._versions: dict[int, int] = {}
        self._read_at: dict[int, int] = {}
        self._inhabitants: dict[int, list[int]] = {}
        self._tenants: dict[int, list[Tensor]] = {}

    def view(self, tensor: Tensor) -> View | None:
        """Return how a tensor was cut out of another one; None for a root."""
        return self._views.get(id(tensor))

    def root(self, tensor: Tensor) -> Tensor:
        """Return the tensor that holds the memory of another."""
        view = self._views.get(id(tensor))
        while view is not None:
            tensor = view.parent
            view = self._views.get(id(tensor))
        return tensor

    def read(self, tensor: Tensor, index: int) -> None:
        """Take note that a tensor holds a value now."""
        root = self.root(tensor) if id(tensor) in self._views else tensor
        inhabitants = self._inhabitants.get(id(root))
        if inhabitants is None:
            self._inhabitants[id(root)] = [index]
        else:
            inhabitants.append(index)
        if self._versions:
            self._read_at[id(tensor)] = self._versions.get(id(root), 0)

    def moved_in(self, tensor: Tensor, index: int) -> None:
        """Take note that a new tensor, which is no view, holds a value."""
        self._inhabitants[id(tensor)] = [index]
        if self._versions:
            self._read_at[id(tensor)] = self._versions.get(id(tensor), 0)

    def is_stale(self, tensor: Tensor) -> bool:
        """Tell whether a tensor's memory has been written since its value was read."""
        if not self._versions:
            return False
        return self._read_at.get(id(tensor), 0) != self._versions.get(id(self.root(tensor)), 0)

    def any_stale(self, arguments: Sequence[Any]) -> bool:
        """Tell whether the memory of one of the tensors among arguments has been written since it was read."""
        return bool(self._versions) and any(isinstance(each, Tensor) and self.is_stale(each) for each in arguments)

    def cut(self, tensor: Tensor, index: int, view: View) -> None:
        """Take note that a tensor is a view of another."""
        self._views[id(tensor)] = view
        self.read(tensor, index)

    def written(self, tensor: Tensor) -> None:
        """Take note that the memory of a tensor holds other numbers now."""
        key = id(self.root(tensor))
        self._versions[key] = self._versions.get(key, 0) + 1

    def preserve(self, tensor: Tensor, values: Sequence[Value]) -> None:
        """Copy what the values in a piece of memory were, before it is written."""
        key = id(self.root(tensor))
        for index in self._inhabitants.pop(key, []):
            values[index].tensor = values[index].tensor.clone()
        self._inhabitants[key] = []

    def stand_in(self, other: Tensor, tensor: Tensor) -> None:
        """Let another tensor, which has the same memory, take the place of one in all that is known of it."""
        key = id(tensor)
        tables: tuple[dict[int, Any], ...] = (self._views, self._versions, self._read_at, self._inhabitants)
        for known in tables:
            if key in known:
                known[id(other)] = known.pop(key)
        for each, view in self._views.items():
            if view.parent is tensor:
                self._views[each] = view._replace(parent=other)

    def neighbour(self, tensor: Tensor) -> Tensor | None:
        """Take in a tensor from outside the step; return one that came before it and shares memory with it."""
        if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_meta or not tensor.numel():
            return None
        tenants = self._tenants.setdefault(tensor.untyped_storage().data_ptr(), [])
        first, last = _extent(tensor)
        for other in tenants:
            start, stop = _extent(other)
            if other is tensor:
                return None
            if other.dtype == tensor.dtype and start <= last and first <= stop:
                return other
        tenants.append(tensor)
        return None


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Return the first and the last place of a tensor in its memory."""
    first = int(tensor.storage_offset())
    return first, first + sum(
        int(size - 1) * int(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
