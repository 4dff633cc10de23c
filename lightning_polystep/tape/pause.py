"""Observe: what runs beside the tape, because it is no part of the user's step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

_paused: ContextVar[bool] = ContextVar("paused", default=False)


def is_paused() -> bool:
    """Tell whether what runs now is left off all tapes."""
    return _paused.get()


@contextmanager
def paused(beside: bool) -> Iterator[None]:
    """Run the body beside all tapes, or on them again.

    Args:
        beside: Whether to leave it off.
    """
    token = _paused.set(beside)
    try:
        yield
    finally:
        _paused.reset(token)


def unrecorded() -> AbstractContextManager[None]:
    """Run the body beside the tape: what the package itself computes on the way is no part of the user's step.

    Example:
        >>> with unrecorded():
        ...     is_paused()
        True
    """
    return paused(True)
