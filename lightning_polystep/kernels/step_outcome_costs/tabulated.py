"""Units of many levels: tabulate the outcomes that candidates reach, and no others, then look each candidate up.

Sweeping a jump over all candidates is cheap where outcomes are few. A unit of 256 levels passes more boundaries than
there are candidates, and most of the outcomes between them are nobody's.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from lightning_polystep.kernels.feedforward.cpu import Network, Wave, loss_change, make_wave
from lightning_polystep.kernels.feedforward.together import (
    TOGETHER,
    Waves,
    can_go_together,
    loss_changes,
    make_waves,
)
from lightning_polystep.kernels.feedforward.uniform import code_of
from lightning_polystep.kernels.simd import LANES, borrowing, compiled, load, splat, store
from lightning_polystep.kernels.sweep.cpu import outcome_of

# Rows of costs that share what a sample loads into the first-level cache.
_UNITS_AT_ONCE = 8


class Candidates(NamedTuple):
    """The arguments of the operator that concern the candidates' layer, with S = 1 or U, and V a multiple of LANES."""

    preactivation: NDArray[Any]  # (N, U)
    shifts: NDArray[Any]  # (S, N, V)
    lowest: NDArray[Any]  # (S, N), of the shifts
    highest: NDArray[Any]  # (S, N)
    boundaries: NDArray[Any]  # (D, P)
    levels: NDArray[Any]  # (D, P + 1)
    quantiser: NDArray[Any]  # (4,): see uniform_quantiser


class Table(NamedTuple):
    """What is known of the candidates of one unit on one sample; entry 0 is that of the incumbent's outcome."""

    codes: NDArray[Any]  # (V,): of each candidate's pre-activation, if the unit is a uniform quantiser
    entries: NDArray[np.int64]  # (V,): of each candidate
    entry: NDArray[np.int64]  # (P + 1,): of each outcome, or -1; all -1 between two uses
    reached: NDArray[np.int64]  # (V + 1,): the outcome of each entry
    changes: NDArray[Any]  # (V + 1 + TOGETHER,): of the unit's value
    losses: NDArray[np.float64]  # (V + 1 + TOGETHER,): change of the loss


@compiled(parallel=True)
def score(candidates: Candidates, network: Network, costs: NDArray[np.float64]) -> None:
    """Add the costs of all candidates; a thread owns whole rows and goes through the samples in their order.

    Args:
        candidates: The candidates.
        network: The layers behind them.
        costs: (U, V).
    """
    units = len(costs)
    for part in prange((units + _UNITS_AT_ONCE - 1) // _UNITS_AT_ONCE):
        start = part * _UNITS_AT_ONCE
        _score_units(candidates, network, costs, start, min(start + _UNITS_AT_ONCE, units))


@compiled()
def _score_units(candidates: Candidates, network: Network, costs: NDArray[np.float64], start: int, stop: int) -> None:
    most, dtype = candidates.shifts.shape[2], candidates.shifts.dtype
    table = Table(
        np.empty(most, dtype),
        np.empty(most, np.int64),
        np.full(candidates.levels.shape[1], -1),
        np.empty(most + 1, np.int64),
        np.zeros(most + 1 + TOGETHER, dtype),
        np.zeros(most + 1 + TOGETHER),
    )
    wave, waves, together = make_wave(network), make_waves(network), can_go_together(network)
    for sample in range(len(candidates.preactivation)):
        for unit in range(start, stop):
            count = _find_entries(candidates, sample, unit, table, costs.shape[1])
            if count > 1:
                _fill(network, sample, unit, count, table, together, wave, waves)
                for v in range(costs.shape[1]):
                    costs[unit, v] += table.losses[table.entries[v]]


@borrowing
def _find_entries(candidates: Candidates, sample: int, unit: int, table: Table, count: int) -> int:
    """Give each candidate an entry of the table, and return how many entries there are."""
    dictionary, own = min(unit, len(candidates.boundaries) - 1), min(unit, len(candidates.shifts) - 1)
    boundaries, levels = candidates.boundaries[dictionary], candidates.levels[dictionary]
    x, shifts = candidates.preactivation[sample, unit], candidates.shifts[own, sample]
    here = outcome_of(boundaries, x)
    low = outcome_of(boundaries, x + candidates.lowest[own, sample])
    if low == here and outcome_of(boundaries, x + candidates.highest[own, sample]) == here:
        return 1
    uniform = candidates.quantiser[0] != 0
    lowest = candidates.quantiser[1]
    if uniform:
        _find_codes(candidates, x, (own * len(candidates.preactivation) + sample) * len(table.codes), table)
    entries = 1
    table.entry[here], table.reached[0] = 0, here
    for v in range(count):
        outcome = np.int64(table.codes[v] - lowest) if uniform else outcome_of(boundaries, x + shifts[v])
        if table.entry[outcome] < 0:
            table.entry[outcome], table.reached[entries] = entries, outcome
            table.changes[entries] = levels[outcome] - levels[here]
            entries += 1
        table.entries[v] = table.entry[outcome]
    for entry in range(entries):
        table.entry[table.reached[entry]] = -1
    return entries


@borrowing
def _find_codes(candidates: Candidates, x: Any, offset: int, table: Table) -> None:
    step, lowest, highest, shift = candidates.quantiser
    for v in range(0, len(table.codes), LANES):
        moved = splat(x) + load(candidates.shifts, offset + v)
        store(table.codes, v, code_of(moved, splat(step), splat(lowest), splat(highest), splat(shift)))


@borrowing
def _fill(
    network: Network, sample: int, unit: int, count: int, table: Table, together: bool, wave: Wave, waves: Waves
) -> None:
    """Find the loss change of every entry but the incumbent's, which stays 0."""
    if together:
        loss_changes(network, sample, unit, table.changes, table.losses, 1, count, waves)
        return
    for entry in range(1, count):
        table.losses[entry] = loss_change(network, sample, unit, table.changes[entry], wave)
