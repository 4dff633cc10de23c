"""Score: the instances of one stage of a replay, and what their values are.

Every changed value has a leading axis of *instances*. What an instance fixes has a single place: in stage ``UNIT`` an
instance is a candidate, which fixes a unit; in stage ``SAMPLE`` a pair (candidate, sample), which fixes a sample; in
stage ``WHOLE`` a candidate again. What no candidate changes is read from the tape.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_polystep.tape.program import Program, Stage
from lightning_polystep.tape.tape import Tape


@dataclass
class Frame:
    """Instances of one stage and level, with the values that they have computed.

    Args:
        tape: What the step did.
        program: What is replayed of it.
        stage: Of the values.
        candidates: The candidate of each instance, (I,); of stage ``UNIT`` and ``WHOLE`` all of them in turn.
        units: Its unit, (I,).
        samples: Its sample, (I,); None where an instance is a candidate.
        earlier: The frame whose values come in, and which of its instances each of these continues.
        values: By index, (I, ...).
    """

    tape: Tape
    program: Program
    stage: Stage
    candidates: Tensor
    units: Tensor
    samples: Tensor | None = None
    earlier: tuple[Frame, Tensor] | None = None
    values: dict[int, Tensor] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many instances there are."""
        return len(self.candidates)

    @property
    def fixed(self) -> dict[int, Tensor]:
        """The labels of which an instance holds one place, each with the place of every instance."""
        if self.stage == Stage.UNIT and self.program.unit is not None:
            return {self.program.unit: self.units}
        if self.samples is not None and self.program.sample is not None:
            return {self.program.sample: self.samples}
        return {}

    def shape(self, index: int, *, with_unit: bool = False) -> list[int]:
        """Return the shape of a value of one instance.

        Args:
            index: Of the value.
            with_unit: Whether the instance's unit is fixed in any case.
        """
        fixed = set(self.fixed) | ({self.program.unit} if with_unit else set())
        return merged_sizes(self.program, index, fixed)

    def recorded(self, index: int, *, with_unit: bool = False) -> tuple[Tensor, bool]:
        """Return what a value was in the step.

        Args:
            index: Of the value.
            with_unit: Whether to read it at each instance's unit in any case.

        Returns:
            The tensor, and whether it has an axis of instances: where it holds a label that they fix.
        """
        tensor = self.tape.values[index].tensor
        places = dict(self.fixed)
        if with_unit and self.program.unit is not None:
            places[self.program.unit] = self.units
        places = {label: ids for label, ids in places.items() if self.program.position(index, label) is not None}
        if not places:
            return tensor, False
        return pick(self.program, index, tensor, places), True

    def read(self, index: int) -> tuple[Tensor, bool]:
        """Return what a value is for the candidates, and whether it has an axis of instances."""
        if index in self.values:
            return self.values[index], True
        home = self.program.home.get(index)
        if home is None:
            return self.recorded(index)
        value = self.values[index] = self._spread(index) if self.enters(index) else self._continued(index)
        return value, True

    def enters(self, index: int) -> bool:
        """Tell whether a value comes from stage ``UNIT`` into this later one, changed at the candidate's unit only."""
        home = self.program.home.get(index)
        if self.stage == Stage.UNIT or home is None or home[0] != Stage.UNIT:
            return False
        return self.program.position(index, self.program.unit) is not None

    def at_unit(self, index: int) -> Tensor:
        """Return a value of stage ``UNIT`` for each instance, at its unit."""
        frame, rows = self._first()
        places = {}
        sample = self.program.sample
        if self.samples is not None and sample is not None and self.program.position(index, sample) is not None:
            places[sample] = self.samples
        fixed = {self.program.unit} if self.program.unit is not None else set()
        return pick(self.program, index, frame.values[index], places, fixed, rows)

    def change(self, index: int) -> Tensor:
        """Return by how much a value of stage ``UNIT`` differs from the step's, at each instance's unit."""
        return difference(self.at_unit(index), self.recorded(index, with_unit=True)[0])

    def put_at_unit(self, index: int, into: Tensor, change: Tensor, *, add: bool) -> Tensor:
        """Set, or add to, the unit of each instance.

        Args:
            index: The value whose axes the tensors have.
            into: Shape (I, ...), all units.
            change: Shape (I, ...), the unit's axis with a single place; it may broadcast.
            add: Whether to add instead.
        """
        program, fixed = self.program, set(self.fixed)
        slots = [label for axis in program.axes[index] for label in (axis or (None,))]
        sizes = [1 if s is None or s in fixed else program.labels.size((s,)) for s in slots]
        where = slots.index(program.unit)
        apart = into.reshape(self.count, *sizes)
        sizes[where] = 1
        given = change.expand(self.count, *merged_sizes(program, index, {*fixed, program.unit}))
        given = given.reshape(self.count, *sizes)
        places = self.units.reshape(-1, *[1] * len(sizes)).expand(given.shape)
        done = apart.scatter_add(where + 1, places, given) if add else apart.scatter(where + 1, places, given)
        return done.reshape(into.shape)

    def rows_of(self, index: int, matrix: Tensor) -> Tensor:
        """Return the rows of a matrix that belong to the unit of each instance, (I, R, M).

        Args:
            index: A value whose last axis, with the unit among its labels, the rows stand for.
            matrix: Shape (rows, M).
        """
        size = self.program.labels.size
        axis = self.program.axes[index][-1]
        apart = matrix.reshape(*(size((label,)) for label in axis), matrix.shape[-1])
        rows = apart.movedim(axis.index(self.program.unit), 0).index_select(0, self.units)  # type: ignore[arg-type]
        return rows.reshape(self.count, -1, matrix.shape[-1])

    def _first(self) -> tuple[Frame, Tensor]:
        frame, rows = self, torch.arange(self.count, device=self.candidates.device)
        while frame.earlier is not None:
            frame, continued = frame.earlier[0], frame.earlier[1]
            rows = continued[rows]
        return frame, rows

    def _continued(self, index: int) -> Tensor:
        """Return a value of an earlier frame, for the instances that are left of it."""
        frame, rows = self, None
        while index not in frame.values and frame.earlier is not None:
            frame, continued = frame.earlier
            rows = continued if rows is None else continued[rows]
        value = frame.values[index]
        if rows is None:
            return value
        sample = self.program.sample
        missing = (
            self.samples is not None and frame.samples is None and self.program.position(index, sample) is not None
        )
        return pick(self.program, index, value, {sample: self.samples} if missing else {}, set(frame.fixed), rows)

    def _spread(self, index: int) -> Tensor:
        """Return a value of stage ``UNIT`` with all of its units."""
        whole, has_instances = self.recorded(index)
        whole = whole if has_instances else whole.expand(self.count, *whole.shape)
        return self.put_at_unit(index, whole, self.at_unit(index), add=False)


