"""Score: the instances of one stage of a replay, and what their values are.

Every changed value has a leading axis of *instances*. What an instance fixes has a single place: in stage ``UNIT`` an
instance is a candidate, which fixes a unit; in stage ``SAMPLE`` a pair (candidate, sample), which fixes a sample; in
stage ``WHOLE`` a candidate again. What no candidate changes is read from the tape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from lightning_polystep.tape.program import Program, Stage
from lightning_polystep.tape.tape import Tape


class Blend(NamedTuple):
    """What candidates are of those that are replayed in their place: of its row, on each sample, so much of each.

    Args:
        weights: Of the G that are replayed of a row, on each sample, for each of its V candidates, (V, G, N).
    """

    weights: Tensor

    @property
    def places(self) -> tuple[int, ...]:
        """None: all places of a sample are taken together."""
        return ()

    def of_candidates(self, rows: Tensor) -> Tensor:
        """Return the row of each candidate.

        Args:
            rows: Of what is replayed, (R * G,).
        """
        return rows[:: self.weights.shape[1]].repeat_interleave(len(self.weights))

    def totals(self, changes: Tensor) -> Tensor:
        """Return the change of each candidate.

        Args:
            changes: Of what is replayed, on each sample, (R * G, N, ...).

        Returns:
            Shape (R * V, ...).
        """
        vertices, nodes, samples = self.weights.shape
        flat = changes.reshape(-1, nodes * samples, math.prod(changes.shape[2:]))
        totals = self.weights.reshape(vertices, -1).to(changes.dtype) @ flat.transpose(0, 1).reshape(
            nodes * samples, -1
        )
        return totals.reshape(vertices, len(flat), -1).transpose(0, 1).reshape(-1, *changes.shape[2:])


class Apart(NamedTuple):
    """Candidates that change one sample only, or one place of one: of each that is replayed there is one for each.

    Args:
        samples: How many there are.
        places: Labels of what is kept apart in each sample, as its tokens; see ``places_kept_apart``.
        of_each: How many places of a sample these are.
    """

    samples: int
    places: tuple[int, ...] = ()
    of_each: int = 1

    def of_candidates(self, rows: Tensor) -> Tensor:
        """Return the row of each candidate.

        Args:
            rows: Of what is replayed, (R,).
        """
        return rows.repeat_interleave(self.samples * self.of_each)

    def totals(self, changes: Tensor) -> Tensor:
        """Return the change of each candidate.

        Args:
            changes: Of what is replayed, on each sample, (R, N, ...), or on each place of it, (R, N, P).

        Returns:
            Shape (R * N, ...), or (R * N * P,).
        """
        return changes.flatten(0, 2 if self.places else 1)


@njit(cache=True, nogil=True)
def add_up(changes: NDArray[Any], members: NDArray[Any], totals: NDArray[Any]) -> None:
    """Add to the total of each candidate the changes of the pairs that stand for its samples; -1 for none."""
    for k in range(len(members)):
        total = 0.0
        for n in range(members.shape[1]):
            pair = members[k, n]
            if pair >= 0:
                total += changes[pair]
        totals[k] += total


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
        shifts: Of products of stage ``UNIT``, by what they make, what a candidate adds to its unit.
        members: Of the first frame of pairs, the pair that stands for each candidate and sample, (K, N); -1 where none.
        everyone: How many candidates there are.
    """

    tape: Tape
    program: Program
    stage: Stage
    candidates: Tensor
    units: Tensor
    samples: Tensor | None = None
    earlier: tuple[Frame, Tensor] | None = None
    values: dict[int, Tensor] = field(default_factory=dict)
    shifts: dict[int, Tensor] = field(default_factory=dict)
    members: Tensor | None = None
    everyone: int = 0

    @property
    def count(self) -> int:
        """How many instances there are."""
        return len(self.candidates)

    @property
    def fixed(self) -> dict[int | None, Tensor]:
        """The labels of which an instance holds one place, each with the place of every instance."""
        if self.stage == Stage.UNIT and self.program.unit is not None:
            return {self.program.unit: self.units}
        if self.samples is not None and self.program.sample is not None:
            return {self.program.sample: self.samples}
        return {}

    def size(self, label: int) -> int:
        """Return how many places an axis has in this frame."""
        return self.program.labels.size((label,))

    def shape(self, index: int) -> list[int]:
        """Return the shape of a value of one instance."""
        return merged_sizes(self.program, index, set(self.fixed), self.size)

    def recorded(self, index: int, *, with_unit: bool = False) -> tuple[Tensor, bool]:
        """Return what a value was in the step.

        Args:
            index: Of the value.
            with_unit: Whether to read it at each instance's unit in any case.

        Returns:
            The tensor, and whether it has an axis of instances: where it holds a label that they fix.
        """
        return self.of_instances(index, self.tape.values[index].tensor, with_unit=with_unit)

    def of_instances(self, index: int, tensor: Tensor, *, with_unit: bool = False) -> tuple[Tensor, bool]:
        """Return what belongs to a value, as large as it was in the step, for the instances; see :meth:`recorded`.

        Args:
            index: Of the value.
            tensor: What belongs to it.
            with_unit: Whether to read it at each instance's unit in any case.
        """
        places: dict[int | None, Tensor] = dict(self.fixed)
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
        places: dict[int | None, Tensor] = {}
        sample = self.program.sample
        if self.samples is not None and sample is not None and self.program.position(index, sample) is not None:
            places[sample] = self.samples
        fixed = {self.program.unit} if self.program.unit is not None else set()
        return pick(self.program, index, frame.values[index], places, fixed, rows, frame.size)

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
        slots = program.slots(index)
        sizes = [1 if s is None or s in fixed else self.size(s) for s in slots]
        where = slots.index(program.unit)
        apart = into.reshape(self.count, *sizes)
        sizes[where] = 1
        given = change.expand(self.count, *merged_sizes(program, index, {*fixed, program.unit}, self.size))
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
        rows = apart.movedim(axis.index(self.program.unit), 0).index_select(0, self.units)
        return rows.reshape(self.count, -1, matrix.shape[-1])

    def by_candidate(self, changes: Tensor) -> Tensor:
        """Add up the changes of each candidate's samples.

        Args:
            changes: Of each instance, (I, ...).

        Returns:
            Shape (K, ...).
        """
        frame, rows = self._first_of_pairs()
        if frame.members is None:
            total = changes.new_zeros(self.everyone, *changes.shape[1:])
            return total.index_add_(0, self.candidates, changes)
        if changes.numel() == len(changes) and changes.device.type == "cpu":
            of_first = (
                changes if rows is None else changes.new_zeros(frame.count).index_copy(0, rows, changes.reshape(-1))
            )
            totals = np.zeros(self.everyone)
            add_up(of_first.reshape(-1).numpy(), frame.members.numpy(), totals)
            return torch.from_numpy(totals).to(changes.dtype).reshape(self.everyone, *changes.shape[1:])
        return self.by_sample(changes).sum(1)

    def by_sample(self, changes: Tensor) -> Tensor:
        """Return the change of each candidate and sample.

        Args:
            changes: Of each instance, (I, ...).

        Returns:
            Shape (K, N, ...).
        """
        frame, rows = self._first_of_pairs()
        if frame.members is None:
            assert self.samples is not None
            assert self.program.sample is not None
            every = changes.new_zeros(self.everyone, self.size(self.program.sample), *changes.shape[1:])
            return every.index_put_((self.candidates, self.samples), changes)
        # The last row stands for pairs that did not change.
        known = changes.new_zeros(frame.count + 1, *changes.shape[1:])
        known[: frame.count] = changes if rows is None else known[: frame.count].index_copy(0, rows, changes)
        return known[frame.members]

    def _first_of_pairs(self) -> tuple[Frame, Tensor | None]:
        """Return the first frame of pairs that this one continues, and which of its instances are left."""
        frame, rows = self, None
        while frame.earlier is not None and frame.earlier[0].stage == Stage.SAMPLE:
            frame, continued = frame.earlier
            rows = continued if rows is None else continued[rows]
        return frame, rows

    def first(self) -> Frame:
        """Return the frame of stage ``UNIT`` that this one continues."""
        return self._first()[0]

    def _first(self) -> tuple[Frame, Tensor]:
        frame, rows = self, torch.arange(self.count, device=self.candidates.device)
        while (earlier := frame.earlier) is not None:
            frame, continued = earlier
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
        places = {}
        if self.samples is not None and frame.samples is None and self.program.position(index, sample) is not None:
            places[sample] = self.samples
        return pick(self.program, index, value, places, set(frame.fixed), rows, frame.size)

    def _spread(self, index: int) -> Tensor:
        """Return a value of stage ``UNIT`` with all of its units."""
        whole, has_instances = self.recorded(index)
        whole = whole if has_instances else whole.expand(self.count, *whole.shape)
        return self.put_at_unit(index, whole, self.at_unit(index), add=False)


