"""What is lost when a run is killed, stopped or hits a fault: ``python -m benchmarks.faults --kills 200``.

Runs of 20 steps that save after every step are hit at random points of random phases, resumed from the newest intact
checkpoint, hit again, and so on to the end; then the hash of all parameters is compared with that of a run that nothing
happened to. Prints a Markdown table, fault x phase x outcome, then one line of JSON; exits with 1 if anything was lost.

A run is one process or several (``--processes 2``), which divide the candidates. They are forked from this one, which
has imported everything and computed nothing. A fault strikes one of them at random and nobody ends the others; the hash
to compare with is always that of one process. On the CPU; needs an operating system with ``fork``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common import finish, make_parser
from benchmarks.faulty import FAULT_OF_SIGNAL, HANG, NOT_FINITE, PHASES, SUM, Fault, PhaseCell, Place, run_to_the_end
from lightning_polystep.checkpoints import newest_intact

_SECONDS = 120.0
# A hit waits up to so long after its phase began, so that it falls anywhere inside the short ones, and beyond.
_LATEST_SECONDS = 3e-3
_SIGTERM_EXIT_CODE = 143

# Faults that the program itself sees, each with the phase in which it strikes.
_OWN_FAULTS = (
    Fault("exception in the loader", "loader"),
    Fault(NOT_FINITE, "observe"),
    Fault("disk full", "saving"),
    Fault("out of memory", "score"),
)
_OWN_FAULTS_OF_SEVERAL = (
    *_OWN_FAULTS,
    Fault("exception in the loader", "loader", rank=1),
    Fault("out of memory", "score", rank=1),
    Fault(HANG, "loader", rank=1),
    Fault(HANG, "score", rank=1),
    Fault(HANG, SUM),
    Fault(HANG, "saving"),
)


@dataclass
class Row:
    """Outcomes of one fault in one phase.

    Args:
        hits: How often it struck.
        unusable: After how many of them no checkpoint could be used although one had been saved.
        exits: Exit codes of the processes that it struck; minus the number of the signal that ended them.
        others: Exit codes of the other processes.
        runs: Runs that it struck.
        equal: Those of them that ended with the hash of the run that nothing happened to.
    """

    hits: int = 0
    unusable: int = 0
    exits: Counter[int] = field(default_factory=Counter)
    others: Counter[int] = field(default_factory=Counter)
    runs: int = 0
    equal: int = 0

    @property
    def lost(self) -> bool:
        """Whether anything was lost."""
        return self.unusable > 0 or self.equal < self.runs

    def count(self, codes: Sequence[int], struck: int, run: _Run) -> None:
        """Add how the processes of a run ended, and what is left of it."""
        self.hits += 1
        self.exits[codes[struck]] += 1
        self.others.update([*codes[:struck], *codes[struck + 1 :]])
        self.unusable += run.saved and newest_intact(run.folder) is None


Rows = dict[tuple[str, str], Row]


def main(arguments: Sequence[str] | None = None) -> None:
    """Strike, resume, compare and print.

    Args:
        arguments: Of the command line; those of the process by default.
    """
    parser = make_parser(__doc__)
    parser.add_argument("--kills", type=int, default=200, help="kill -9 at so many random points")
    parser.add_argument("--sigterms", type=int, help="SIGTERM at so many (default: a tenth of the kills, at least 2)")
    parser.add_argument("--processes", type=int, default=1, help="that train together")
    parser.add_argument("--network", choices=["dense", "spiking"], default="dense")
    options = parser.parse_args(arguments)
    options.threads = 1  # a process that has started threads cannot be forked
    if options.quick:
        options.kills = min(options.kills, 10)
    options.sigterms = max(2, options.kills // 10) if options.sigterms is None else options.sigterms
    rows = strike_all(options)
    print(table(rows, options))
    results = [
        {"fault": fault, "phase": phase, **vars(row), "exits": dict(row.exits), "others": dict(row.others)}
        for (fault, phase), row in rows.items()
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
        expected = _hash_of(_Run(Path(folder) / "whole", options.network), None)
        for number in (signal.SIGKILL, signal.SIGTERM):
            left = options.kills if number == signal.SIGKILL else options.sigterms
            phases = _phases(draw, several=options.processes > 1)
            count = 0
            while left > 0:
                count += 1
                run = _Run(Path(folder) / f"{number.name}-{count}", options.network, options.processes)
                left -= _strike_one_run(run, number, left, phases, draw, rows, expected)
        for index, fault in enumerate(_OWN_FAULTS_OF_SEVERAL if options.processes > 1 else _OWN_FAULTS):
            _suffer(_Run(Path(folder) / f"own-{index}", options.network, options.processes), fault, rows, expected)
    return dict(sorted(rows.items()))


def table(rows: Rows, options: argparse.Namespace) -> str:
    """Return the table in Markdown."""
    several = options.processes > 1
    columns = ["fault", "phase", "hits", "struck process ends with" if several else "process ends with"]
    columns += ["the others end with"] if several else []
    columns += ["usable checkpoint", "runs equal to the uninterrupted one"]
    lines = [
        f"Network: {options.network}, 20 steps, a checkpoint after every step, seed {options.seed}, "
        f"{options.processes} process{'es' if several else ''}.",
        "",
        f"| {' | '.join(columns)} |",
        f"| {' | '.join(['---'] * len(columns))} |",
    ]
    for (fault, phase), row in rows.items():
        cells = [fault, phase, str(row.hits), _exit_names(row.exits)]
        cells += [_exit_names(row.others)] if several else []
        cells += ["always" if row.unusable == 0 else f"missing {row.unusable} times", f"{row.equal} of {row.runs}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@dataclass
class _Process:
    """A process of a run.

    Args:
        pid: Its id.
        pipe: The end of a pipe by which it asks to be struck.
        cell: The phase that it is in.
    """

    pid: int
    pipe: int
    cell: PhaseCell


class _Run:
    """A run in its folder: what is left of it after each start."""

    def __init__(self, folder: Path, network: str, processes: int = 1) -> None:
        self.folder, self.network, self.processes = folder, network, processes
        folder.mkdir()

    @property
    def saved(self) -> bool:
        return any(self.folder.glob("*.ckpt"))

    @property
    def hash(self) -> str | None:
        """Of all parameters in the end; None while a process has not come there."""
        files = [Place(self.folder, self.network, rank).hash for rank in range(self.processes)]
        found = {path.read_text() for path in files if path.is_file()}
        finished = all(path.is_file() for path in files)
        return (found.pop() if len(found) == 1 else "the processes differ") if finished else None

    def start(self, fault: Fault | None) -> list[_Process]:
        """Fork processes that train to the end unless something happens."""
        newest = newest_intact(self.folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        hanging = fault is not None and fault.name == HANG
        places = [
            Place(self.folder, self.network, rank, self.processes, port, hanging) for rank in range(self.processes)
        ]
        return [_fork(place, newest, fault if fault and fault.strikes(place.rank) else None) for place in places]


def _fork(place: Place, checkpoint: Path | None, fault: Fault | None) -> _Process:
    cell = PhaseCell()
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return _Process(child, reading, cell)
    code = 1
    try:
        os.close(reading)
        code = run_to_the_end(place, checkpoint, fault, cell, writing)
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
    rows_struck: set[tuple[str, str]] = set()
    hits = 0
    while run.hash is None:
        rank = draw.randrange(run.processes)
        fault = Fault(name, next(phases), draw.randint(1, 4), rank) if hits < left else None
        started = run.start(fault)
        struck = started[rank]
        notified = fault is not None and bool(select.select([struck.pipe], [], [], _SECONDS)[0])
        notified = notified and bool(os.read(struck.pipe, 1))
        if notified:
            time.sleep(draw.uniform(0.0, _LATEST_SECONDS))
            os.kill(struck.pid, number)
        codes = _wait(started)
        if not any(codes) and run.hash is not None:
            break
        if not notified:
            raise RuntimeError(f"A run ended with {codes} although nothing happened to it: {_log(run)}")
        hits += 1
        key = (name, PHASES[struck.cell.died_in])
        rows_struck.add(key)
        row = rows.setdefault(key, Row())
        row.count(codes, rank, run)
        row.unusable += number == signal.SIGTERM and set(codes) != {_SIGTERM_EXIT_CODE}
    for key in rows_struck:
        rows[key].runs += 1
        rows[key].equal += run.hash == expected
    return max(hits, 1)


def _suffer(run: _Run, fault: Fault, rows: Rows, expected: str) -> None:
    """Let a fault of the program's own happen once, resume if that ended the processes, and compare."""
    if fault.name == NOT_FINITE:
        # The batch belongs to the data, so the run to compare with has it as well, and is stopped nowhere.
        expected = _hash_of(_Run(run.folder.with_name(f"{run.folder.name}-whole"), run.network), fault)
    row = rows.setdefault((fault.name, fault.phase), Row())
    row.count(_wait(run.start(fault)), fault.rank, run)
    if run.hash is None:
        _hash_of(run, None)
    row.runs += 1
    row.equal += run.hash == expected


