"""Move: run what a step did again, with other parameters, and none of its Python.

Unlike :class:`~lightning_polystep.tape.Dense` it knows no instances and no labels, and norms take their statistics
anew: what comes out is the loss that the step would have had.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_polystep.tape.dependence import operations_between
from lightning_polystep.tape.tape import Tape, substitute


@dataclass
class Rerun:
    """The operations between some values and one that depends on them, on all tapes of a structure.

    Args:
        numbers: Of the operations, in their order.
        wanted: The value at the end.
        releases: After each operation, values that nothing reads any more.
    """

    numbers: list[int]
    wanted: int
    releases: list[list[int]]

    @classmethod
    def of(cls, tape: Tape, given: Collection[int], wanted: int) -> Rerun:
        """Find the operations.

        Args:
            tape: Of the structure.
            given: Values that become others.
            wanted: A value.

        Raises:
            NotOnTapeError: Where one of them is not known, or draws at random.
        """
        numbers, reached = operations_between(tape, set(given), wanted)
        last = dict[int, int]()
        for place, number in enumerate(numbers):
            operation = tape.operations[number]
            read_or_made = [index for index in (*operation.operands, *operation.outputs) if index is not None]
            last.update(dict.fromkeys(read_or_made, place))
        releases: list[list[int]] = [[] for _ in numbers]
        for index, place in last.items():
            if index in reached and index not in given and index != wanted:
                releases[place].append(index)
        return cls(numbers, wanted, releases)

    @torch.no_grad()
    def run(self, tape: Tape, given: Mapping[int, Tensor]) -> Tensor:
        """Return the value at the end.

        Args:
            tape: Of the structure.
            given: What values have become.
        """
        values = dict(given)

        def find(index: int) -> Tensor:
            return values[index] if index in values else tape.values[index].tensor

        for number, released in zip(self.numbers, self.releases, strict=True):
            operation = tape.operations[number]
            made = operation.function(*substitute(operation.args, find), **substitute(operation.kwargs, find))
            outputs = made if isinstance(made, tuple | list) else (made,)
            named = zip(operation.outputs, outputs, strict=False)
            values |= {index: output for index, output in named if index is not None and index not in tape.held}
            for index in released:
                values.pop(index, None)
        return find(self.wanted)
