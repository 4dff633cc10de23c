"""The readout for numba kernels: what the incumbent did at every time, and candidates that leave it part of the way.

Classes are padded to a multiple of :data:`LANES` with neurons that get no current, never fire and cost nothing.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange
from numpy.typing import NDArray
from torch import Tensor

from lightning_polystep.kernels.readout.reference import Readout, fire_at, target_weights
from lightning_polystep.kernels.simd import (
    LANES,
    borrowing,
    compiled,
    differ,
    element,
    increment,
    load,
    lookup,
    splat,
    store,
    to_float64,
    total,
    where,
)

NO_RESET, ZERO, ZERO_LATE, SUBTRACT, SUBTRACT_LATE = range(5)
COUNT_ENTROPY, MEMBRANE_ENTROPY, RATE_ERROR = range(3)
LOSSES = {"cross_entropy_count": COUNT_ENTROPY, "cross_entropy_membrane": MEMBRANE_ENTROPY, "mse_rate": RATE_ERROR}

# Candidates simulated at once: a step of one takes as long as its chain of four operations, in which time the processor
# can start those of four (measured: 39 ns per outcome alone, see benchmarks/kernels.py).
GROUP = 4
# exp(+-T / 2) has to be a normal float64.
_MOST_STEPS = 1400


class Incumbent(NamedTuple):
    """The readout of the incumbent, of N samples, T steps and W padded classes; "before t" has T + 1 entries."""

    # Flat, not made of parts: numba's parallel loops take no nested tuples.
    beta: NDArray[Any]  # (W,)
    fire_at: NDArray[Any]  # (W,), the least membrane that fires, so that >= serves "gt" as well
    level: NDArray[Any]  # (W,), what a reset by subtraction takes
    mode: int  # of the reset
    currents: NDArray[Any]  # (N, T, W)
    membranes: NDArray[Any]  # (N, T + 1, W), before t
    counts: NDArray[np.int32]  # (N, T + 1, W), before t; T + 1 in the padding
    loss: int
    classes: int
    targets: NDArray[np.float64]  # (N, W)
    target_sums: NDArray[np.float64]  # (N,)
    by_count: NDArray[np.float64]  # (T + 2,): exp(k - T / 2), or k / T; 0 for the padding
    losses: NDArray[np.float64]  # (N,)


def reset_mode(reset_mechanism: str, reset_delay: bool) -> int:
    """Return the number that stands for a reset in compiled code."""
    at_once = {"none": NO_RESET, "zero": ZERO, "subtract": SUBTRACT}[reset_mechanism]
    return at_once + 1 if reset_delay and at_once else at_once


def pack_neurons(
    beta: Tensor, threshold: Tensor, reset_mechanism: str, reset_delay: bool, spike_on: str
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], int]:
    """Return ``beta``, ``fire_at``, ``level`` and ``mode`` of a layer, padded to whole vectors."""
    padding = padding_of(len(beta))
    return (
        F.pad(beta.clamp(0, 1), (0, padding)).numpy(),
        F.pad(fire_at(threshold, spike_on), (0, padding), value=math.inf).numpy(),
        F.pad(threshold, (0, padding)).numpy(),
        reset_mode(reset_mechanism, reset_delay),
    )


def padding_of(size: int) -> int:
    """Return how many lanes fill up the last vector."""
    return -size % LANES


def run_incumbent(readout: Readout) -> Incumbent:
    """Simulate the incumbent and keep its state at every time."""
    samples, steps, classes = readout.currents.shape
    if steps > _MOST_STEPS and readout.loss == "cross_entropy_count":
        raise ValueError(f"cross_entropy_count on the CPU takes at most {_MOST_STEPS} steps, got {steps}.")
    padding = padding_of(classes)
    targets = F.pad(target_weights(readout), (0, padding))
    counts = np.zeros((samples, steps + 1, classes + padding), np.int32)
    counts[..., classes:] = steps + 1
    count = np.arange(steps + 2, dtype=np.float64)
    by_count = count / steps if readout.loss == "mse_rate" else np.exp(count - steps / 2)
    by_count[-1] = 0
    currents = F.pad(readout.currents, (0, padding)).contiguous().numpy()
    incumbent = Incumbent(
        *pack_neurons(readout.beta, readout.threshold, readout.reset_mechanism, readout.reset_delay, readout.spike_on),
        currents,
        np.zeros((samples, steps + 1, classes + padding), currents.dtype),
        counts,
        LOSSES[readout.loss],
        classes,
        targets.numpy(),
        targets.sum(-1).numpy(),
        by_count,
        np.zeros(samples),
    )
    _fill(incumbent)
    return incumbent


def incumbent_scores(readout: Readout) -> Tensor:
    """Return what the loss sees of the incumbent, (N, C), float64: spike counts, or last membranes."""
    incumbent = run_incumbent(readout)
    kept = incumbent.membranes if incumbent.loss == MEMBRANE_ENTROPY else incumbent.counts
    return torch.from_numpy(kept[:, -1, : incumbent.classes]).double()


@borrowing
def step(membrane: Any, current: Any, beta: Any, fire_at: Any, level: Any, zero: Any, mode: int) -> tuple[Any, Any]:
    """Advance one vector of neurons: the equations of ``functional.lif``, in the same order of operations.

    A reset still owed by the step before need not be stored: it is owed where the membrane is at the threshold.
    """
    owed = zero
    if mode == ZERO_LATE:
        membrane = where(membrane >= fire_at, zero, membrane)
    elif mode >= SUBTRACT:
        owed = where(membrane >= fire_at, level, zero)
    value = beta * membrane + current
    if mode >= SUBTRACT:
        value = value - owed
    spike = value >= fire_at
    if mode == ZERO:
        value = where(spike, zero, value)
    elif mode == SUBTRACT:
        value = value - (where(spike, level, zero) - owed)
    return value, spike


@compiled(parallel=True)
def _fill(incumbent: Incumbent) -> None:
    samples, steps, width = incumbent.currents.shape
    for sample in prange(samples):
        _fill_sample(incumbent, sample, steps, width)


@borrowing
def _fill_sample(incumbent: Incumbent, sample: int, steps: int, width: int) -> None:
    membranes, counts = incumbent.membranes, incumbent.counts
    zero = splat(membranes[0, 0, 0])  # before the first step every membrane is 0
    for block in range(0, width, LANES):
        beta, fire_at, level = load(incumbent.beta, block), load(incumbent.fire_at, block), load(incumbent.level, block)
        membrane, count = zero, load(counts, sample * (steps + 1) * width + block)
        for t in range(steps):
            current = load(incumbent.currents, (sample * steps + t) * width + block)
            membrane, spike = step(membrane, current, beta, fire_at, level, zero, incumbent.mode)
            count = increment(count, spike)
            after = (sample * (steps + 1) + t + 1) * width + block
            store(membranes, after, membrane)
            store(counts, after, count)
    last = sample * (steps + 1) + steps
    incumbent.losses[sample] = _loss(incumbent, sample, counts, membranes, last * width)


@borrowing
def resimulate(
    incumbent: Incumbent,
    sample: int,
    changes: NDArray[Any],
    first: int,
    weights: NDArray[Any],
    unit: int,
    counts: NDArray[np.int32],
    membranes: NDArray[Any],
) -> None:
    """Run a group of candidates from the first time at which one of them differs from the incumbent.

    Args:
        incumbent: Where they start from.
        sample: n.
        changes: How the spikes of the hidden unit differ, -1, 0 or 1, (GROUP, T); read from ``first`` on.
        first: The time.
        weights: What a spike of each hidden unit adds to the currents, (U, W).
        unit: u.
        counts: Gets the spike counts, (GROUP, W).
        membranes: Gets the last membranes, (GROUP, W).
    """
    mode = incumbent.mode
    _, steps, width = incumbent.currents.shape
    zero = splat(incumbent.membranes[0, 0, 0])
    for block in range(0, width, LANES):
        beta, fire_at, level = load(incumbent.beta, block), load(incumbent.fire_at, block), load(incumbent.level, block)
        weight = load(weights, unit * width + block)
        start = (sample * (steps + 1) + first) * width + block
        u0 = u1 = u2 = u3 = load(incumbent.membranes, start)
        k0 = k1 = k2 = k3 = load(incumbent.counts, start)
        for t in range(first, steps):
            current = load(incumbent.currents, (sample * steps + t) * width + block)
            u0, spike0 = step(u0, current + splat(changes[0, t]) * weight, beta, fire_at, level, zero, mode)
            u1, spike1 = step(u1, current + splat(changes[1, t]) * weight, beta, fire_at, level, zero, mode)
            u2, spike2 = step(u2, current + splat(changes[2, t]) * weight, beta, fire_at, level, zero, mode)
            u3, spike3 = step(u3, current + splat(changes[3, t]) * weight, beta, fire_at, level, zero, mode)
            k0, k1 = increment(k0, spike0), increment(k1, spike1)
            k2, k3 = increment(k2, spike2), increment(k3, spike3)
        _store_group(counts, block, width, k0, k1, k2, k3)
        _store_group(membranes, block, width, u0, u1, u2, u3)


@borrowing
def resimulate_currents(
    incumbent: Incumbent,
    sample: int,
    currents: NDArray[Any],
    first: int,
    counts: NDArray[np.int32],
    membranes: NDArray[Any],
) -> None:
    """Run a group of candidates on currents of their own, as :func:`resimulate` does for one hidden unit that changes.

    Args:
        incumbent: Where they start from.
        sample: n.
        currents: Of the candidates, (GROUP, T, W); read from ``first`` on.
        first: The first time at which a current differs from the incumbent's.
        counts: Gets the spike counts, (GROUP, W).
        membranes: Gets the last membranes, (GROUP, W).
    """
    mode = incumbent.mode
    _, steps, width = incumbent.currents.shape
    zero = splat(incumbent.membranes[0, 0, 0])
    for block in range(0, width, LANES):
        beta, fire_at, level = load(incumbent.beta, block), load(incumbent.fire_at, block), load(incumbent.level, block)
        start = (sample * (steps + 1) + first) * width + block
        u0 = u1 = u2 = u3 = load(incumbent.membranes, start)
        k0 = k1 = k2 = k3 = load(incumbent.counts, start)
        for t in range(first, steps):
            here = t * width + block
            u0, spike0 = step(u0, load(currents, here), beta, fire_at, level, zero, mode)
            u1, spike1 = step(u1, load(currents, here + steps * width), beta, fire_at, level, zero, mode)
            u2, spike2 = step(u2, load(currents, here + 2 * steps * width), beta, fire_at, level, zero, mode)
            u3, spike3 = step(u3, load(currents, here + 3 * steps * width), beta, fire_at, level, zero, mode)
            k0, k1 = increment(k0, spike0), increment(k1, spike1)
            k2, k3 = increment(k2, spike2), increment(k3, spike3)
        _store_group(counts, block, width, k0, k1, k2, k3)
        _store_group(membranes, block, width, u0, u1, u2, u3)


@borrowing
def _store_group(rows: NDArray[Any], block: int, width: int, v0: Any, v1: Any, v2: Any, v3: Any) -> None:
    store(rows, block, v0)
    store(rows, width + block, v1)
    store(rows, 2 * width + block, v2)
    store(rows, 3 * width + block, v3)


@borrowing
def loss_change(
    incumbent: Incumbent, sample: int, counts: NDArray[np.int32], membranes: NDArray[Any], row: int
) -> float:
    """Return by how much a row of ``counts`` and ``membranes``, as :func:`resimulate` left them, changes the loss."""
    _, steps, width = incumbent.currents.shape
    if incumbent.loss != MEMBRANE_ENTROPY:
        last = (sample * (steps + 1) + steps) * width
        moved = False
        for block in range(0, width, LANES):
            moved |= differ(load(counts, row * width + block), load(incumbent.counts, last + block))
        if not moved:
            return 0.0
    return _loss(incumbent, sample, counts, membranes, row * width) - incumbent.losses[sample]


@borrowing
def _loss(incumbent: Incumbent, sample: int, counts: NDArray[np.int32], membranes: NDArray[Any], offset: int) -> float:
    _, steps, width = incumbent.currents.shape
    if incumbent.loss == MEMBRANE_ENTROPY:
        return _membrane_entropy(incumbent, sample, membranes, offset)
    first, second = 0.0, 0.0
    for block in range(0, width, LANES):
        count = load(counts, offset + block)
        by_count, target = lookup(incumbent.by_count, 0, count), load(incumbent.targets, sample * width + block)
        if incumbent.loss == RATE_ERROR:
            error = by_count - target
            first += total(error * error)
        else:
            first += total(by_count)
            second += total(target * to_float64(count))
    if incumbent.loss == RATE_ERROR:
        return first / incumbent.classes
    return incumbent.target_sums[sample] * (math.log(first) + steps / 2) - second


@borrowing
def _membrane_entropy(incumbent: Incumbent, sample: int, membranes: NDArray[Any], offset: int) -> float:
    highest = -np.inf
    for c in range(incumbent.classes):
        highest = max(highest, float(element(membranes, offset + c)))
    partition, gain = 0.0, 0.0
    for c in range(incumbent.classes):
        logit = float(element(membranes, offset + c)) - highest
        partition += math.exp(logit)
        gain += incumbent.targets[sample, c] * logit
    return incumbent.target_sums[sample] * math.log(partition) - gain