def difference(new: Tensor, old: Tensor) -> Tensor:
    """Return by how much values differ; of what is true or false, -1, 0 or 1."""
    return new.long() - old.long() if new.dtype is torch.bool else new - old


def merged_sizes(program: Program, index: int, fixed: Collection[int | None], size: Callable[[int], int]) -> list[int]:
    """Return the shape of a value in which some labels have a single place."""
    return [math.prod(size(label) for label in axis if label not in fixed) for axis in program.axes[index]]


def pick(
    program: Program,
    index: int,
    tensor: Tensor,
    places: Mapping[int | None, Tensor],
    fixed: Collection[int | None] = (),
    rows: Tensor | None = None,
    size: Callable[[int], int] | None = None,
) -> Tensor:
    """Return one place of some labelled axes for each instance.

    Args:
        program: Knows the axes.
        index: The value.
        tensor: Its contents, with an axis of instances in front if ``rows`` says which of them to take.
        places: For each label the place that each instance takes, (I,).
        fixed: Labels that have a single place in the tensor already.
        rows: For each instance the one in the tensor, (I,).
        size: Of the tensor's axes, by label; those of the step by default.

    Returns:
        Shape (I, ...), the labels of ``places`` with a single place.
    """
    if not places:
        assert rows is not None
        return tensor.index_select(0, rows)
    size, offset = size or (lambda label: program.labels.size((label,))), 0 if rows is None else 1
    slots = program.slots(index)
    sizes = [1 if label is None or label in fixed else size(label) for label in slots]
    apart = tensor.reshape([*tensor.shape[:offset], *sizes])
    where = [slots.index(label) for label in places]
    if rows is None and len(where) == 1:
        ids = next(iter(places.values()))
        picked = apart.movedim(where[0], 0).index_select(0, ids) if where[0] else apart.index_select(0, ids)
    else:
        moved = apart.movedim([w + offset for w in where], list(range(offset, offset + len(where))))
        picked = moved[(*(() if rows is None else (rows,)), *places.values())]
    return picked.reshape(len(picked), *merged_sizes(program, index, {*fixed, *places}, size))
