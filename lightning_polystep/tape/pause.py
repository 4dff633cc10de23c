"""Observe: what runs beside the tape, because it is no part of the user's step."""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar

from torch import overrides
from torch.utils import _python_dispatch

_depth: ContextVar[int] = ContextVar("depth", default=0)


def pauses() -> int:
    """Return how many pauses there are around what runs now: a tape leaves off what has more than it began with."""
    return _depth.get()


class unrecorded:  # noqa: N801 - it is used like a function
    """Run the body beside the tapes so far: what the package itself computes on the way is no part of the user's step.

    Hooks use it at every call of a layer, so it is no generator.

    Example:
        >>> with unrecorded():
        ...     pauses()
        1
    """

    __slots__ = ("_off", "_token")

    def __enter__(self) -> None:
        """Take the modes off: operations that do not even pass by a recorder cost a tenth."""
        self._token = _depth.set(_depth.get() + 1)
        # One below a mode of the user's stays, and counts pauses.
        latest = (
            (_python_dispatch, _python_dispatch._get_current_dispatch_mode()),
            (overrides, overrides._get_current_function_mode()),
        )
        self._off: list[AbstractContextManager[object]] = []
        for modes, mode in latest:
            if getattr(mode, "serves_tape", False):
                self._off.append(modes._pop_mode_temporarily())
                self._off[-1].__enter__()

    def __exit__(self, *exception: object) -> None:
        """Put them back."""
        for mode in reversed(self._off):
            mode.__exit__(None, None, None)
        _depth.reset(self._token)
