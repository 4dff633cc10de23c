"""Direct costs on the CPU: four vectors of candidates run at once, then look their loss up.

A thread owns whole costs and goes through the samples in their order, so that the sums have one order.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange
from numpy.typing import NDArray
from torch import Tensor

from lightning_polystep.kernels.lif_direct_costs.losses import change_by_count, change_by_logit
from lightning_polystep.kernels.readout import Readout
from lightning_polystep.kernels.readout.cpu import GROUP, incumbent_scores, pack_neurons, step
from lightning_polystep.kernels.simd import LANES, borrowing, compiled, increment, load, lookup, splat, store

# Candidates of one task.
_TILE = GROUP * LANES


class Candidates(NamedTuple):
    """The arguments of the operator, V padded to whole tiles, and the loss as a function of one logit."""

    shifts: NDArray[Any]  # (N, T, V)
    currents: NDArray[Any]  # (N, T, C)
    beta: NDArray[Any]  # (C,) and padding, as are the next two
    fire_at: NDArray[Any]
    level: NDArray[Any]
    mode: int
    by_membrane: bool
    change: NDArray[np.float64]  # (N, C, T + 1): by spike count
    rest: NDArray[np.float64]  # (N, C), as are the others: see OneLogit
    weight: NDArray[np.float64]
    total: NDArray[np.float64]
    base: NDArray[np.float64]


def lif_direct_costs(shifts: Tensor, *readout_arguments: object) -> Tensor:
    """See :func:`lightning_polystep.kernels.lif_direct_costs`."""
    readout = Readout(*readout_arguments)  # type: ignore[arg-type]
    count, classes = shifts.shape[2], readout.currents.shape[2]
    by_membrane = readout.loss == "cross_entropy_membrane"
    unused = torch.zeros(1, 1, dtype=torch.float64)
    scores = incumbent_scores(readout)
    pieces = change_by_logit(readout, scores) if by_membrane else (unused,) * 4
    candidates = Candidates(
        (F.pad(shifts, (0, -count % _TILE)) if count % _TILE else shifts.contiguous()).numpy(),
        readout.currents.contiguous().numpy(),
        *pack_neurons(readout.beta, readout.threshold, readout.reset_mechanism, readout.reset_delay, readout.spike_on),
        by_membrane,
        (unused[..., None] if by_membrane else change_by_count(readout, scores)).contiguous().numpy(),
        *(piece.contiguous().numpy() for piece in pieces),
    )
    costs = np.zeros((classes, count + -count % _TILE))
    _score(candidates, costs)
    return torch.from_numpy(costs)[:, :count].contiguous()


@compiled(parallel=True)
def _score(candidates: Candidates, costs: NDArray[np.float64]) -> None:
    classes, count = costs.shape
    tiles = count // _TILE
    for task in prange(classes * tiles):
        _score_tile(candidates, costs, task // tiles, task % tiles * _TILE)


@compiled()
def _score_tile(candidates: Candidates, costs: NDArray[np.float64], c: int, start: int) -> None:
    counts = np.zeros(_TILE, np.int32)
    membranes = np.zeros(_TILE, candidates.shifts.dtype)
    for sample in range(len(candidates.shifts)):
        _simulate(candidates, sample, c, start, counts, membranes)
        if candidates.by_membrane:
            _add_entropy(candidates, sample, c, membranes, costs[c, start : start + _TILE])
        else:
            _add_by_count(candidates, sample, c, counts, costs, c * costs.shape[1] + start)


@borrowing
def _simulate(
    candidates: Candidates, sample: int, c: int, start: int, counts: NDArray[np.int32], membranes: NDArray[Any]
) -> None:
    _, steps, width = candidates.shifts.shape
    shifts, mode = candidates.shifts, candidates.mode
    beta, fire_at, level = splat(candidates.beta[c]), splat(candidates.fire_at[c]), splat(candidates.level[c])
    zero = splat(shifts.dtype.type(0))
    u0 = u1 = u2 = u3 = zero
    k0 = k1 = k2 = k3 = splat(np.int32(0))
    for t in range(steps):
        current = splat(candidates.currents[sample, t, c])
        here = (sample * steps + t) * width + start
        u0, spike0 = step(u0, current + load(shifts, here), beta, fire_at, level, zero, mode)
        u1, spike1 = step(u1, current + load(shifts, here + LANES), beta, fire_at, level, zero, mode)
        u2, spike2 = step(u2, current + load(shifts, here + 2 * LANES), beta, fire_at, level, zero, mode)
        u3, spike3 = step(u3, current + load(shifts, here + 3 * LANES), beta, fire_at, level, zero, mode)
        k0, k1 = increment(k0, spike0), increment(k1, spike1)
        k2, k3 = increment(k2, spike2), increment(k3, spike3)
    store(counts, 0, k0)
    store(counts, LANES, k1)
    store(counts, 2 * LANES, k2)
    store(counts, 3 * LANES, k3)
    store(membranes, 0, u0)
    store(membranes, LANES, u1)
    store(membranes, 2 * LANES, u2)
    store(membranes, 3 * LANES, u3)


@borrowing
def _add_by_count(
    candidates: Candidates, sample: int, c: int, counts: NDArray[np.int32], costs: NDArray[np.float64], offset: int
) -> None:
    _, classes, length = candidates.change.shape
    row = (sample * classes + c) * length
    for lane in range(0, _TILE, LANES):
        change = lookup(candidates.change, row, load(counts, lane))
        store(costs, offset + lane, load(costs, offset + lane) + change)


@borrowing
def _add_entropy(
    candidates: Candidates, sample: int, c: int, membranes: NDArray[Any], costs: NDArray[np.float64]
) -> None:
    rest, total = candidates.rest[sample, c], candidates.total[sample, 0]
    for lane in range(_TILE):
        logit = float(membranes[lane])
        partition = max(rest, logit) + math.log1p(math.exp(-abs(rest - logit)))
        costs[lane] += total * partition - candidates.weight[sample, c] * logit - candidates.base[sample, c]
