"""What is lost when a run is killed, stopped or hits a fault: ``python -m benchmarks.faults --kills 200``.

Runs of 20 steps that save after every step are hit at random points of random phases, resumed from the newest intact
checkpoint, hit again, and so on to the end; then the hash of all parameters is compared with that of a run that nothing
happened to. Prints a Markdown table, fault x phase x outcome, then one line of JSON; exits with 1 if anything was lost.

Each run is a process forked from this one, which has imported everything and computed nothing. One process per run, on
the CPU. Needs an operating system with ``fork``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common import finish, make_parser
from benchmarks.faulty import FAULT_OF_SIGNAL, PHASES, Fault, PhaseCell, run_to_the_end
from lightning_polystep.checkpoints import newest_intact

_SECONDS = 120.0
# A hit waits up to so long after its phase began, so that it falls anywhere inside the short ones, and beyond.
_LATEST_SECONDS = 3e-3
_SIGTERM_EXIT_CODE = 143

# Faults that the program itself sees, each with the phase in which it strikes.
_OWN_FAULTS = (
    Fault("exception in the loader", "loader"),
    Fault("non-finite batch", "observe"),
    Fault("disk full", "saving"),
    Fault("out of memory", "score"),
)


@dataclass
class Row:
    """Outcomes of one fault in one phase.

    Args:
        hits: How often it struck.
        unusable: After how many of them no checkpoint could be used although one had been saved.
        exits: Exit codes; minus the number of the signal that ended the process.
        runs: Runs that it struck.
        equal: Those of them that ended with the hash of the run that nothing happened to.
    """

    hits: int = 0
    unusable: int = 0
    exits: Counter[int] = field(default_factory=Counter)
    runs: int = 0
    equal: int = 0

    @property
    def lost(self) -> bool:
        """Whether anything was lost."""
        return self.unusable > 0 or self.equal < self.runs


Rows = dict[tuple[str, str], Row]


def main(arguments: Sequence[str] | None = None) -> None:
    """Strike, resume, compare and print.

    Args:
        arguments: Of the command line; those of the process by default.
    """
    parser = make_parser(__doc__)
    parser.add_argument("--kills", type=int, default=200, help="kill -9 at so many random points")
    parser.add_argument("--sigterms", type=int, help="SIGTERM at so many (default: a tenth of the kills, at least 2)")
    parser.add_argument("--network", choices=["dense", "spiking"], default="dense")
    options = parser.parse_args(arguments)
    options.threads = 1  # a process that has started threads cannot be forked
    if options.quick:
        options.kills = min(options.kills, 10)
    options.sigterms = max(2, options.kills // 10) if options.sigterms is None else options.sigterms
    rows = strike_all(options)
    print(table(rows, options))
    results = [
        {"fault": fault, "phase": phase, **vars(row), "exits": dict(row.exits)} for (fault, phase), row in rows.items()
    ]
    lost = any(row.lost for row in rows.values())
    finish("faults", options, {"rows": results, "kills": options.kills, "anything_lost": lost})
    if lost:
        sys.exit(1)


def strike_all(options: argparse.Namespace) -> Rows:
    """Return the rows of the table."""
    draw = random.Random(options.seed)
    rows: Rows = {}
    with tempfile.TemporaryDirectory() as folder:
        expected = _hash_of(_Run(Path(folder) / "whole", options), None)
        for number in (signal.SIGKILL, signal.SIGTERM):
            left = options.kills if number == signal.SIGKILL else options.sigterms
            phases = _phases(draw)
            count = 0
            while left > 0:
                count += 1
                run = _Run(Path(folder) / f"{number.name}-{count}", options)
                left -= _strike_one_run(run, number, left, phases, draw, rows, expected)
        for index, fault in enumerate(_OWN_FAULTS):
            _suffer(_Run(Path(folder) / f"own-{index}", options), fault, rows, expected)
    return dict(sorted(rows.items()))


def table(rows: Rows, options: argparse.Namespace) -> str:
    """Return the table in Markdown."""
    lines = [
        f"Network: {options.network}, 20 steps, a checkpoint after every step, seed {options.seed}.",
        "",
        "| fault | phase | hits | process ends with | usable checkpoint | runs equal to the uninterrupted one |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for (fault, phase), row in rows.items():
        usable = "always" if row.unusable == 0 else f"missing {row.unusable} times"
        exits = ", ".join(_exit_name(code) for code in sorted(row.exits))
        lines.append(f"| {fault} | {phase} | {row.hits} | {exits} | {usable} | {row.equal} of {row.runs} |")
    return "\n".join(lines)


class _Run:
    """A run in its folder: what is left of it after each process."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.network = folder, options.network
        folder.mkdir()

    @property
    def saved(self) -> bool:
        return any(self.folder.glob("*.ckpt"))

    @property
    def hash(self) -> str | None:
        result = self.folder / "hash"
        return result.read_text() if result.is_file() else None

    def start(self, fault: Fault | None, cell: PhaseCell) -> tuple[int, int]:
        """Fork a process that trains to the end unless something happens; return its id and its end of a pipe."""
        newest = newest_intact(self.folder)
        reading, writing = os.pipe()
        child = os.fork()
        if child:
            os.close(writing)
            return child, reading
        code = 1
        try:
            os.close(reading)
            code = run_to_the_end(self.folder, self.network, newest, fault, cell, writing)
        finally:
            os._exit(code)


