"""Score: when compiled loops take the place of operations: once they pay, and while they do the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_polystep.tape.fuse.cpu import warn_of_loops
from lightning_polystep.tape.fuse.region import Region

# What a statement of a loop takes to be compiled, an element of an operation to be computed, and an operation to be
# called.
_SECONDS_PER_STATEMENT, _SECONDS_PER_ELEMENT, _SECONDS_PER_CALL = 4e-3, 1e-9, 4e-5
# Loops that write so many times as much as operations by themselves, because axes do not meet, are left out.
MOST_WIDER = 4
# Share of numbers that may differ: a spike flips by rounding.
_MOST_DIFFERENT = 1e-3


@dataclass(eq=False)
class Loops:
    """Compiled loops that stand for operations.

    Args:
        name: Of what they compute, for people.
        compiling: Seconds that they take to be compiled, about.
    """

    name: str
    compiling: float
    _compared: bool = field(default=False, init=False, repr=False)
    _differ: bool = field(default=False, init=False, repr=False)

    @classmethod
    def of(cls, name: str, works: Iterable[object]) -> Loops:
        """Return the loops among works.

        Args:
            name: Of what they compute.
            works: Regions and others.
        """
        statements = sum(len(each.statements) for each in works if isinstance(each, Region))
        return cls(name, _SECONDS_PER_STATEMENT * statements)

    def __bool__(self) -> bool:
        """Tell whether there is any, which did what its operations do."""
        return self.compiling > 0 and not self._differ

    def pay(self, runs: int, calls: int, elements: float = 0) -> bool:
        """Tell whether so much time has gone into operations that loops are worth their compilation.

        By numbers that a resumed run finds again, and not by a clock, so that it does what it would have done.

        Args:
            runs: How often the operations have been run, about.
            calls: How many there are.
            elements: What they compute in a run.
        """
        return bool(self) and runs * (calls * _SECONDS_PER_CALL + elements * _SECONDS_PER_ELEMENT) >= self.compiling

    def checked(
        self, found: Mapping[int, Tensor], by_operations: Callable[[], Mapping[int, Tensor]]
    ) -> Mapping[int, Tensor]:
        """Compare what loops made with what operations make, the first time; loops that differ are given up.

        Args:
            found: By the loops.
            by_operations: Returns the same by operations.

        Returns:
            What is right.
        """
        if self._compared:
            return found
        self._compared = True
        expected = by_operations()
        if all(_alike(found[index], each) for index, each in expected.items()):
            return found
        self._differ = True
        off = (float((found[index].double() - each.double()).abs().max()) for index, each in expected.items())
        warn_of_loops(self.name, max(off))
        return expected


def _alike(found: Tensor, expected: Tensor) -> bool:
    close = torch.isclose(found, expected, rtol=1e-4, atol=1e-6, equal_nan=True)
    return float(close.double().mean()) >= 1 - _MOST_DIFFERENT