def difference(new: Tensor, old: Tensor) -> Tensor:
    """Return by how much values differ; of what is true or false, -1, 0 or 1."""
    return new.long() - old.long() if new.dtype is torch.bool else new - old


def merged_sizes(program: Program, index: int, fixed: Collection[int | None]) -> list[int]:
    """Return the shape of a value in which some labels have a single place."""
    size = program.labels.size
    return [math.prod(size((label,)) for label in axis if label not in fixed) for axis in program.axes[index]]


def pick(
    program: Program,
    index: int,
    tensor: Tensor,
    places: Mapping[int | None, Tensor],
    fixed: Collection[int | None] = (),
    rows: Tensor | None = None,
) -> Tensor:
    """Return one place of some labelled axes for each instance.

    Args:
        program: Knows the axes.
        index: The value.
        tensor: Its contents, with an axis of instances in front if ``rows`` says which of them to take.
        places: For each label the place that each instance takes, (I,).
        fixed: Labels that have a single place in the tensor already.
        rows: For each instance the one in the tensor, (I,).

    Returns:
        Shape (I, ...), the labels of ``places`` with a single place.
    """
    if not places:
        assert rows is not None
        return tensor.index_select(0, rows)
    size, offset = program.labels.size, 0 if rows is None else 1
    slots = [label for axis in program.axes[index] for label in (axis or (None,))]
    sizes = [1 if label is None or label in fixed else size((label,)) for label in slots]
    apart = tensor.reshape(*tensor.shape[:offset], *sizes)
    where = [slots.index(label) for label in places]
    if rows is None and len(where) == 1:
        ids = next(iter(places.values()))
        picked = apart.movedim(where[0], 0).index_select(0, ids) if where[0] else apart.index_select(0, ids)
    else:
        moved = apart.movedim([w + offset for w in where], list(range(offset, offset + len(where))))
        picked = moved[(*(() if rows is None else (rows,)), *places.values())]
    return picked.reshape(len(picked), *merged_sizes(program, index, {*fixed, *places}))
