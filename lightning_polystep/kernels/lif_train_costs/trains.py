"""The spike trains of one unit's candidates for numba kernels, and which of them are equal.

A train of T steps is T bits in int64 words, step t the bit t % 64 of word t // 64.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_polystep.kernels.lif_train_costs.network import WORD, Network, Wave
from lightning_polystep.kernels.readout.cpu import step
from lightning_polystep.kernels.simd import LANES, borrowing, element, load, lowest_bit, mark, splat, store

_MULTIPLIER = np.int64(0x9E3779B97F4A7C15 - 2**64)  # 2^64 divided by the golden ratio


class Trains(NamedTuple):
    """What a thread knows of the V candidates of one unit on one sample."""

    words: NDArray[np.int64]  # (ceil(T / 64), V padded + 1), the last column for the incumbent
    ever: NDArray[np.int64]  # (ceil(T / 64),): when any candidate differs from the incumbent
    kind: NDArray[np.int32]  # (V,): 0 for the train of the incumbent, then in the order in which they are found
    example: NDArray[np.int32]  # (V + 1,): a column of each kind
    slots: NDArray[np.int32]  # hash table of kinds, -1 where free; a power of 2 entries, at least 2 V


@borrowing
def simulate(network: Network, shifts: NDArray[Any], sample: int, unit: int, trains: Trains) -> None:
    """Run all candidates of a unit; shifts are (N, T, V) or (N, 1, V), V padded to whole vectors."""
    _, steps, neurons = network.currents.shape
    _, length, width = shifts.shape
    beta, fire_at, level = splat(network.beta[unit]), splat(network.fire_at[unit]), splat(network.level[unit])
    zero, silent = splat(shifts.dtype.type(0)), splat(np.int64(0))
    for block in range(0, width, LANES):
        membrane = zero
        for word in range(len(trains.words)):
            train = silent
            for t in range(WORD * word, min(WORD * (word + 1), steps)):
                shift = load(shifts, (sample * length + min(t, length - 1)) * width + block)
                current = splat(element(network.currents, (sample * steps + t) * neurons + unit)) + shift
                membrane, spike = step(membrane, current, beta, fire_at, level, zero, network.mode)
                train = mark(train, spike, splat(np.int64(1) << (t % WORD)))
            store(trains.words, word * (width + 1) + block, train)
    trains.words[:, width] = 0
    for t in range(steps):
        spike = (network.fires[sample, t, unit // WORD] >> (unit % WORD)) & 1
        trains.words[t // WORD, width] |= spike << (t % WORD)


@borrowing
def classify(trains: Trains) -> int:
    """Number the different trains, that of the incumbent as 0, and return how many there are."""
    trains.slots[:] = -1
    trains.ever[:] = 0
    incumbent = trains.words.shape[1] - 1
    trains.slots[_find(trains, incumbent)], trains.example[0] = 0, incumbent
    kinds = 1
    for v in range(len(trains.kind)):
        slot = _find(trains, v)
        if element(trains.slots, slot) < 0:
            trains.slots[slot], trains.example[kinds] = kinds, v
            kinds += 1
            for word in range(len(trains.words)):
                trains.ever[word] |= trains.words[word, v] ^ trains.words[word, incumbent]
        trains.kind[v] = element(trains.slots, slot)
    return kinds


@borrowing
def _find(trains: Trains, column: int) -> int:
    """Return the slot where a train is, or may be entered."""
    words, size = trains.words, len(trains.slots)
    mixed, width = np.int64(0), words.shape[1]
    for word in range(len(words)):
        mixed = (mixed ^ element(words, word * width + column)) * _MULTIPLIER
    slot = (mixed >> (WORD - lowest_bit(size))) & (size - 1)  # the highest bits of a product depend on all others
    while True:
        kind = element(trains.slots, slot)
        moved = np.int64(0)
        if kind >= 0:
            other = element(trains.example, kind)
            for word in range(len(words)):
                moved |= element(words, word * width + column) ^ element(words, word * width + other)
        if moved == 0:
            return slot
        slot = (slot + 1) & (size - 1)


@borrowing
def first_change(trains: Trains) -> int:
    """Return when any candidate first differs from the incumbent; some candidate does."""
    word = 0
    while trains.ever[word] == 0:
        word += 1
    return WORD * word + lowest_bit(trains.ever[word])


@borrowing
def start_wave(trains: Trains, candidate: int, first: int, wave: Wave) -> int:
    """Write how a train differs from the incumbent's, from ``first`` on, and return when it does first."""
    steps, incumbent = wave.changed.shape[1], trains.words.shape[1] - 1
    change = steps
    for t in range(steps - 1, first - 1, -1):
        train = trains.words[t // WORD, candidate]
        wave.fires[0, t, 0] = (train >> (t % WORD)) & 1
        wave.changed[0, t, 0] = ((train ^ trains.words[t // WORD, incumbent]) >> (t % WORD)) & 1
        change = t if wave.changed[0, t, 0] else change
    return change
