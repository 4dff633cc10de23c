"""Costs on a grid on the CPU: a few changes are carried through the layers behind, the others are looked up.

A thread owns whole rows of the costs and goes through the samples in their order, so that the sums have one order.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange
from numpy.typing import NDArray
from torch import Tensor

from lightning_polystep.kernels.feedforward import Behind, Scores
from lightning_polystep.kernels.feedforward.cpu import Network, Wave, loss_change, make_wave, pack
from lightning_polystep.kernels.feedforward.together import TOGETHER, Waves, can_go_together, loss_changes, make_waves
from lightning_polystep.kernels.relu_grid_costs.reference import SMALLEST_STEP, Limits
from lightning_polystep.kernels.simd import (
    LANES,
    as_float,
    borrowing,
    compiled,
    load,
    lookup,
    splat,
    store,
    to_float64,
    to_int32,
    where,
)

# Rows of costs that share what a sample loads into the first-level cache.
_UNITS_AT_ONCE = 4


class Candidates(NamedTuple):
    """The arguments of the operator that concern the candidates' layer, with S = 1 or U, and V a multiple of LANES."""

    preactivation: NDArray[Any]  # (N, U)
    shifts: NDArray[Any]  # (S, N, V)
    least: NDArray[Any]  # (S, N), of the shifts, at most 0
    most: NDArray[Any]  # (S, N), at least 0
    gain: NDArray[Any]  # (N, U) or (1, 1), as those that follow
    lower: NDArray[Any]
    upper: NDArray[Any]
    offset: NDArray[Any]  # (N,) or (1,)


class Grid(NamedTuple):
    """What is known of the candidates of one unit on one sample, with room for one node more than asked for."""

    changes: NDArray[Any]  # (nodes + 1 + TOGETHER,): of the unit's value
    losses: NDArray[np.float64]  # (nodes + 1 + TOGETHER,): change of the loss
    values: NDArray[Any]  # (nodes + 1,): the same, rounded
    slopes: NDArray[Any]  # (nodes + 1,): up to the next node; 0 at the last


def relu_grid_costs(
    preactivation: Tensor,
    shifts: Tensor,
    behind: Behind,
    floor: float,
    nodes: int,
    limits: Limits,
    *head_arguments: object,
) -> Tensor:
    """See :func:`lightning_polystep.kernels.relu_grid_costs`."""
    units, count = preactivation.shape[1], shifts.shape[-1]
    padding = -count % LANES
    costs = np.zeros((units, count + padding))
    if units and count and len(preactivation):
        shifts = shifts.reshape(-1, *shifts.shape[-2:])
        shifts = (F.pad(shifts, (0, padding)) if padding else shifts).contiguous()
        least, most = shifts.amin(-1).clamp(max=0), shifts.amax(-1).clamp(min=0)
        arguments = (preactivation, shifts, least, most, *limits)
        candidates = Candidates(*(argument.contiguous().numpy() for argument in arguments))
        _score(candidates, floor, nodes, pack(behind, Scores(*head_arguments)), costs)  # type: ignore[arg-type]
    return torch.from_numpy(costs)[:, :count].contiguous()


