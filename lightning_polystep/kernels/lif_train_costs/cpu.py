"""Candidates on the CPU: for each (unit, sample) find the different trains and carry each through the network once.

A thread owns whole rows of the costs and goes through the samples in their order, so that the sums have one order.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange
from numpy.typing import NDArray
from torch import Tensor

from lightning_polystep.kernels.lif_train_costs.network import WORD, Network, Wave, propagate, run_network
from lightning_polystep.kernels.lif_train_costs.reference import Hidden
from lightning_polystep.kernels.lif_train_costs.trains import Trains, classify, first_change, simulate, start_wave
from lightning_polystep.kernels.readout import Readout
from lightning_polystep.kernels.readout.cpu import (
    GROUP,
    Incumbent,
    loss_change,
    padding_of,
    resimulate_currents,
    run_incumbent,
)
from lightning_polystep.kernels.simd import borrowing, compiled

# Rows of costs that share what a sample loads into the first-level cache.
_UNITS_AT_ONCE = 8


def lif_train_costs(shifts: Tensor, hidden: Hidden, *readout_arguments: object) -> Tensor:
    """See :func:`lightning_polystep.kernels.lif_train_costs`."""
    readout = Readout(*readout_arguments)  # type: ignore[arg-type]
    units, count = len(hidden.betas[0]), shifts.shape[2]
    costs = np.zeros((units, count))
    if units and count:
        padded = F.pad(shifts, (0, padding_of(count))).contiguous().numpy()
        _score(padded, run_network(hidden, readout.currents.shape[1]), run_incumbent(readout), costs)
    return torch.from_numpy(costs)


@compiled(parallel=True)
def _score(shifts: NDArray[Any], network: Network, incumbent: Incumbent, costs: NDArray[np.float64]) -> None:
    units = len(costs)
    for part in prange((units + _UNITS_AT_ONCE - 1) // _UNITS_AT_ONCE):
        start = part * _UNITS_AT_ONCE
        _score_units(shifts, network, incumbent, costs, start, min(start + _UNITS_AT_ONCE, units))


@compiled()
def _score_units(
    shifts: NDArray[Any], network: Network, incumbent: Incumbent, costs: NDArray[np.float64], start: int, stop: int
) -> None:
    samples, steps, width = incumbent.currents.shape
    count, words, slots = costs.shape[1], (steps + WORD - 1) // WORD, 2
    while slots < 2 * count:
        slots *= 2
    trains = Trains(
        np.empty((words, shifts.shape[2] + 1), np.int64),
        np.empty(words, np.int64),
        np.empty(count, np.int32),
        np.empty(count + 1, np.int32),
        np.empty(slots, np.int32),
    )
    most = np.diff(network.starts).max()
    wave = Wave(
        np.empty((2, steps, most // WORD), np.int64),
        np.empty((2, steps, most // WORD), np.int64),
        np.zeros((GROUP, steps, width), shifts.dtype),
        np.empty((GROUP, width), np.int32),
        np.empty((GROUP, width), shifts.dtype),
    )
    changes, members = np.zeros(count + 1), np.empty(GROUP, np.int64)
    for sample in range(samples):
        for unit in range(start, stop):
            simulate(network, shifts, sample, unit, trains)
            kinds = classify(trains)
            if kinds > 1:
                _evaluate(network, incumbent, sample, unit, trains, kinds, wave, members, changes)
                for v in range(count):
                    costs[unit, v] += changes[trains.kind[v]]


@borrowing
def _evaluate(
    network: Network,
    incumbent: Incumbent,
    sample: int,
    unit: int,
    trains: Trains,
    kinds: int,
    wave: Wave,
    members: NDArray[np.int64],
    changes: NDArray[np.float64],
) -> None:
    """Write the change of the loss for each kind of train; in groups, as the readout runs several at once."""
    steps = wave.changed.shape[1]
    earliest = first_change(trains)
    size, first = 0, steps
    for kind in range(1, kinds):
        changes[kind] = 0.0
        change = start_wave(trains, trains.example[kind], earliest, wave)
        change = propagate(network, incumbent, sample, unit, change, earliest, wave, size)
        if change < steps:
            members[size] = kind
            size, first = size + 1, min(first, change)
        if size == GROUP or (kind == kinds - 1 and size > 0):
            resimulate_currents(incumbent, sample, wave.readout, first, wave.counts, wave.membranes)
            for row in range(size):
                changes[members[row]] = loss_change(incumbent, sample, wave.counts, wave.membranes, row)
            size, first = 0, steps
