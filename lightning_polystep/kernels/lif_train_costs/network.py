"""The hidden layers for numba kernels: what the incumbent did, and how the change of one spike train travels on.

The neurons of all layers stand side by side, each layer padded to whole words of 64 with neurons that never fire. The
spikes of 64 neurons at one time are the bits of one int64, so that a comparison finds all that changed.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange
from numpy.typing import NDArray

from lightning_polystep.kernels.lif_train_costs.reference import Hidden
from lightning_polystep.kernels.readout.cpu import Incumbent, pack_neurons, padding_of, step
from lightning_polystep.kernels.simd import LANES, bits, borrowing, compiled, load, lowest_bit, splat, store

WORD = 64  # neurons, or times: the bits of an int64


class Network(NamedTuple):
    """The hidden layers of the incumbent: N samples, T steps, L layers with H neurons in all, the candidates' first."""

    beta: NDArray[Any]  # (H,)
    fire_at: NDArray[Any]  # (H,)
    level: NDArray[Any]  # (H,)
    mode: int  # of the reset
    currents: NDArray[Any]  # (N, T, H)
    membranes: NDArray[Any]  # (N, T + 1, H), before t
    fires: NDArray[np.int64]  # (N, T, H / 64)
    starts: NDArray[np.int64]  # (L + 1,): the first neuron of each layer, then H
    weights: NDArray[Any]  # one row per neuron: what its spike adds to the next layer, padded, or to the readout
    rows: NDArray[np.int64]  # (L,): where in ``weights`` the first row of each layer begins
    widths: NDArray[np.int64]  # (L,): how long the rows of each layer are


class Wave(NamedTuple):
    """What a thread needs to carry a change through the network, and four candidates to the end."""

    # Of one layer while the next is run, in turns; (2, T, words of the largest layer).
    changed: NDArray[np.int64]  # which neurons fire where the incumbent does not, or the other way round
    fires: NDArray[np.int64]  # which neurons fire
    readout: NDArray[Any]  # (GROUP, T, W): currents
    counts: NDArray[np.int32]  # (GROUP, W)
    membranes: NDArray[Any]  # (GROUP, W)


