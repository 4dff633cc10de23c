"""Where things stand that cannot be put back: iterators, files, objects of compiled code, and the world outside."""

from __future__ import annotations

import io
import operator
import os
import pickle
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import GeneratorType
from typing import Any

_LARGEST_BYTES = 2**20


def position(value: Any) -> Any:
    """Return something that differs once an object has moved on, of those objects that can tell.

    Example:
        >>> import itertools
        >>> numbers = itertools.cycle([1, 2])
        >>> before = position(numbers)
        >>> _ = next(numbers)
        >>> position(numbers) == before
        False
    """
    with suppress(Exception):  # of whatever kind: it is the user's object, or a library's
        return _position(value)
    return None


def _position(value: Any) -> Any:
    if isinstance(value, GeneratorType):
        frame = value.gi_frame
        return None if frame is None else (frame.f_lasti, repr(frame.f_locals))
    if isinstance(value, io.IOBase):
        return None if value.closed or not value.seekable() else value.tell()
    if isinstance(value, ContextVar):
        return repr(value.get(None))
    if isinstance(value, sqlite3.Connection):
        return value.total_changes
    if isinstance(value, Iterator):
        return repr(value), operator.length_hint(value, 0), _pickled(value)
    return value.hexdigest() if hasattr(value, "hexdigest") else _pickled(value)


def _pickled(value: Any) -> bytes | None:
    with suppress(Exception):  # what cannot be pickled
        content = pickle.dumps(value)
        return content if len(content) <= _LARGEST_BYTES else None
    return None


class _Effects:
    """What Python's audit events tell of the world outside, while somebody asks."""

    def __init__(self) -> None:
        self.seen: dict[str, None] | None = None
        self._installed = False

    def install(self) -> None:
        # An audit hook stays for the life of the process, so there is one, and it is only there once it is needed.
        if not self._installed:
            self._installed = True
            sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self.seen is None or event not in _EVENTS:
            return
        effect = _EVENTS[event]
        if event == "open":
            path, mode, flags = args
            if path == os.devnull or not _writes(mode, flags):
                return
        self.seen[effect.format(args[0])] = None


def _writes(mode: str | None, flags: int) -> bool:
    return bool(set(mode or "") & set("wax+")) or bool(flags & (os.O_WRONLY | os.O_RDWR))


_EVENTS = {
    "open": "the file {!r} (written)",
    "os.remove": "the file {!r} (removed)",
    "os.rename": "the file {!r} (renamed)",
    "os.mkdir": "the folder {!r} (made)",
    "os.system": "a command of the system",
    "subprocess.Popen": "another program ({!r})",
    "socket.connect": "a network connection",
    "socket.sendto": "a network connection",
}
_EFFECTS = _Effects()


@contextmanager
def effects_outside() -> Iterator[dict[str, None]]:
    """Notice what the body does to files, other programs and the network.

    Yields:
        What was noticed, in words, each once and in order.

    Example:
        >>> with effects_outside() as seen:
        ...     print("Printing is none of them.")
        Printing is none of them.
        >>> list(seen)
        []
    """
    _EFFECTS.install()
    before, seen = _EFFECTS.seen, dict[str, None]()
    _EFFECTS.seen = seen
    try:
        yield seen
    finally:
        _EFFECTS.seen = before
