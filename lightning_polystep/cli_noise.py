"""What other packages print on every run of the command line, and nobody who reads it can do anything about."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_utilities.core import rank_zero

# Lightning's advertisements, and its report on a kind of processor that is not there.
_LINES = re.compile(r"💡 Tip: |TPU available: False")
# Recent torch deprecates a class that Lightning 2.6 looks for in every batch.
_WARNINGS = [(r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)]


def is_noise(record: logging.LogRecord) -> bool:
    """Tell whether a line of Lightning's log is left out.

    Args:
        record: The line.

    Example:
        >>> is_noise(logging.makeLogRecord({"msg": "TPU available: False, using: 0 TPU cores"}))
        True
        >>> is_noise(logging.makeLogRecord({"msg": "GPU available: False, used: False"}))
        False
    """
    return _LINES.match(record.getMessage()) is not None


@contextmanager
def without_noise() -> Iterator[None]:
    """Leave it out while the body runs."""

    def keep(record: logging.LogRecord) -> bool:
        return not is_noise(record)

    log = rank_zero.log
    log.addFilter(keep)
    try:
        with warnings.catch_warnings():
            for message, category in _WARNINGS:
                warnings.filterwarnings("ignore", message, category)
            yield
    finally:
        log.removeFilter(keep)
