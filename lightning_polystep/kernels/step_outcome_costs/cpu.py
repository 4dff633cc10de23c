"""Outcomes on the CPU: for each (unit, sample) walk away from the incumbent's outcome, and sweep each jump of the loss.

A thread owns whole rows of the costs and goes through the samples in their order, so that the sums have one order.
Units of many levels are scored in another way: see ``tabulated.py``.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange
from numpy.typing import NDArray
from torch import Tensor

from lightning_polystep.kernels.feedforward import Behind, Scores
from lightning_polystep.kernels.feedforward.cpu import Network, Wave, loss_change, make_wave, pack
from lightning_polystep.kernels.feedforward.uniform import uniform_quantiser
from lightning_polystep.kernels.simd import LANES, borrowing, compiled
from lightning_polystep.kernels.step_outcome_costs import tabulated
from lightning_polystep.kernels.sweep.cpu import outcome_of, sweep

# Rows of costs that stay in the first-level cache while a sample's layers do.
_UNITS_AT_ONCE = 8
# Samples whose jumps are added up in the dtype of the input before they join the float64 totals: in float32 twice as
# many candidates fit a vector, and so few terms lose nothing that matters.
_SAMPLES_AT_ONCE = 64
# With more levels than this it is cheaper to tabulate those that candidates reach than to pass all between.
_FEW_LEVELS = 16


class Candidates(NamedTuple):
    """The arguments of the operator that concern the candidates' layer, with S = 1 or U."""

    preactivation: NDArray[Any]  # (N, U)
    shifts: NDArray[Any]  # (S, N, V)
    lowest: NDArray[Any]  # (S, N), of the shifts
    highest: NDArray[Any]  # (S, N)
    boundaries: NDArray[Any]  # (D, P)
    levels: NDArray[Any]  # (D, P + 1)


def step_outcome_costs(
    preactivation: Tensor, shifts: Tensor, boundaries: Tensor, levels: Tensor, behind: Behind, *head_arguments: object
) -> Tensor:
    """See :func:`lightning_polystep.kernels.step_outcome_costs`."""
    costs = np.zeros((preactivation.shape[1], shifts.shape[-1]))
    if not costs.size:
        return torch.from_numpy(costs)
    shifts = shifts.reshape(-1, *shifts.shape[-2:])
    lowest, highest = shifts.amin(-1).numpy(), shifts.amax(-1).numpy()
    unit = preactivation.contiguous().numpy()
    table = boundaries.contiguous().numpy(), levels.contiguous().numpy()
    network = pack(behind, Scores(*head_arguments))  # type: ignore[arg-type]
    if levels.shape[1] <= _FEW_LEVELS:
        _score(Candidates(unit, shifts.contiguous().numpy(), lowest, highest, *table), network, costs)
    else:
        whole = F.pad(shifts, (0, -shifts.shape[-1] % LANES)).contiguous().numpy()
        quantiser = uniform_quantiser(boundaries, levels).numpy()
        tabulated.score(tabulated.Candidates(unit, whole, lowest, highest, *table, quantiser), network, costs)
    return torch.from_numpy(costs)


@compiled(parallel=True)
def _score(candidates: Candidates, network: Network, costs: NDArray[np.float64]) -> None:
    units = len(costs)
    for part in prange((units + _UNITS_AT_ONCE - 1) // _UNITS_AT_ONCE):
        start = part * _UNITS_AT_ONCE
        _score_units(candidates, network, costs, start, min(start + _UNITS_AT_ONCE, units))


@compiled()
def _score_units(candidates: Candidates, network: Network, costs: NDArray[np.float64], start: int, stop: int) -> None:
    samples = len(candidates.preactivation)
    sums, wave = np.zeros((stop - start, costs.shape[1]), candidates.shifts.dtype), make_wave(network)
    for sample in range(samples):
        for unit in range(start, stop):
            _score_pair(candidates, network, sample, unit, sums[unit - start], wave)
        if (sample + 1) % _SAMPLES_AT_ONCE == 0 or sample + 1 == samples:
            costs[start:stop] += sums
            sums[:] = 0


@borrowing
def _score_pair(
    candidates: Candidates, network: Network, sample: int, unit: int, sums: NDArray[Any], wave: Wave
) -> None:
    dictionary, own = min(unit, len(candidates.boundaries) - 1), min(unit, len(candidates.shifts) - 1)
    boundaries, levels = candidates.boundaries[dictionary], candidates.levels[dictionary]
    x = candidates.preactivation[sample, unit]
    here = outcome_of(boundaries, x)
    low = outcome_of(boundaries, x + candidates.lowest[own, sample])
    high = outcome_of(boundaries, x + candidates.highest[own, sample])
    for direction in (1, -1):
        near, far = (low, high) if direction == 1 else (high, low)
        outcome, loss = here, 0.0
        while (far - outcome) * direction > 0:
            crossed = outcome if direction == 1 else outcome - 1
            outcome += direction
            if (near - outcome) * direction > 0:
                continue  # no candidate stops here
            change = levels[outcome] - levels[here]
            after = loss_change(network, sample, unit, change, wave) if change != 0 else 0.0
            if after != loss:
                jump = sums.dtype.type(after - loss)
                sweep(sums, candidates.shifts[own, sample], x, boundaries[crossed], jump, direction)
                loss = after