def run_network(hidden: Hidden, steps: int) -> Network:
    """Simulate the hidden layers of the incumbent and keep their state at every time."""
    sizes = [len(beta) for beta in hidden.betas]
    paddings = [-size % WORD for size in sizes]
    starts = np.cumsum([0, *(size + padding for size, padding in zip(sizes, paddings, strict=True))])
    beta, threshold, currents = (
        torch.cat([F.pad(part, (0, padding), value=value) for part, padding in zip(parts, paddings, strict=True)], -1)
        for parts, value in (
            (hidden.betas, 0.0),
            (hidden.thresholds, math.inf),
            ([part.expand(-1, steps, -1) for part in hidden.currents], 0.0),
        )
    )
    ends = [*paddings[1:], padding_of(len(hidden.weights[-1]))]
    weights = [F.pad(weight.T, (0, padding)) for weight, padding in zip(hidden.weights, ends, strict=True)]
    samples, _, width = currents.shape
    network = Network(
        *pack_neurons(beta, threshold, hidden.reset_mechanism, hidden.reset_delay, hidden.spike_on),
        currents.contiguous().numpy(),
        np.zeros((samples, steps + 1, width), currents.numpy().dtype),
        np.zeros((samples, steps, width // WORD), np.int64),
        starts,
        torch.cat([weight.flatten() for weight in weights]).numpy(),
        np.cumsum([0, *(weight.numel() for weight in weights[:-1])]),
        np.array([weight.shape[1] for weight in weights]),
    )
    _fill(network)
    return network


@compiled(parallel=True)
def _fill(network: Network) -> None:
    for sample in prange(len(network.currents)):
        _fill_sample(network, sample)


@borrowing
def _fill_sample(network: Network, sample: int) -> None:
    _, steps, width = network.currents.shape
    zero = splat(network.membranes[0, 0, 0])  # before the first step every membrane is 0
    for block in range(0, width, LANES):
        beta, fire_at, level = load(network.beta, block), load(network.fire_at, block), load(network.level, block)
        membrane = zero
        for t in range(steps):
            current = load(network.currents, (sample * steps + t) * width + block)
            membrane, spike = step(membrane, current, beta, fire_at, level, zero, network.mode)
            store(network.membranes, (sample * (steps + 1) + t + 1) * width + block, membrane)
            network.fires[sample, t, block // WORD] |= bits(spike) << (block % WORD)


@borrowing
def propagate(
    network: Network, incumbent: Incumbent, sample: int, unit: int, first: int, earliest: int, wave: Wave, place: int
) -> int:
    """Carry a changed train of one unit to the currents of the readout.

    Args:
        network: The hidden layers.
        incumbent: The readout.
        sample: n.
        unit: u; the lowest bits of word 0 in ``wave`` say when it changed and when it fires.
        first: When it changes first.
        earliest: From when on the currents of the readout are wanted.
        wave: Gets the currents of the readout, and is overwritten on the way.
        place: Which candidate of the group this is.

    Returns:
        When a current of the readout changes first; T if none does, and then none is written.
    """
    steps = network.currents.shape[1]
    row, words = unit * network.widths[0], 1
    for layer in range(1, len(network.widths)):
        for word in range(network.starts[layer] // WORD, network.starts[layer + 1] // WORD):
            _resimulate_word(network, sample, layer, word, row, words, first, wave)
        row, words = network.rows[layer], network.widths[layer - 1] // WORD
        first = _first_change(wave.changed[layer % 2], words, first)
        if first == steps:
            return first
    _feed_readout(network, incumbent, sample, row, words, first, earliest, wave, place)
    return first


@borrowing
def _resimulate_word(
    network: Network, sample: int, layer: int, word: int, row: int, words: int, first: int, wave: Wave
) -> None:
    """Run 64 neurons, four vectors at once, from the first change on, and compare them with the incumbent."""
    _, steps, total = network.currents.shape
    mode, neuron, width = network.mode, WORD * word, network.widths[layer - 1]
    place = word - network.starts[layer] // WORD
    row += WORD * place
    source, target = (layer - 1) % 2, layer % 2
    zero, plus = splat(network.membranes[0, 0, 0]), network.weights.dtype.type(1)
    b0, f0, l0 = _constants(network, neuron)
    b1, f1, l1 = _constants(network, neuron + LANES)
    b2, f2, l2 = _constants(network, neuron + 2 * LANES)
    b3, f3, l3 = _constants(network, neuron + 3 * LANES)
    u0, u1, u2, u3 = _load4(network.membranes, (sample * (steps + 1) + first) * total + neuron)
    for t in range(first, steps):
        i0, i1, i2, i3 = _load4(network.currents, (sample * steps + t) * total + neuron)
        for part in range(words):
            left, fires = wave.changed[source, t, part], wave.fires[source, t, part]
            while left != 0:
                bit = lowest_bit(left)
                left &= left - 1
                sign = splat(plus if (fires >> bit) & 1 else -plus)
                w0, w1, w2, w3 = _load4(network.weights, row + (WORD * part + bit) * width)
                i0, i1, i2, i3 = i0 + sign * w0, i1 + sign * w1, i2 + sign * w2, i3 + sign * w3
        u0, spike0 = step(u0, i0, b0, f0, l0, zero, mode)
        u1, spike1 = step(u1, i1, b1, f1, l1, zero, mode)
        u2, spike2 = step(u2, i2, b2, f2, l2, zero, mode)
        u3, spike3 = step(u3, i3, b3, f3, l3, zero, mode)
        low, high = bits(spike0) | bits(spike1) << LANES, bits(spike2) | bits(spike3) << LANES
        fires = low | high << (2 * LANES)
        wave.fires[target, t, place] = fires
        wave.changed[target, t, place] = fires ^ network.fires[sample, t, word]


@borrowing
def _constants(network: Network, neuron: int) -> tuple[Any, Any, Any]:
    return load(network.beta, neuron), load(network.fire_at, neuron), load(network.level, neuron)


@borrowing
def _load4(array: NDArray[Any], offset: int) -> tuple[Any, Any, Any, Any]:
    return (
        load(array, offset),
        load(array, offset + LANES),
        load(array, offset + 2 * LANES),
        load(array, offset + 3 * LANES),
    )


@borrowing
def _first_change(changed: NDArray[np.int64], words: int, first: int) -> int:
    steps = len(changed)
    for t in range(first, steps):
        for word in range(words):
            if changed[t, word] != 0:
                return t
    return steps


@borrowing
def _feed_readout(
    network: Network,
    incumbent: Incumbent,
    sample: int,
    row: int,
    words: int,
    first: int,
    earliest: int,
    wave: Wave,
    place: int,
) -> None:
    """Write the currents of the readout: the incumbent's, and what changes."""
    _, steps, width = incumbent.currents.shape
    source, plus = (len(network.widths) - 1) % 2, network.weights.dtype.type(1)
    for t in range(earliest, steps):
        for block in range(0, width, LANES):
            current = load(incumbent.currents, (sample * steps + t) * width + block)
            for part in range(words if t >= first else 0):
                left, fires = wave.changed[source, t, part], wave.fires[source, t, part]
                while left != 0:
                    bit = lowest_bit(left)
                    left &= left - 1
                    sign = splat(plus if (fires >> bit) & 1 else -plus)
                    current = current + sign * load(network.weights, row + (WORD * part + bit) * width + block)
            store(wave.readout, (place * steps + t) * width + block, current)
