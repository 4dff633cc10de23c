"""Sweeps on the CPU: one variable after the other, on one thread, because each sees what the last one did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_polystep.kernels.clause_sweep.layout import COUNT, HEAD, LENGTH, TRUE, WEIGHT
from lightning_polystep.kernels.simd import compiled

if TYPE_CHECKING:
    from lightning_polystep.kernels.clause_sweep import ClauseLayout, Draws, SweepState
    from lightning_polystep.kernels.clause_sweep.layout import Words

_STRIDE, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
# Costs whose exponential is looked up; unweighted formulas hardly have others.
_TABLE = 64


def clause_sweep(_values: Tensor, state: SweepState, layout: ClauseLayout, draws: Draws) -> None:
    """See :func:`lightning_polystep.kernels.clause_sweep`."""
    totals = np.array([state.weight, state.violated, state.flips], np.int64)
    _sweep(
        state.values.numpy(),
        state.costs,
        layout.records,
        layout.first,
        layout.occurrences,
        layout.order,
        draws.temperature,
        draws.metropolis,
        draws.share,
        np.uint64(draws.seed),
        draws.sweeps.start,
        len(draws.sweeps),
        layout.offsets[layout.hard],
        totals,
    )
    state.weight, state.violated, state.flips = (int(total) for total in totals)


@compiled()
def _mixed(number: np.uint64) -> np.uint64:
    mixed = number + _STRIDE
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
    return mixed ^ (mixed >> np.uint64(31))


@compiled()
def _sweep(
    values: NDArray[np.bool_],
    costs: Words,
    records: Words,
    first: NDArray[np.int64],
    occurrences: Words,
    order: NDArray[np.int32],
    temperature: float,
    metropolis: bool,
    share: float,
    seed: np.uint64,
    first_sweep: int,
    sweeps: int,
    hard_end: int,
    totals: NDArray[np.int64],
) -> None:
    table = np.empty(2 * _TABLE + 1)
    for cost in range(-_TABLE, _TABLE + 1):
        table[cost + _TABLE] = share * _chance(cost / temperature, metropolis)
    sure = metropolis and share >= 1.0
    for sweep in range(first_sweep, first_sweep + sweeps):
        key = _mixed(seed ^ _mixed(np.uint64(sweep)))
        for variable in order:
            cost = costs[variable]
            if not (sure and cost <= 0):
                bits = _mixed(key + np.uint64(variable) * _STRIDE)
                level = np.float64(bits >> np.uint64(11)) * 2.0**-53
                if -_TABLE <= cost <= _TABLE:
                    chance = table[cost + _TABLE]
                else:
                    chance = share * _chance(cost / temperature, metropolis)
                if level >= chance:
                    continue
            _flip(values, costs, records, first, occurrences, variable, hard_end, totals)


@compiled()
def _chance(relative: float, metropolis: bool) -> float:
    if metropolis:
        return np.exp(-max(relative, 0.0))
    return 1 / (1 + np.exp(min(relative, 700.0)))


@compiled(inline="always")
def _flip(
    values: NDArray[np.bool_],
    costs: Words,
    records: Words,
    first: NDArray[np.int64],
    occurrences: Words,
    variable: int,
    hard_end: int,
    totals: NDArray[np.int64],
) -> None:
    totals[0] += costs[variable]
    totals[2] += 1
    values[variable] = not values[variable]
    value = values[variable]
    for index in range(first[variable], first[variable + 1]):
        record = occurrences[index] >> 1
        count, weight = records[record + COUNT], records[record + WEIGHT]
        true = records[record + TRUE]
        records[record + TRUE] = true ^ variable
        if value != (occurrences[index] & 1 == 1):  # the literal becomes true
            records[record + COUNT] = count + 1
            if count == 0:
                costs[variable] += weight
                _add_to_all(costs, records, record, weight)
                totals[1] -= record < hard_end
            elif count == 1:
                costs[true] -= weight
        else:
            records[record + COUNT] = count - 1
            if count == 1:
                costs[variable] -= weight
                _add_to_all(costs, records, record, -weight)
                totals[1] += record < hard_end
            elif count == 2:
                costs[true ^ variable] += weight


@compiled(inline="always")
def _add_to_all(costs: Words, records: Words, record: int, weight: int) -> None:
    for place in range(record + HEAD, record + HEAD + records[record + LENGTH]):
        costs[records[place] >> 1] += weight