def _strike_one_run(
    run: _Run,
    number: signal.Signals,
    left: int,
    phases: Iterator[str],
    draw: random.Random,
    rows: Rows,
    expected: str,
) -> int:
    """Hit one run again and again until it ends; return how often."""
    name = FAULT_OF_SIGNAL[number]
    struck: set[tuple[str, str]] = set()
    hits = 0
    while run.hash is None:
        cell = PhaseCell()
        fault = Fault(name, next(phases), draw.randint(1, 4)) if hits < left else None
        child, pipe = run.start(fault, cell)
        notified = fault is not None and bool(select.select([pipe], [], [], _SECONDS)[0] and os.read(pipe, 1))
        if notified:
            time.sleep(draw.uniform(0.0, _LATEST_SECONDS))
            os.kill(child, number)
        code = _wait(child)
        os.close(pipe)
        if code == 0 and run.hash is not None:
            break
        if not notified:
            raise RuntimeError(f"A run ended with {code} although nothing happened to it: {_log(run)}")
        hits += 1
        phase = PHASES[cell.died_in]
        row = rows.setdefault((name, phase), Row())
        struck.add((name, phase))
        row.hits += 1
        row.exits[code] += 1
        row.unusable += run.saved and newest_intact(run.folder) is None
        if number == signal.SIGTERM and code != _SIGTERM_EXIT_CODE:
            row.unusable += 1
    for key in struck:
        rows[key].runs += 1
        rows[key].equal += run.hash == expected
    return max(hits, 1)


def _suffer(run: _Run, fault: Fault, rows: Rows, expected: str) -> None:
    """Let a fault of the program's own happen once, resume if that ended the process, and compare."""
    if fault.name == "non-finite batch":
        # The batch belongs to the data, so the run to compare with has it as well, and is stopped nowhere.
        other = _Run(run.folder.with_name(f"{run.folder.name}-whole"), argparse.Namespace(network=run.network))
        expected = _hash_of(other, fault)
    row = rows.setdefault((fault.name, fault.phase), Row(runs=1))
    child, pipe = run.start(fault, PhaseCell())
    code = _wait(child)
    os.close(pipe)
    row.hits += 1
    row.exits[code] += 1
    row.unusable += run.saved and newest_intact(run.folder) is None
    if run.hash is None:
        _hash_of(run, None)
    row.equal += run.hash == expected


def _hash_of(run: _Run, fault: Fault | None) -> str:
    child, pipe = run.start(fault, PhaseCell())
    code = _wait(child)
    os.close(pipe)
    if run.hash is None:
        raise RuntimeError(f"A run ended with {code} although nothing happened to it: {_log(run)}")
    return run.hash


def _wait(child: int) -> int:
    """Return the exit code of a process, minus the signal that ended it; one that hangs is ended."""
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise RuntimeError("A process did not end.")


def _phases(draw: random.Random) -> Iterator[str]:
    """Name every phase in turn, in an order that is drawn anew each time around."""
    while True:
        yield from draw.sample(PHASES[1:], len(PHASES) - 1)


def _exit_name(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _log(run: _Run) -> str:
    log = run.folder / "log"
    return log.read_text(errors="replace")[-2000:] if log.is_file() else json.dumps(None)


if __name__ == "__main__":
    main()
