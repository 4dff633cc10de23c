"""Observe: what runs beside the tape, because it is no part of the user's step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

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
        yield
    finally:
        _depth.reset(token)
