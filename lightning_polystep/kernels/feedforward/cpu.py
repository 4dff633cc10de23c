"""The layers behind for numba kernels: how the change of one value travels on, of which most units notice nothing.

Each unit keeps the interval of pre-activations in which it sends what the incumbent's sends, so that two comparisons
per vector find all that change, however many levels there are. The units of all layers stand side by side, each layer
padded to whole words of 64 with units that never change.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange
from numpy.typing import NDArray

from lightning_polystep.kernels.elementary import exp
from lightning_polystep.kernels.feedforward.reference import Behind, Scores, is_relu, target_weights
from lightning_polystep.kernels.feedforward.uniform import uniform_quantiser
from lightning_polystep.kernels.simd import (
    LANES,
    bits,
    borrowing,
    compiled,
    element,
    highest,
    load,
    lowest_bit,
    put,
    splat,
    store,
    to_float64,
    total,
)
from lightning_polystep.kernels.sweep.cpu import outcome_of

WORD = 4 * LANES  # units evaluated at once: the bits of an int64
_ALL = (1 << LANES) - 1  # the bits of a whole vector
# The scores of classes that are padding: so low that they add nothing to a sum of exponentials, but finite.
_NEVER = -1e30


class Network(NamedTuple):
    """The incumbent, of N samples, L layers with H units in all, and W padded classes."""

    # Flat, not made of parts: numba's parallel loops take no nested tuples.
    preactivations: NDArray[Any]  # (N, H)
    values: NDArray[Any]  # (N, H): what the units send
    lower: NDArray[Any]  # (N, H): they send it from here ...
    upper: NDArray[Any]  # (N, H): ... to below here
    starts: NDArray[np.int64]  # (L + 1,): the first unit of each layer, then H
    boundaries: NDArray[Any]  # of all layers, one after the other
    levels: NDArray[Any]
    tables: NDArray[np.int64]  # (L, 4): where each begins in both, P, or -1 for ReLU, and whether units have their own
    quantisers: NDArray[Any]  # (L, 4): see uniform_quantiser
    weights: NDArray[Any]  # one row per unit: what it feeds the next layer, padded
    rows: NDArray[np.int64]  # (L + 1,): where in ``weights`` the first row of each layer begins, the candidates' first
    widths: NDArray[np.int64]  # (L + 1,): how long the rows of each layer are
    scores: NDArray[Any]  # (N, W)
    by_entropy: bool
    classes: int
    targets: NDArray[np.float64]  # (N, W)
    target_sums: NDArray[np.float64]  # (N,)
    losses: NDArray[np.float64]  # (N,)


class Wave(NamedTuple):
    """What a thread needs to carry a change through the network."""

    # Of one layer while the next is evaluated, in turns; (2, units of the largest layer).
    units: NDArray[np.int64]  # those that changed, ascending
    changes: NDArray[Any]  # by how much
    block: NDArray[Any]  # (WORD,): pre-activations
    scores: NDArray[Any]  # (W,)


def pack(behind: Behind, head: Scores) -> Network:
    """Evaluate the incumbent and lay it out."""
    dtype, samples = head.scores.dtype, len(head.scores)
    *sizes, classes = (len(weight) for weight in behind.weights)
    widths = [*(size + -size % WORD for size in sizes), classes + -classes % LANES]
    hidden = [F.pad(h, (0, width - h.shape[1])) for h, width in zip(behind.preactivations, widths, strict=False)]
    values = np.empty((samples, sum(widths[:-1])), head.scores.numpy().dtype)
    weights = [F.pad(weight.T, (0, width - len(weight))) for weight, width in zip(behind.weights, widths, strict=True)]
    padding = widths[-1] - classes
    targets = F.pad(target_weights(head), (0, padding))
    by_entropy = head.loss == "cross_entropy"
    network = Network(
        torch.cat([head.scores.new_empty(samples, 0), *hidden], 1).numpy(),
        values,
        np.empty_like(values),
        np.empty_like(values),
        np.cumsum([0, *widths[:-1]]),
        torch.cat([torch.empty(0, dtype=dtype), *(part.flatten() for part in behind.boundaries)]).numpy(),
        torch.cat([torch.empty(0, dtype=dtype), *(part.flatten() for part in behind.levels)]).numpy(),
        _tables(behind),
        _quantisers(behind, dtype),
        torch.cat([weight.flatten() for weight in weights]).numpy(),
        np.cumsum([0, *(weight.numel() for weight in weights[:-1])]),
        np.array(widths),
        F.pad(head.scores, (0, padding), value=_NEVER if by_entropy else 0.0).contiguous().numpy(),
        by_entropy,
        classes,
        targets.numpy(),
        targets.sum(-1).numpy(),
        np.zeros(samples),
    )
    _fill(network, np.array([*sizes, 0]))
    return network


def _tables(behind: Behind) -> NDArray[np.int64]:
    tables = np.zeros((len(behind.levels), 4), np.int64)
    begin = np.zeros(2, np.int64)
    for layer, (boundaries, levels) in enumerate(zip(behind.boundaries, behind.levels, strict=True)):
        tables[layer] = *begin, -1 if is_relu(levels) else boundaries.shape[1], len(levels) > 1
        begin += boundaries.numel(), levels.numel()
    return tables


def _quantisers(behind: Behind, dtype: torch.dtype) -> NDArray[Any]:
    tables = zip(behind.boundaries, behind.levels, strict=True)
    return torch.cat([torch.empty(0, 4, dtype=dtype), *(uniform_quantiser(*table)[None] for table in tables)]).numpy()


@compiled(parallel=True)
def _fill(network: Network, sizes: NDArray[np.int64]) -> None:
    for sample in prange(len(network.scores)):
        _fill_sample(network, sample, sizes)


@borrowing
def _fill_sample(network: Network, sample: int, sizes: NDArray[np.int64]) -> None:
    infinity = network.scores.dtype.type(np.inf)
    for layer in range(len(network.tables)):
        first, size, own = network.starts[layer], network.tables[layer, 2], network.tables[layer, 3]
        for unit in range(network.starts[layer + 1] - first):
            place, x = first + unit, network.preactivations[sample, first + unit]
            lower, upper, value = -infinity, infinity, x - x
            if unit < sizes[layer]:
                value = _value(network, layer, unit, x)
                if size < 0:
                    lower = x if x > 0 else lower
                    upper = np.nextafter(value, infinity)
                else:
                    start = network.tables[layer, 0] + own * unit * size
                    below = outcome_of(network.boundaries[start : start + size], x)
                    lower = network.boundaries[start + below - 1] if below > 0 else lower
                    upper = network.boundaries[start + below] if below < size else upper
            network.values[sample, place] = value
            network.lower[sample, place] = lower
            network.upper[sample, place] = upper
    network.losses[sample] = loss_of(network, sample, network.scores, sample * network.scores.shape[1])


@compiled()
def make_wave(network: Network) -> Wave:
    """Allocate what a thread needs."""
    dtype, most = network.scores.dtype, network.widths.max()
    return Wave(
        np.empty((2, most), np.int64),
        np.empty((2, most), dtype),
        np.empty(WORD, dtype),
        np.empty(network.scores.shape[1], dtype),
    )


@borrowing
def loss_change(network: Network, sample: int, unit: int, change: Any, wave: Wave) -> float:
    """Return by how much the loss of a sample changes with the value of one unit.

    Args:
        network: The layers behind, and the scores.
        sample: n.
        unit: u, of the candidates' layer.
        change: Of its value, not 0.
        wave: Is overwritten.
    """
    wave.units[0, 0], wave.changes[0, 0] = unit, change
    count, layers = 1, len(network.tables)
    for layer in range(layers):
        count = _advance(network, sample, layer, count, wave)
        if count == 0:
            return 0.0
    width = network.scores.shape[1]
    source = layers % 2 * wave.units.shape[1]
    for block in range(0, width, LANES):
        score, row = load(network.scores, sample * width + block), network.rows[layers] + block
        for index in range(source, source + count):
            weight = load(network.weights, row + element(wave.units, index) * width)
            score = score + splat(element(wave.changes, index)) * weight
        store(wave.scores, block, score)
    return loss_of(network, sample, wave.scores, 0) - network.losses[sample]


@borrowing
def _advance(network: Network, sample: int, layer: int, count: int, wave: Wave) -> int:
    """Carry the changes to the next layer, and return how many of its units change."""
    first, stop = network.starts[layer], network.starts[layer + 1]
    offset, most = sample * network.values.shape[1] + first, wave.units.shape[1]
    source, target, found = layer % 2 * most, (layer + 1) % 2 * most, 0
    # Four vectors at once, as a sum waits for its last addition, and a loop over bits ends in a misprediction.
    for block in range(0, stop - first, WORD):
        row, here = network.rows[layer] + block, offset + block
        x0, x1, x2, x3 = _load4(network.preactivations, here)
        for index in range(source, source + count):
            change = splat(element(wave.changes, index))
            w0, w1, w2, w3 = _load4(network.weights, row + element(wave.units, index) * network.widths[layer])
            x0, x1, x2, x3 = x0 + change * w0, x1 + change * w1, x2 + change * w2, x3 + change * w3
        left = _outside(network, here, x0) | _outside(network, here + LANES, x1) << LANES
        right = _outside(network, here + 2 * LANES, x2) | _outside(network, here + 3 * LANES, x3) << LANES
        left |= right << (2 * LANES)
        if left != 0:
            _store4(wave.block, x0, x1, x2, x3)
        while left != 0:
            bit = lowest_bit(left)
            left &= left - 1
            value = _value(network, layer, block + bit, element(wave.block, bit))
            change = value - element(network.values, here + bit)
            put(wave.units, target + found, block + bit)
            put(wave.changes, target + found, change)
            found += change != 0  # beyond a boundary may be the same level; then nothing changes after all
    return found


@borrowing
def _outside(network: Network, offset: int, x: Any) -> int:
    """Return as bits which units leave the interval in which they send what the incumbent's send."""
    return (bits(x >= load(network.lower, offset)) & ~bits(x >= load(network.upper, offset))) ^ _ALL


