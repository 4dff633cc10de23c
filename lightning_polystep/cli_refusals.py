"""Which errors end a command in one sentence: those that somebody raised to say what is wrong, and known ones of torch.

All others are faults, and keep their traceback.
"""

from __future__ import annotations

import linecache
import os
import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

from lightning_polystep.host import MisconfigurationException
from lightning_polystep.mistakes import cure_of
from lightning_polystep.values import ArgumentRangeError, ArgumentTypeError

# Whose sentences are meant for who typed the command, whatever class they have.
_OURS = ("lightning_polystep", "pytorch_lightning", "lightning", "lightning_fabric")
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
_LONGEST_CHAIN = 8
# What a class said of its arguments, among the types that a parser tried.
_TRIED = re.compile(r"^\s*- (\w+\(\w+=.*)$", re.MULTILINE)


def refusal_in(error: BaseException) -> str | None:
    r"""Return the sentence of an error that refuses something; None if it is a fault.

    An error counts if the statement ``raise`` of Lightning, of this package or of the user's own files made it, or one
    that it was raised from: a parser that tries several types raises anew.

    Args:
        error: What a command has raised.

    Example:
        >>> refusal_in(ArgumentRangeError("Net(width=-1): it must be at least 1."))
        'Net(width=-1): it must be at least 1.'
        >>> refusal_in(ValueError("Errors:\n  - Expected a str\n  - Net(width=-1): it must be at least 1."))
        'Net(width=-1): it must be at least 1.'
        >>> refusal_in(ValueError("raised by nobody"))
    """
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno is not None:  # the system's own, which may come from anywhere
            return None
        if (cure := cure_of(each)) is not None:
            return f"{cure.rstrip('.')} ({_where(each)}{' '.join(str(each).split())})."
        if tried := _TRIED.search(str(each)):
            return tried[1]
        if isinstance(each, ArgumentTypeError | ArgumentRangeError | MisconfigurationException) or _is_raised(each):
            return " ".join(str(each).split())
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    each: BaseException | None = error
    for _ in range(_LONGEST_CHAIN):
        if each is None:
            return
        yield each
        each = each.__cause__


def _is_raised(error: BaseException) -> bool:
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return False
    frame, line = frames[-1]
    if not linecache.getline(frame.f_code.co_filename, line).strip().startswith("raise "):
        return False
    if str(frame.f_globals.get("__name__", "")).partition(".")[0] in _OURS:
        return not isinstance(error, AssertionError | NotImplementedError)
    return isinstance(error, ValueError | TypeError | FileNotFoundError) and _is_own(frame.f_code.co_filename)


def _is_own(file: str) -> bool:
    """Tell whether a file is the user's own: of no installed package."""
    return os.path.exists(file) and not file.startswith(_INSTALLED)


def _where(error: BaseException) -> str:
    """Return the innermost of the user's own lines."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = frame.f_code.co_filename
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] not in _OURS and _is_own(file):
            name = os.path.relpath(file) if Path(file).is_relative_to(Path.cwd()) else file
            return f"{name}, line {line}: "
    return ""
