"""What a check of an export counts: numbers that have to be equal, and how many are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Parity:
    """How what a reader of a file computes compares with the network.

    Args:
        what: What was compared, and who computed it.
        compared: How many numbers.
        unequal: How many of them differ.

    Example:
        >>> str(Parity("spikes of layer 2 in snnTorch", 1500, 0))
        'spikes of layer 2 in snnTorch: all 1,500 equal'
    """

    what: str
    compared: int
    unequal: int

    def __str__(self) -> str:
        """Say it in a line."""
        if self.unequal:
            return f"{self.what}: {self.unequal:,} of {self.compared:,} DIFFER"
        return f"{self.what}: all {self.compared:,} equal"


def compare(what: str, ours: Tensor, theirs: Tensor) -> Parity:
    """Count the numbers that differ, bit for bit but for the sign of zero.

    Args:
        what: What they are.
        ours: Of the network.
        theirs: Of the reader, in the same shape.

    Raises:
        ValueError: If the shapes differ, or there is nothing to compare.

    Example:
        >>> compare("codes", torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])).unequal
        1
    """
    if ours.shape != theirs.shape or not ours.numel():
        raise ValueError(f"{what}: shapes {tuple(ours.shape)} and {tuple(theirs.shape)} cannot be compared.")
    return Parity(what, ours.numel(), int((ours.double() != theirs.double()).sum()))


def compare_closely(what: str, ours: Tensor, theirs: Tensor) -> Parity:
    """Count the numbers that differ by more than the rounding of a sum in float32.

    Args:
        what: As in :func:`compare`.
        ours: As there.
        theirs: As there.
    """
    if ours.shape != theirs.shape or not ours.numel():
        raise ValueError(f"{what}: shapes {tuple(ours.shape)} and {tuple(theirs.shape)} cannot be compared.")
    apart = ~torch.isclose(ours.double(), theirs.double(), rtol=1e-4, atol=1e-5 * float(ours.abs().max().clamp(min=1)))
    return Parity(f"{what} (up to rounding)", ours.numel(), int(apart.sum()))
