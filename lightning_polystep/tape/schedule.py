"""Score: a program as it runs, level by level: operations and regions, each with what is no longer read behind it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from lightning_polystep.tape.fuse import Region, partition
from lightning_polystep.tape.program import Program, Stage, Step
from lightning_polystep.tape.tape import Tape


@dataclass
class Segment:
    """What runs at once.

    Args:
        work: An operation, or a region of them.
        stage: Where it runs.
        level: Of stage ``SAMPLE``, and of sums over it.
        sums_samples: Whether it takes samples together.
        releases: Values that nothing behind it reads.
    """

    work: Step | Region
    stage: Stage
    level: int
    sums_samples: bool
    releases: list[int] = field(default_factory=list)

    def reads(self, tape: Tape, program: Program) -> Iterator[int]:
        """Yield the values that it reads."""
        steps = self.work.steps if isinstance(self.work, Region) else [self.work]
        for step in steps:
            yield from program.operation(tape, step.number).operands


def schedule(tape: Tape, program: Program, *, fuse: bool, shifted: Collection[int] = ()) -> list[Segment]:
    """Order a program's steps.

    Args:
        tape: Of the structure that the program was read off.
        program: The program.
        fuse: Whether to make loops of runs of elementwise operations.
        shifted: Products that are given by what candidates add to them.
    """
    segments: list[Segment] = []
    for key, group in groupby(program.steps, key=_level):
        steps = list(group)
        for work in partition(tape, program, steps, shifted) if fuse and key[0] < 2 else steps:
            first = work.steps[0] if isinstance(work, Region) else work
            segments.append(Segment(work, first.stage, key[1], first.sums_samples))
    _release(tape, program, segments)
    return segments


def _level(step: Step) -> tuple[int, int]:
    if step.stage == Stage.UNIT:
        return 0, 0
    return (1, step.level) if step.stage == Stage.SAMPLE or step.sums_samples else (2, 0)


def _release(tape: Tape, program: Program, segments: list[Segment]) -> None:
    last: dict[int, int] = {}
    first_of_level: dict[int, int] = {}
    for place, segment in enumerate(segments):
        first_of_level.setdefault(segment.level, place)
        for index in segment.reads(tape, program):
            if index in program.home:
                last[index] = place
    # Exits are asked again when a level begins.
    for level, exits in program.exits.items():
        for index in exits:
            last[index] = max(last.get(index, 0), first_of_level.get(level, 0))
    for index, place in last.items():
        if index != program.loss:
            segments[place].releases.append(index)
