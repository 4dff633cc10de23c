"""``python -m lightning_polystep solve problem.wcnf --seconds 60``: prints what MAX-SAT tools and checkers expect."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

import numpy as np
from numpy.typing import NDArray

from lightning_polystep.cli_parsers import OneSentenceParser
from lightning_polystep.maxsat.files import FormulaError, read_formula
from lightning_polystep.maxsat.solver import Answer, Solver

# As MaxSAT Evaluation and SAT Competition have them; 2 is that of a wrong command line or file.
UNKNOWN, SATISFIABLE, UNSATISFIABLE, OPTIMUM, WRONG = 0, 10, 20, 30, 2

_DESCRIPTION = """Look for an assignment that satisfies all hard clauses and most of the weight of the soft ones.

Prints "o COST" whenever it finds a better one, at the end "s ..." and "v ...". Ctrl+C and SIGTERM end the search, and
the best so far is printed. Exit status: 30 optimum (nothing avoidable is unsatisfied), 10 satisfiable (hard clauses
are), 20 unsatisfiable (an empty hard clause), 0 unknown, 2 wrong file or option."""


def main(arguments: Sequence[str]) -> int:
    """Read a formula, search, and print the answer.

    Args:
        arguments: Of the command line, behind ``solve``.

    Returns:
        The exit status.
    """
    began = time.perf_counter()
    options = _options(arguments)
    with _Signals() as signals:
        try:
            formula = read_formula(options.file)
            solver = Solver(formula, options.seed, on_better=_print_cost, stopped=signals.stopped)
            signals.searching = True
        except _Stopped:
            _print("c stopped before the formula was read")
            _print("s UNKNOWN")
            return UNKNOWN
        except (ValueError, MemoryError, OSError) as error:
            return _refuse(_sentence(error, options.file))
        read = time.perf_counter() - began
        try:
            _print(
                f"c lightning_polystep: {formula.variables} variables, {int(formula.hard.sum())} hard and "
                f"{int((~formula.hard).sum())} soft clauses, read in {read:.2f} s"
            )
            if options.sweeps is not None:
                answer = solver.search(sweeps=options.sweeps)
            else:
                answer = solver.search(seconds=max(options.seconds - read, 1e-3))
            return _print_answer(answer, formula.satisfied_share(answer.values), options.values)
        except BrokenPipeError:
            # Nobody reads any more; without this, Python complains once more when it flushes at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return UNKNOWN


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = OneSentenceParser(
        prog="python -m lightning_polystep solve",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", help=".cnf or .wcnf, old or new, plain or compressed (gzip, xz, bzip2)")
    parser.add_argument("--seconds", type=_seconds, default=60.0, help="how long, reading included (default: 60)")
    parser.add_argument("--sweeps", type=_sweeps, help="one run of so many sweeps instead, alike on every machine")
    parser.add_argument("--seed", type=int, default=0, help="of all draws (default: 0)")
    parser.add_argument(
        "--values",
        choices=("binary", "literals"),
        default="binary",
        help='"v 011" (binary, since 2022) or "v -1 2 3" (literals, before)',
    )
    return parser.parse_args(list(arguments))


def _seconds(text: str) -> float:
    seconds = float(text)
    if not (seconds > 0 and math.isfinite(seconds)):
        raise argparse.ArgumentTypeError(f"{text} is not above 0.")
    return seconds


def _sweeps(text: str) -> int:
    sweeps = int(text)
    if sweeps < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1.")
    return sweeps


class _Stopped(BaseException):
    """A signal came before there was anything to print."""


class _Signals:
    """Take note of Ctrl+C and SIGTERM; before the search begins, they end what reads the formula."""

    def __init__(self) -> None:
        self.searching = False
        self._came = False

    def __enter__(self) -> _Signals:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stopped(self) -> bool:
        """Tell whether one came."""
        return self._came

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._came = True
        if not self.searching:
            raise _Stopped


def _print_cost(cost: int) -> None:
    _print(f"o {cost}")


def _print_answer(answer: Answer, share: float, form: str) -> int:
    if answer.contradiction:
        _print("s UNSATISFIABLE")
        return UNSATISFIABLE
    _print(f"c {100 * share:.4f} % of the clauses are satisfied after {answer.sweeps} sweeps")
    if not answer.feasible:
        _print(f"c the best assignment violates {answer.violated} hard clauses")
        _print("s UNKNOWN")
        return UNKNOWN
    _print("s OPTIMUM FOUND" if answer.optimal else "s SATISFIABLE")
    _print(f"v {_shown(answer.values, form)}")
    return OPTIMUM if answer.optimal else SATISFIABLE


def _shown(values: NDArray[np.bool_], form: str) -> str:
    if form == "binary":
        return (values.astype(np.uint8) + ord("0")).tobytes().decode()
    numbers = np.arange(1, len(values) + 1)
    return " ".join(map(str, np.where(values, numbers, -numbers).tolist()))


def _print(line: str) -> None:
    print(line, flush=True)  # tools read along


def _sentence(error: ValueError | MemoryError | OSError, file: str) -> str:
    if isinstance(error, FormulaError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"{file} does not fit into memory."
    if isinstance(error, OSError):
        return f"{file} cannot be read ({error.strerror or error})."
    return f"{file}: {error}"


def _refuse(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return WRONG
