"""The clauses of a formula as sweeps want them: what a flip touches lies together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_polystep.kernels.simd import compiled

# Words in front of a clause's literals: number of true literals, exclusive or of their variables, weight, length.
COUNT, TRUE, WEIGHT, LENGTH, HEAD = 0, 1, 2, 3, 4
# Records begin at multiples of four words, in an array at a multiple of a cache line: one of three literals has 32
# bytes and never lies across two lines.
_UNIT, _LINE = 4, 64

Words = NDArray[Any]  # int32 or int64


@dataclass(frozen=True)
class ClauseLayout:
    """Clauses, and where each variable occurs; hard clauses come first.

    Args:
        literals: Twice a variable (from 0), plus 1 where it is negated; shape (L,), int32; in no clause twice.
        starts: First literal of each clause, and L; shape (m + 1,), int64.
        weights: Shape (m,), int64.
        hard: How many of the first clauses are hard.
        records: One per clause, as ``COUNT`` and the others say, then its literals; int32 if all costs fit.
        offsets: Where the record of each clause begins, and how long they are in all; shape (m + 1,), int64.
        first: First occurrence of each variable, and L; shape (n + 1,), int64.
        occurrences: Twice the offset of a record, plus 1 where the variable is negated there; shape (L,).
        order: In which order a sweep visits variables, shape (n,), int32.
        ends: Where groups of the order end whose variables share no clause, shape (groups,), int64.
    """

    literals: NDArray[np.int32]
    starts: NDArray[np.int64]
    weights: NDArray[np.int64]
    hard: int
    records: Words
    offsets: NDArray[np.int64]
    first: NDArray[np.int64]
    occurrences: Words
    order: NDArray[np.int32]
    ends: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        variables: int,
        literals: NDArray[np.int32],
        starts: NDArray[np.int64],
        weights: NDArray[np.int64],
        hard: int,
        *,
        coloured: bool = False,
    ) -> ClauseLayout:
        """Lay clauses out.

        Args:
            variables: Number of variables n.
            literals: As the attribute.
            starts: As the attribute.
            weights: As the attribute.
            hard: As the attribute.
            coloured: Visit variables colour by colour of a greedy colouring, in which two variables of one clause have
                different colours; else one by one by their numbers.
        """
        lengths = np.diff(starts)
        sizes = (HEAD + lengths + _UNIT - 1) // _UNIT * _UNIT
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        touched = np.bincount(literals >> 1, np.repeat(weights, lengths).astype(np.float64), variables)
        most = max(float(touched.max(initial=0)), float(weights.max(initial=0)))
        records = _aligned(int(offsets[-1]), np.int32 if most < 2**30 else np.int64)
        _fill(records, offsets, literals, starts, weights)
        first = np.concatenate([[0], np.cumsum(np.bincount(literals >> 1, minlength=variables))]).astype(np.int64)
        occurrences = np.empty(len(literals), np.int32 if offsets[-1] < 2**30 else np.int64)
        _find(first.copy(), occurrences, offsets, literals, starts)
        order, ends = np.arange(variables, dtype=np.int32), np.arange(1, variables + 1, dtype=np.int64)
        if coloured:
            colours = colour(first, occurrences, records)
            order = np.argsort(colours, kind="stable").astype(np.int32)
            ends = np.cumsum(np.bincount(colours)).astype(np.int64)
        return cls(literals, starts, weights, hard, records, offsets, first, occurrences, order, ends)

    def count(self, values: NDArray[np.bool_]) -> None:
        """Bring the counts of true literals up to date.

        Args:
            values: The assignment, shape (n,), bool.
        """
        _count(values, self.records, self.offsets)


def _aligned(words: int, kind: type[np.integer[Any]]) -> Words:
    dtype = np.dtype(kind)
    raw = np.zeros(words * dtype.itemsize + _LINE, np.uint8)
    shift = -raw.ctypes.data % _LINE
    aligned: Words = raw[shift : shift + words * dtype.itemsize].view(dtype)
    return aligned


@compiled()
def _fill(
    records: Words,
    offsets: NDArray[np.int64],
    literals: NDArray[np.int32],
    starts: NDArray[np.int64],
    weights: NDArray[np.int64],
) -> None:
    for clause in range(len(weights)):
        record = offsets[clause]
        records[record + WEIGHT] = weights[clause]
        records[record + LENGTH] = starts[clause + 1] - starts[clause]
        for place in range(starts[clause], starts[clause + 1]):
            records[record + HEAD + place - starts[clause]] = literals[place]


@compiled()
def _find(
    following: NDArray[np.int64],
    occurrences: Words,
    offsets: NDArray[np.int64],
    literals: NDArray[np.int32],
    starts: NDArray[np.int64],
) -> None:
    for clause in range(len(starts) - 1):
        for place in range(starts[clause], starts[clause + 1]):
            variable = literals[place] >> 1
            occurrences[following[variable]] = 2 * offsets[clause] + (literals[place] & 1)
            following[variable] += 1


@compiled()
def _count(values: NDArray[np.bool_], records: Words, offsets: NDArray[np.int64]) -> None:
    for clause in range(len(offsets) - 1):
        record = offsets[clause]
        count, true = 0, 0
        for place in range(record + HEAD, record + HEAD + records[record + LENGTH]):
            variable = records[place] >> 1
            if values[variable] != (records[place] & 1 == 1):
                count += 1
                true ^= variable
        records[record + COUNT] = count
        records[record + TRUE] = true


@compiled()
def colour(
    first: NDArray[np.int64],
    occurrences: Words,
    records: Words,
) -> NDArray[np.int64]:
    """Colour variables so that those of one clause differ: each gets the first colour that its neighbours leave free.

    Returns:
        Shape (n,), int64, from 0.
    """
    variables = len(first) - 1
    colours = np.full(variables, -1, np.int64)
    taken_by = np.full(variables + 1, -1, np.int64)
    for variable in range(variables):
        for index in range(first[variable], first[variable + 1]):
            record = occurrences[index] >> 1
            for place in range(record + HEAD, record + HEAD + records[record + LENGTH]):
                other = colours[records[place] >> 1]
                if other >= 0:
                    taken_by[other] = variable
        free = 0
        while taken_by[free] == variable:
            free += 1
        colours[variable] = free
    return colours
