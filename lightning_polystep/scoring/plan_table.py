"""Score: the plan as its user reads it, in a console of any width."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from lightning_polystep.scoring.assignment import Assignment
    from lightning_polystep.scoring.plan import Plan


# Columns that names of blocks have at the least.
_NARROWEST = 16


def print_plan(plan: Plan) -> None:
    """Print the plan to standard error.

    Args:
        plan: The plan.
    """
    Console(stderr=True).print(plan_table(plan))


def plan_table(plan: Plan) -> Table:
    """Return the plan as a table: block, subspace, rows, directions, candidates per step, tier, and a note's number.

    Blocks that differ in nothing but their names, as those of a transformer's layers, share a row.

    Args:
        plan: The plan.
    """
    table = Table(
        title="PolyStep plan", title_justify="left", caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("block")
    for column in ("subspace", "rows", "rank", "candidates", "scored by", "note"):
        right = column in {"rows", "rank", "candidates"}
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    notes = list(dict.fromkeys(note for a in plan.assignments if (note := a.note)))
    groups: dict[tuple[str, ...], list[Assignment]] = {}
    for assignment in plan.assignments:
        groups.setdefault(_cells(plan, assignment, notes), []).append(assignment)
    for cells, alike in groups.items():
        counts = [plan.last_candidates.get(a.block.name, 0) for a in alike]
        each = f"{counts[0]:,}" if len(alike) == 1 else f"{len(alike)} x {counts[0]:,}"
        table.add_row(_Names(together([a.block.name for a in alike])), *cells[:3], each, *cells[3:5])
    table.caption = "\n".join(_lines(plan, notes))
    return table


def _cells(plan: Plan, assignment: Assignment, notes: list[str]) -> tuple[str, ...]:
    """Return what a row shows of a block beside its name; blocks of which all of it is equal share the row."""
    block, most = assignment.block, assignment.most_rows
    rank = min(assignment.rank, block.dim)
    return (
        block.subspace,
        (f"{most} of {block.rows}" if most else str(block.rows))
        + (f", 1 step in {assignment.period}" if assignment.period > 1 else ""),
        (f"{rank} of {block.dim}" if rank < block.dim else str(rank))
        + (f" x {assignment.rotations}" if assignment.rotations > 1 else ""),
        assignment.tier.name,
        str(notes.index(assignment.note) + 1) if assignment.note else "",
        str(plan.last_candidates.get(block.name, 0)),
    )


def _lines(plan: Plan, notes: list[str]) -> list[str]:
    """Return what stands below the table: what a step does and takes, and every obstacle with its cure."""
    average = " on average" if plan.takes_turns else ""
    lines = [f"{plan.candidates:,} candidates per step{average}{_evaluations(plan)}", *_shares(plan)]
    lines += [line for line in (plan.pace, plan.sampling, plan.deciding) if line]
    lines += [f"{number}. {note}{_errors(plan, note)}" for number, note in enumerate(notes, start=1)]
    for reason in dict.fromkeys(plan.held.values()):
        names = [name for name, why in plan.held.items() if why == reason]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"not probed: {', '.join(names[:3])}{more} ({reason})")
    return [*lines, plan.unrepeatable] if plan.unrepeatable else lines


def _errors(plan: Plan, note: str) -> str:
    """Say by how much costs are off of the blocks that have a note."""
    errors = [100 * a.error for a in plan.assignments if a.note == note and a.error is not None]
    if not errors:
        return ""
    least, most = (f"{error:.2g}" for error in (min(errors), max(errors)))
    return f", costs off by {least if least == most else f'{least} to {most}'} % of their spread"


def _evaluations(plan: Plan) -> str:
    """Say how many of the candidates are runs of the whole step, which is what the loop costs."""
    runs = plan.per_step(a for a in plan.assignments if a.tier.reruns_step)
    return f", {runs:,} of them by a run of the whole training step each" if runs else ""


def _shares(plan: Plan) -> list[str]:
    """Say which part of the network a step probes, and how to probe more, where it is not all of it."""
    probed = [a for a in plan.assignments if a.block.trainable]
    everything = sum(a.block.rows * a.block.dim for a in probed)
    rows = {a.block.name: (a.most_rows or a.block.rows) / a.period for a in probed}
    of_rows = sum(a.block.rows for a in probed)
    directions = sum(rows[a.block.name] * min(a.rank, a.block.dim) for a in probed)
    if not everything or directions >= _ALL * everything:
        return []
    shares = f"{_percent(sum(rows.values()) / of_rows)} of the rows, in {_percent(directions / everything)}"
    return [f"a step probes {shares} of all directions; max_candidates=... or a rank in PolyStep's groups changes that"]


# What is rounded to 100 %.
_ALL = 0.995


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < _ALL else "100 %"


def together(names: list[str]) -> list[str]:
    """Return names, those that differ in one number inside of them as one, as the layers of a transformer do.

    Args:
        names: Of blocks.

    Example:
        >>> together([f"blocks.{n}.{part}" for n in range(4) for part in ("query", "key")])
        ['blocks.0-3.query', 'blocks.0-3.key']
        >>> together(["blocks.0.key", "blocks.2.key", "head"])
        ['blocks.0,2.key', 'head']
    """
    merged = [name.split(".") for name in names]
    for place in range(1, max(map(len, merged), default=1)):
        numbers: dict[tuple[str, ...], list[int]] = {}
        for parts in merged:
            if place < len(parts) and parts[place].isdecimal():
                numbers.setdefault((*parts[:place], "", *parts[place + 1 :]), []).append(int(parts[place]))
        done: list[list[str]] = []
        for parts in merged:
            key = (*parts[:place], "", *parts[place + 1 :])
            found = numbers.get(key) if place < len(parts) and parts[place].isdecimal() else None
            one = parts if found is None else [*parts[:place], _ranges(found), *parts[place + 1 :]]
            if one not in done:
                done.append(one)
        merged = done
    return [".".join(parts) for parts in merged]


class _Names:
    """Names of blocks in a cell: each is broken at its dots, if it has to be."""

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def __rich_measure__(self, _console: Console, options: ConsoleOptions) -> Measurement:
        longest = max(map(len, self._names), default=0)
        return Measurement(min(longest, _NARROWEST, options.max_width), min(longest, options.max_width))

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        for name in self._names:
            line = ""
            for part in name.replace(".", ".\n").split("\n"):
                if line and len(line) + len(part) > options.max_width:
                    yield Text(line)
                    line = "  " if len(part) + 2 <= options.max_width else ""
                line += part
            yield Text(line, overflow="fold")


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def plan_text(plan: Plan, width: int = 120) -> str:
    """Return the table as plain text.

    Args:
        plan: The plan.
        width: Columns of the console.
    """
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(plan_table(plan))
    return console.export_text()