@borrowing
def _load4(array: NDArray[Any], offset: int) -> tuple[Any, Any, Any, Any]:
    return (
        load(array, offset),
        load(array, offset + LANES),
        load(array, offset + 2 * LANES),
        load(array, offset + 3 * LANES),
    )


@borrowing
def _store4(array: NDArray[Any], v0: Any, v1: Any, v2: Any, v3: Any) -> None:
    store(array, 0, v0)
    store(array, LANES, v1)
    store(array, 2 * LANES, v2)
    store(array, 3 * LANES, v3)


@borrowing
def _value(network: Network, layer: int, unit: int, x: Any) -> Any:
    """Return what a unit sends: a binary search without a branch that depends on the numbers."""
    size, own = network.tables[layer, 2], network.tables[layer, 3]
    if size < 0:
        return network.levels.dtype.type(0) if x <= 0 else x
    below = network.tables[layer, 0] + own * unit * size
    level = network.tables[layer, 1] + own * unit * (size + 1) - below
    while size > 0:
        half = (size + 1) // 2
        below += half if x >= element(network.boundaries, below + half - 1) else 0
        size -= half
    return element(network.levels, level + below)


@borrowing
def loss_of(network: Network, sample: int, scores: NDArray[Any], offset: int) -> float:
    """Return the loss of a sample with other scores.

    Args:
        network: Holds the target.
        sample: n.
        scores: Padded, of any shape.
        offset: Where in them these begin.
    """
    width = network.scores.shape[1]
    first, second, top = 0.0, 0.0, -np.inf
    if network.by_entropy:
        for block in range(0, width, LANES):
            top = max(top, float(highest(load(scores, offset + block))))
    for block in range(0, width, LANES):
        score, target = to_float64(load(scores, offset + block)), load(network.targets, sample * width + block)
        if network.by_entropy:
            logit = score - splat(top)
            first += total(exp(logit))
            second += total(target * logit)
        else:
            error = score - target
            first += total(error * error)
    if network.by_entropy:
        return network.target_sums[sample] * math.log(first) - second
    return first / network.classes