def _hash_of(run: _Run, fault: Fault | None) -> str:
    codes = _wait(run.start(fault))
    if run.hash is None:
        raise RuntimeError(f"A run ended with {codes} although nothing happened to it: {_log(run)}")
    return run.hash


def _wait(processes: list[_Process]) -> list[int]:
    """Return the exit codes, minus the signals that ended them; who hangs is ended."""
    codes: dict[int, int] = {}
    until = time.monotonic() + _SECONDS
    while len(codes) < len(processes) and time.monotonic() < until:
        for process in processes:
            ended, status = os.waitpid(process.pid, os.WNOHANG) if process.pid not in codes else (0, 0)
            if ended:
                codes[process.pid] = os.waitstatus_to_exitcode(status)
                os.close(process.pipe)
        time.sleep(0.002)
    hanging = [process.pid for process in processes if process.pid not in codes]
    for pid in hanging:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if hanging:
        raise RuntimeError("A process did not end.")
    return [codes[process.pid] for process in processes]


def _phases(draw: random.Random, *, several: bool) -> Iterator[str]:
    """Name every phase in turn, in an order that is drawn anew each time around."""
    named = [phase for phase in PHASES[1:] if several or phase != SUM]
    while True:
        yield from draw.sample(named, len(named))


def _exit_names(codes: Counter[int]) -> str:
    return ", ".join(signal.Signals(-code).name if code < 0 else f"exit code {code}" for code in sorted(codes))


def _log(run: _Run) -> str:
    log = run.folder / "log"
    return log.read_text(errors="replace")[-2000:] if log.is_file() else json.dumps(None)


if __name__ == "__main__":
    main()
