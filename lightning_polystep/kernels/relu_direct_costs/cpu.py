"""Direct costs of ReLU and linear units on the CPU: each change is carried through the layers behind.

A thread owns whole rows of the costs and goes through the samples in their order, so that the sums have one order.
"""

from typing import Any

import numpy as np
import torch
from numba import prange
from numpy.typing import NDArray
from torch import Tensor

from lightning_polystep.kernels.feedforward import Behind, Scores
from lightning_polystep.kernels.feedforward.cpu import Network, loss_change, make_wave, pack
from lightning_polystep.kernels.feedforward.together import TOGETHER, can_go_together, loss_changes, make_waves
from lightning_polystep.kernels.simd import compiled

# Rows of costs that share what a sample loads into the first-level cache.
_UNITS_AT_ONCE = 4


def relu_direct_costs(
    preactivation: Tensor, shifts: Tensor, behind: Behind, floor: float, *head_arguments: object
) -> Tensor:
    """See :func:`lightning_polystep.kernels.relu_direct_costs`."""
    costs = np.zeros((preactivation.shape[1], shifts.shape[-1]))
    if costs.size:
        shifts = shifts.reshape(-1, *shifts.shape[-2:]).contiguous()
        network = pack(behind, Scores(*head_arguments))  # type: ignore[arg-type]
        _score(preactivation.contiguous().numpy(), shifts.numpy(), floor, network, costs)
    return torch.from_numpy(costs)


@compiled(parallel=True)
def _score(
    preactivation: NDArray[Any], shifts: NDArray[Any], floor: float, network: Network, costs: NDArray[np.float64]
) -> None:
    units = len(costs)
    for part in prange((units + _UNITS_AT_ONCE - 1) // _UNITS_AT_ONCE):
        start = part * _UNITS_AT_ONCE
        _score_units(preactivation, shifts, floor, network, costs, start, min(start + _UNITS_AT_ONCE, units))


@compiled()
def _score_units(
    preactivation: NDArray[Any],
    shifts: NDArray[Any],
    floor: float,
    network: Network,
    costs: NDArray[np.float64],
    start: int,
    stop: int,
) -> None:
    count, least = costs.shape[1], shifts.dtype.type(floor)
    candidates, losses = np.empty(count, np.int64), np.empty(count + TOGETHER)
    changes = np.zeros(count + TOGETHER, shifts.dtype)
    wave, waves, together = make_wave(network), make_waves(network), can_go_together(network)
    for sample in range(len(preactivation)):
        for unit in range(start, stop):
            own, x, found = min(unit, len(shifts) - 1), preactivation[sample, unit], 0
            before = max(x, least)
            for v in range(count):
                change = max(x + shifts[own, sample, v], least) - before
                candidates[found], changes[found] = v, change
                found += change != 0
            if together:
                loss_changes(network, sample, unit, changes, losses, 0, found, waves)
            else:
                for place in range(found):
                    losses[place] = loss_change(network, sample, unit, changes[place], wave)
            for place in range(found):
                costs[unit, candidates[place]] += losses[place]
