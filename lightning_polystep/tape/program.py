"""A program: what of a step a candidate has to replay, and in which order; ``compilation.py`` reads it off the tape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import torch

from lightning_polystep.tape.axes import Labels
from lightning_polystep.tape.flow import Axes, Flow
from lightning_polystep.tape.merging import renamed
from lightning_polystep.tape.tape import Operation, Tape

aten = torch.ops.aten

# Where numbers that compete are set against one another: what is added to all of them alike changes nothing.
_COMPETITIONS = {aten._log_softmax, aten._softmax, aten.logsumexp}


class Stage(IntEnum):
    """Of what a candidate's values are computed."""

    UNIT = 0
    SAMPLE = 1
    WHOLE = 2


class NotOnTapeError(Exception):
    """Says why candidates of a block cannot be replayed."""


@dataclass
class Step:
    """One operation of the program.

    Args:
        number: Of the operation on the tape.
        stage: Of what its outputs are computed.
        level: Of stage ``SAMPLE``: how many products lie before it.
        sums_samples: Whether it takes samples together that had been apart until then.
        thinned: Of stage ``SAMPLE``: whether pairs in which nothing changes may have been left out before it.
    """

    number: int
    stage: Stage
    level: int = 0
    sums_samples: bool = False
    thinned: bool = False


@dataclass(eq=False)
class Program:
    """How candidates of some parameters are replayed.

    Args:
        steps: In the order in which they are to run.
        labels: Of all axes.
        axes: Of all values that are read or made, resolved.
        flows: Of the operations, by number.
        unit: The label of the axis that a candidate's row became; None where a candidate changes everything.
        sample: The label of the axis of samples; None where samples are mixed.
        samples: How many there are.
        home: Stage and level in which each changed value is computed.
        same: Values that are equal because equal operations made them, each with the first of them.
        merged: Operations whose work an equal one before them has done, each with that one.
        exits: For each level of stage ``SAMPLE``, the values of earlier stages or levels that it or a later one reads.
        fractions: Numbers in the arguments of its operations, which are data and may differ from tape to tape.
        loss: The value of the loss.
        escapes: Where Python reads numbers that depend on them.
        as_recorded: Whether normalisations keep the statistics of the step, and so act place by place.
    """

    steps: list[Step]
    labels: Labels
    axes: dict[int, Axes]
    flows: dict[int, Flow]
    unit: int | None
    sample: int | None
    samples: int
    home: dict[int, tuple[Stage, int]]
    loss: int
    same: dict[int, int] = field(default_factory=dict)
    merged: list[tuple[int, int]] = field(default_factory=list)
    exits: dict[int, list[int]] = field(default_factory=dict)
    fractions: tuple[str, ...] = ()
    escapes: tuple[str, ...] = ()
    as_recorded: bool = False

    def position(self, value: int, label: int | None) -> int | None:
        """Return the axis of a value that holds a label; None where none does."""
        if label is None:
            return None
        return next((i for i, axis in enumerate(self.axes[value]) if label in axis), None)

    def slots(self, value: int) -> list[int | None]:
        """Return the labels of a value's axes one by one, None for an axis of size one that has none."""
        return [label for axis in self.axes[value] for label in (axis or (None,))]

    def mixes(self, operation: Operation, number: int, label: int) -> bool:
        """Tell whether an operation takes places of an axis with a label together.

        Args:
            operation: The operation.
            number: Its place on the tape.
            label: The label.
        """
        return mixes(self.axes, operation, self.flows[number], label)

    def competes(self, tape: Tape) -> bool:
        """Tell whether units are the scores of a softmax, which no product has taken together before."""
        return self.unit is not None and any(
            getattr(tape.operations[step.number].function, "overloadpacket", None) in _COMPETITIONS
            and self.mixes(self.operation(tape, step.number), step.number, self.unit)
            for step in self.steps
        )

    def operation(self, tape: Tape, number: int) -> Operation:
        """Return an operation that reads, of equal values, always the first."""
        known = tape.bound.setdefault(self, {})
        if number not in known:
            known[number] = renamed(tape.operations[number], self.same)
        return known[number]

    def holds_for(self, tape: Tape) -> bool:
        """Tell whether the numbers in its operations are the same on another tape of the same structure."""
        return self.fractions == tape.fractions()

    @property
    def levels(self) -> int:
        """How many levels stage ``SAMPLE`` has, with the sums behind it."""
        return max((step.level for step in self.steps if step.stage == Stage.SAMPLE or step.sums_samples), default=0)


def mixes(axes: Mapping[int, Axes], operation: Operation, flow: Flow, label: int) -> bool:
    """Tell whether an operation takes places of an axis with a label together.

    Args:
        axes: Of values.
        operation: The operation.
        flow: Of it.
        label: The label.
    """
    pairs = zip(operation.operands, flow.mixed, strict=True)
    return any(label in axes[index][position] for index, mixed in pairs for position in mixed)
