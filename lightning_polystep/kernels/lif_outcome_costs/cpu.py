"""Outcomes on the CPU: for each (unit, sample) walk away from the incumbent's outcome, and sweep each jump of the loss.

A thread owns whole rows of the costs and goes through the samples in their order, so that the sums have one order.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange
from numpy.typing import NDArray
from torch import Tensor

from lightning_polystep.kernels.readout import Readout
from lightning_polystep.kernels.readout.cpu import (
    GROUP,
    Incumbent,
    loss_change,
    padding_of,
    resimulate,
    run_incumbent,
)
from lightning_polystep.kernels.simd import borrowing, compiled, element
from lightning_polystep.kernels.sweep.cpu import outcome_of, sweep

# Rows of costs that stay in the first-level cache while a sample's readout does.
_UNITS_AT_ONCE = 8
# Samples whose jumps are added up in the dtype of the input before they join the float64 totals: in float32 twice as
# many candidates fit a vector, and so few terms lose nothing that matters.
_SAMPLES_AT_ONCE = 64


class Candidates(NamedTuple):
    """The arguments of the operator that concern the hidden layer, and what follows from them."""

    preactivation: NDArray[Any]  # (N, U)
    shifts: NDArray[Any]  # (N, V)
    lowest: NDArray[Any]  # (N,), of the shifts
    highest: NDArray[Any]  # (N,)
    boundaries: NDArray[Any]  # (D, P)
    trains: NDArray[Any]  # (D, P + 1, T), as floats
    first_change: NDArray[np.int64]  # (D, P): when the trains on the two sides of a boundary part
    weights: NDArray[Any]  # (U, W)


def lif_outcome_costs(
    preactivation: Tensor,
    shifts: Tensor,
    boundaries: Tensor,
    trains: Tensor,
    weight: Tensor,
    *readout_arguments: object,
) -> Tensor:
    """See :func:`lightning_polystep.kernels.lif_outcome_costs`."""
    incumbent = run_incumbent(Readout(*readout_arguments))  # type: ignore[arg-type]
    units, count = preactivation.shape[1], shifts.shape[1]
    if units == 0 or count == 0:
        return torch.zeros(units, count, dtype=torch.float64)
    same = trains[:, 1:] == trains[:, :-1]
    candidates = Candidates(
        preactivation.contiguous().numpy(),
        shifts.contiguous().numpy(),
        shifts.amin(1).numpy(),
        shifts.amax(1).numpy(),
        boundaries.contiguous().numpy(),
        trains.to(shifts.dtype).contiguous().numpy(),
        same.cumprod(-1, dtype=torch.uint8).sum(-1).contiguous().numpy(),
        F.pad(weight.T, (0, padding_of(len(weight)))).contiguous().numpy(),
    )
    costs = np.zeros((units, count))
    _score(candidates, incumbent, costs)
    return torch.from_numpy(costs)


@compiled(parallel=True)
def _score(candidates: Candidates, incumbent: Incumbent, costs: NDArray[np.float64]) -> None:
    units = len(costs)
    for part in prange((units + _UNITS_AT_ONCE - 1) // _UNITS_AT_ONCE):
        start = part * _UNITS_AT_ONCE
        _score_units(candidates, incumbent, costs, start, min(start + _UNITS_AT_ONCE, units))


@compiled()
def _score_units(
    candidates: Candidates, incumbent: Incumbent, costs: NDArray[np.float64], start: int, stop: int
) -> None:
    samples, steps, width = incumbent.currents.shape
    dtype = candidates.shifts.dtype
    sums = np.zeros((stop - start, costs.shape[1]), dtype)
    changes = np.zeros((GROUP, steps), dtype)
    counts = np.empty((GROUP, width), np.int32)
    membranes = np.empty((GROUP, width), dtype)
    for sample in range(samples):
        for unit in range(start, stop):
            _score_pair(candidates, incumbent, sample, unit, sums[unit - start], changes, counts, membranes)
        if (sample + 1) % _SAMPLES_AT_ONCE == 0 or sample + 1 == samples:
            costs[start:stop] += sums
            sums[:] = 0


@borrowing
def _score_pair(
    candidates: Candidates,
    incumbent: Incumbent,
    sample: int,
    unit: int,
    sums: NDArray[Any],
    changes: NDArray[Any],
    counts: NDArray[np.int32],
    membranes: NDArray[Any],
) -> None:
    dictionary = min(unit, len(candidates.boundaries) - 1)
    boundaries = candidates.boundaries[dictionary]
    current = candidates.preactivation[sample, unit]
    here = outcome_of(boundaries, current)
    low = outcome_of(boundaries, current + candidates.lowest[sample])
    high = outcome_of(boundaries, current + candidates.highest[sample])
    for direction in (1, -1):
        near, far = (low, high) if direction == 1 else (high, low)
        first, outcome, loss = changes.shape[1], here, 0.0
        while (far - outcome) * direction > 0:
            size, start = 0, outcome
            while size < GROUP and (far - outcome) * direction > 0:
                crossed = outcome if direction == 1 else outcome - 1
                first = min(first, candidates.first_change[dictionary, crossed])
                outcome += direction
                if (near - outcome) * direction > 0:
                    start = outcome  # no candidate stops here
                else:
                    size += 1
            _differences(candidates.trains[dictionary], start, direction, size, here, first, changes)
            resimulate(incumbent, sample, changes, first, candidates.weights, unit, counts, membranes)
            for row in range(size):
                change = loss_change(incumbent, sample, counts, membranes, row)
                if change != loss:
                    crossed = start + row if direction == 1 else start - row - 1
                    shifts, jump = candidates.shifts[sample], sums.dtype.type(change - loss)
                    sweep(sums, shifts, current, boundaries[crossed], jump, direction)
                    loss = change


@borrowing
def _differences(
    trains: NDArray[Any], start: int, direction: int, size: int, here: int, first: int, changes: NDArray[Any]
) -> None:
    """Write how the trains of ``size`` outcomes from ``start`` on differ from that of the outcome ``here``."""
    steps = changes.shape[1]
    incumbent = here * steps
    # A group that is not full repeats its last outcome: one loop over time of a fixed width is the fastest.
    row0 = (start + direction) * steps
    row1 = (start + direction * min(2, size)) * steps
    row2 = (start + direction * min(3, size)) * steps
    row3 = (start + direction * min(4, size)) * steps
    for t in range(first, steps):
        spike = element(trains, incumbent + t)
        changes[0, t] = element(trains, row0 + t) - spike
        changes[1, t] = element(trains, row1 + t) - spike
        changes[2, t] = element(trains, row2 + t) - spike
        changes[3, t] = element(trains, row3 + t) - spike
