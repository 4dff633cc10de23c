"""What modules of other libraries need around the passes and probes of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import lru_cache
from typing import Any, cast

from torch import Tensor, nn


class Adapter:
    """Prepares the modules of one library for probing; each method does nothing unless a subclass says so.

    The commit pass runs inside :meth:`observing`; all candidates of a micro-batch are scored inside :meth:`probing`,
    and every evaluation of the user's code starts with :meth:`rewind`.
    """

    def start(self) -> None:
        """Take note of the state in which the user's code starts a pass that will be probed."""

    def observing(self) -> AbstractContextManager[None]:
        """Wrap the commit pass."""
        return nullcontext()

    def probing(self) -> AbstractContextManager[None]:
        """Wrap the scoring of candidates."""
        return nullcontext()

    def rewind(self) -> None:
        """Return to the state that :meth:`start` has seen, before one evaluation."""

    def held(self) -> dict[str, str]:
        """Return the names of parameters that are not probed, each with the reason."""
        return {}


class Adapters(Adapter):
    """All adapters of a module tree as one.

    Args:
        parts: The adapters, one per library; none for a tree of torch modules.

    Example:
        >>> from lightning_polystep.interop.adapters import adapters_for
        >>> adapters_for(nn.Linear(2, 2)).held()
        {}
    """

    def __init__(self, parts: Sequence[Adapter] = ()) -> None:
        self.parts = tuple(parts)

    def start(self) -> None:
        """See :class:`Adapter`."""
        for part in self.parts:
            part.start()

    def observing(self) -> AbstractContextManager[None]:
        """See :class:`Adapter`."""
        return _together([part.observing for part in self.parts])

    def probing(self) -> AbstractContextManager[None]:
        """See :class:`Adapter`."""
        return _together([part.probing for part in self.parts])

    def rewind(self) -> None:
        """See :class:`Adapter`."""
        for part in self.parts:
            part.rewind()

    def held(self) -> dict[str, str]:
        """See :class:`Adapter`."""
        return {name: reason for part in self.parts for name, reason in part.held().items()}

    def rewound(self, evaluate: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Return ``evaluate``, made to start where the commit pass started."""

        def from_the_start() -> Tensor:
            self.rewind()
            return evaluate()

        return from_the_start if self.parts else evaluate


def adapters_for(module: nn.Module) -> Adapters:
    """Return the adapters that a module tree needs; libraries of which it holds nothing are not imported.

    Args:
        module: Root of the tree.
    """
    parts: list[Adapter] = []
    if modules_of(module, "snntorch"):
        from lightning_polystep.interop.snntorch import SnnTorchAdapter

        parts.append(SnnTorchAdapter(module))
    if modules_of(module, "brevitas"):
        from lightning_polystep.interop.brevitas import BrevitasAdapter

        parts.append(BrevitasAdapter(module))
    from lightning_polystep.interop.following import FollowingScales, follows

    if follows(module):
        parts.append(FollowingScales(module))
    return Adapters(parts)


def modules_of(module: nn.Module, library: str) -> dict[str, nn.Module]:
    """Return the submodules whose class, or a base of it, comes from a library, by name."""
    return {name: part for name, part in module.named_modules() if _is_known_from(cast("Any", type(part)), library)}


def comes_from(value: object, library: str) -> bool:
    """Tell whether the class of an object, or a base of it, is defined in a library."""
    return _is_from(type(value), library)


def _is_from(kind: Any, library: str) -> bool:
    return any(each.__module__.partition(".")[0] == library for each in kind.__mro__)


# A step asks it of each module several times. Hooks ask without it: torch.compile warns of a cache in what it traces.
_is_known_from = lru_cache(maxsize=4096)(_is_from)


@contextmanager
def _together(makers: Sequence[Callable[[], AbstractContextManager[None]]]) -> Iterator[None]:
    with ExitStack() as stack:
        for make in makers:
            stack.enter_context(make())
        yield
