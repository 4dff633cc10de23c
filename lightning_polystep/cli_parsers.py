"""The parser of the commands that take no configuration: it says in one sentence what is wrong."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn


class OneSentenceParser(argparse.ArgumentParser):
    """argparse's, without the usage in front of each mistake.

    Example:
        >>> OneSentenceParser(prog="tool").parse_args(["--nonsense"])
        Traceback (most recent call last):
        SystemExit: 2
    """

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end with code 2."""
        sys.stderr.write(f"error: {message.rstrip('.')}.\ntip: {self.prog} --help lists the options.\n")
        raise SystemExit(2)
