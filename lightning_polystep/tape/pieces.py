"""Observe: a piece that is read of a value of which another piece was written, as cells of torch write their gates.

On the tape a write into a view is a new value with the piece in it. Whoever reads another piece reads what was there
before, and whoever reads that piece what was put there: so units that are apart stay apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch

from lightning_polystep.tape.tape import Operation, Tape

aten = torch.ops.aten

# Axis, first place, the one behind the last, and step where a write does not name them.
_WHOLE: tuple[Any, ...] = (0, 0, None, 1)


@dataclass
class Pieces:
    """What is known of pieces, as operations are gone through in their order.

    Args:
        tape: Of a step.
    """

    tape: Tape
    _pieces: dict[tuple[int, int, int, int], int] = field(default_factory=dict)
    _writes: dict[int, tuple[int, int, int, int, int]] = field(default_factory=dict)

    def equal(self, operation: Operation) -> dict[int, int]:
        """Take in an operation, and return which of the pieces that it reads are values that are there already.

        Args:
            operation: Which reads of equal values the first.
        """
        packet, made = getattr(operation.function, "overloadpacket", None), operation.outputs[0]
        if packet is aten.slice_scatter and made is not None and len(operation.operands) == 2:
            axis, first, last, step = (*operation.args[2:], *_WHOLE[len(operation.args) - 2 :])
            if step == 1:
                size, (base, source) = self.tape.values[made].tensor.shape[axis], operation.operands
                self._writes[made] = base, source, axis, first or 0, size if last is None else min(size, last)
            return {}
        found, read = dict[int, int](), operation.operands[0] if operation.operands else None
        for index, axis, first, last in _ranges(self.tape, operation):
            assert read is not None
            same = self._origin(read, axis, first, last)
            if same is not None and same != index:
                found[index] = same
            else:
                self._pieces.setdefault((read, axis, first, last), index)
        return found

    def _origin(self, value: int, axis: int, first: int, last: int) -> int | None:
        while value in self._writes:
            base, source, own_axis, start, stop = self._writes[value]
            if own_axis == axis and (first, last) == (start, stop):
                return source
            if own_axis != axis or (first < stop and start < last):
                return None
            value = base
        return self._pieces.get((value, axis, first, last))


def _ranges(tape: Tape, operation: Operation) -> list[tuple[int, int, int, int]]:
    """Return the pieces that an operation reads: the value, the axis, the first place and the one behind the last."""
    packet, args = getattr(operation.function, "overloadpacket", None), operation.args
    if packet not in {aten.split, aten.unsafe_split, aten.split_with_sizes, aten.unsafe_split_with_sizes}:
        return []
    shape = tape.values[operation.operands[0]].tensor.shape
    axis = (args[2] if len(args) > 2 else 0) % len(shape)
    ends: list[Any] = list(accumulate(args[1])) if isinstance(args[1], list | tuple) else [
        min(shape[axis], args[1] * (place + 1)) for place in range(len(operation.outputs))
    ]  # fmt: skip
    starts = [0, *ends[:-1]]
    pieces = zip(operation.outputs, starts, ends, strict=True)
    return [(index, axis, first, last) for index, first, last in pieces if index is not None]