@compiled(parallel=True)
def _score(candidates: Candidates, floor: float, nodes: int, network: Network, costs: NDArray[np.float64]) -> None:
    units = len(costs)
    for part in prange((units + _UNITS_AT_ONCE - 1) // _UNITS_AT_ONCE):
        start = part * _UNITS_AT_ONCE
        _score_units(candidates, floor, nodes, network, costs, start, min(start + _UNITS_AT_ONCE, units))


@compiled()
def _score_units(
    candidates: Candidates,
    floor: float,
    nodes: int,
    network: Network,
    costs: NDArray[np.float64],
    start: int,
    stop: int,
) -> None:
    dtype, room = candidates.shifts.dtype, nodes + 1 + TOGETHER
    grid = Grid(np.zeros(room, dtype), np.zeros(room), np.zeros(nodes + 1, dtype), np.zeros(nodes + 1, dtype))
    wave, waves, together = make_wave(network), make_waves(network), can_go_together(network)
    for sample in range(len(candidates.preactivation)):
        for unit in range(start, stop):
            _score_pair(candidates, floor, nodes, network, costs, sample, unit, grid, together, wave, waves)


@borrowing
def _score_pair(
    candidates: Candidates,
    floor: float,
    nodes: int,
    network: Network,
    costs: NDArray[np.float64],
    sample: int,
    unit: int,
    grid: Grid,
    together: bool,
    wave: Wave,
    waves: Waves,
) -> None:
    own, x = min(unit, len(candidates.shifts) - 1), candidates.preactivation[sample, unit]
    gain = _of_pair(candidates.gain, sample, unit)
    lower, upper = _of_pair(candidates.lower, sample, unit), _of_pair(candidates.upper, sample, unit)
    offset = candidates.offset[min(sample, len(candidates.offset) - 1)]
    floor_, nothing = candidates.shifts.dtype.type(floor), x - x
    before = max(x, floor_)
    one = max(x + gain * candidates.least[own, sample], floor_) - before
    other = max(x + gain * candidates.most[own, sample], floor_) - before
    lowest, highest = max(min(one, other, nothing), lower), min(max(one, other, nothing), upper)
    if lowest > highest or (offset == 0 and lowest == 0 and highest == 0):
        return  # no candidate counts, or all that do change nothing
    if not highest - lowest < np.inf:
        costs[unit] = np.nan  # there is no grid over what is not finite, and no candidate to be trusted
        return
    anchor = nothing if lowest <= 0 and highest >= 0 else lowest
    step = (highest - lowest) / candidates.shifts.dtype.type(nodes - 2)
    step = step if step >= SMALLEST_STEP else nothing + candidates.shifts.dtype.type(1)
    below = math.ceil(-((lowest - anchor) / step))
    count = below + math.ceil((highest - anchor) / step) + 1
    for node in range(count):
        grid.changes[node] = anchor + candidates.shifts.dtype.type(node - below) * step
    _fill(network, sample, unit, offset, count, grid, together, wave, waves)
    width = costs.shape[1]
    shifts, row = (own * len(candidates.preactivation) + sample) * width, unit * width
    zero, behind = splat(nothing), splat(candidates.shifts.dtype.type(below))
    for v in range(0, width, LANES):
        value = splat(x) + splat(gain) * load(candidates.shifts, shifts + v)
        change = where(value >= splat(floor_), value, splat(floor_)) - splat(before)
        place = (change - splat(anchor)) / splat(step) + behind
        place = where(change >= splat(lower), where(splat(upper) >= change, place, zero), zero)
        node = to_int32(place)
        loss = lookup(grid.values, 0, node) + (place - as_float(node, place)) * lookup(grid.slopes, 0, node)
        loss = where(change >= splat(lower), where(splat(upper) >= change, loss, zero), zero)
        store(costs, row + v, load(costs, row + v) + to_float64(loss))


@borrowing
def _of_pair(values: NDArray[Any], sample: int, unit: int) -> Any:
    return values[min(sample, len(values) - 1), min(unit, values.shape[1] - 1)]


@borrowing
def _fill(
    network: Network,
    sample: int,
    unit: int,
    offset: Any,
    count: int,
    grid: Grid,
    together: bool,
    wave: Wave,
    waves: Waves,
) -> None:
    """Find the loss change at every node, 0 where nothing changes, and add the offset."""
    if together:
        loss_changes(network, sample, unit, grid.changes, grid.losses, 0, count, waves)
    else:
        for node in range(count):
            if grid.changes[node] != 0:
                grid.losses[node] = loss_change(network, sample, unit, grid.changes[node], wave)
    for node in range(count):
        grid.values[node] = grid.losses[node] + offset if grid.changes[node] != 0 else offset
    for node in range(count - 1):
        grid.slopes[node] = grid.values[node + 1] - grid.values[node]
    grid.slopes[count - 1] = 0
