"""Observe: buffers that each process writes from its own part of a batch, as running statistics are."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_polystep.agreement import Agreement
from lightning_polystep.isolation import BufferWatch


class SharedBuffers:
    """The buffers that commit passes write: where processes divide a batch, all take those of the first.

    Args:
        module: Holds the buffers.
        agreement: With the other processes.
    """

    def __init__(self, module: nn.Module, agreement: Agreement) -> None:
        self._module = module
        self._agreement = agreement
        self._watch = BufferWatch(module)
        self._written: frozenset[str] = frozenset()
        self._names: frozenset[str] = frozenset()

    def watch(self) -> None:
        """Look on from here, where a commit pass begins."""
        self._watch = BufferWatch(self._module)

    def take(self) -> None:
        """Take note of what the pass has written."""
        self._written |= self._watch.written(self._module)

    def agree(self) -> None:
        """Tell the others, if they write other numbers, what is written; all have to call it."""
        if self._agreement.sharded:
            names = [name for name, _ in self._module.named_buffers()]
            self._names = self._agreement.by_any(names, self._written)

    def tensors(self) -> list[Tensor]:
        """Return what the processes agreed on, in the same order on all of them."""
        named = dict(self._module.named_buffers())
        return [named[name] for name in sorted(self._names & named.keys())]
