"""Observe: what runs beside the tape, because it is no part of the user's step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

from torch import overrides
from torch.utils import _python_dispatch

_depth: ContextVar[int] = ContextVar("depth", default=0)


def pauses() -> int:
    """Return how many pauses there are around what runs now: a tape leaves off what has more than it began with."""
    return _depth.get()


@contextmanager
def unrecorded() -> Iterator[None]:
    """Run the body beside the tapes so far: what the package itself computes on the way is no part of the user's step.

    Example:
        >>> with unrecorded():
        ...     pauses()
        1
    """
    token = _depth.set(_depth.get() + 1)
    try:
        # Operations that do not even pass by a recorder cost a tenth; one below a mode of the user's counts pauses.
        with (
            _taken_off(_python_dispatch, _python_dispatch._get_current_dispatch_mode()),
            _taken_off(overrides, overrides._get_current_function_mode()),
        ):
            yield
    finally:
        _depth.reset(token)


@contextmanager
def _taken_off(modes: ModuleType, latest: object) -> Iterator[None]:
    """Take the latest mode off while the body runs, if it serves a tape."""
    if not getattr(latest, "serves_tape", False):
        yield
        return
    with modes._pop_mode_temporarily():
        yield
