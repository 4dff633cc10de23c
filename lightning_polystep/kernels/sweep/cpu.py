"""Outcomes of a number for numba kernels: which one holds, and a jump of the loss where the next one begins."""

from typing import Any

from numpy.typing import NDArray

from lightning_polystep.kernels.simd import borrowing


@borrowing
def outcome_of(boundaries: NDArray[Any], current: float) -> int:
    """Count the boundaries at or below a current: a binary search without a branch that depends on the numbers."""
    below, size = 0, len(boundaries)
    while size > 0:
        half = (size + 1) // 2
        below += half if current >= boundaries[below + half - 1] else 0
        size -= half
    return below


@borrowing
def sweep(
    sums: NDArray[Any], shifts: NDArray[Any], current: float, boundary: float, jump: float, direction: int
) -> None:
    """Add a jump to every candidate on the far side of a boundary."""
    nothing = sums.dtype.type(0)
    if direction == 1:
        for v in range(len(sums)):
            sums[v] += jump if current + shifts[v] >= boundary else nothing
    else:
        for v in range(len(sums)):
            sums[v] += nothing if current + shifts[v] >= boundary else jump
