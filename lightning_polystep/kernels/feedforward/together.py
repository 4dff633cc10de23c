"""Four changes of one unit carried through the layers behind at once, where most units notice each of them.

A unit that is finely quantised, or a ReLU, passes on nearly every change. So nothing is skipped unless all four changes
leave a unit as it was, and four changes share what is loaded and wait for one another's additions.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_polystep.kernels.feedforward.cpu import Network, loss_of
from lightning_polystep.kernels.feedforward.uniform import code_of
from lightning_polystep.kernels.simd import (
    LANES,
    bits,
    borrowing,
    compiled,
    element,
    load,
    lowest_bit,
    put,
    splat,
    store,
    where,
)

TOGETHER = 4


class Waves(NamedTuple):
    """What a thread needs to carry changes through the network; of one layer while the next is evaluated, in turns."""

    units: NDArray[np.int64]  # (2, units of the largest layer): those that changed, ascending
    changes: NDArray[Any]  # (2, TOGETHER, units of the largest layer): of every unit
    scores: NDArray[Any]  # (TOGETHER, W)


@compiled()
def make_waves(network: Network) -> Waves:
    """Allocate what a thread needs."""
    dtype, most = network.scores.dtype, network.widths.max()
    return Waves(
        np.empty((2, most), np.int64),
        np.empty((2, TOGETHER, most), dtype),
        np.empty((TOGETHER, network.scores.shape[1]), dtype),
    )


@borrowing
def can_go_together(network: Network) -> bool:
    """Tell whether all layers behind are ReLU or uniform quantisers."""
    for layer in range(len(network.tables)):
        if network.tables[layer, 2] >= 0 and network.quantisers[layer, 0] == 0:
            return False
    return True


@borrowing
def loss_changes(
    network: Network,
    sample: int,
    unit: int,
    changes: NDArray[Any],
    losses: NDArray[np.float64],
    first: int,
    stop: int,
    waves: Waves,
) -> None:
    """Find by how much the loss of a sample changes with the value of one unit, for several changes.

    Args:
        network: The layers behind, all of which :func:`can_go_together`, and the scores.
        sample: n.
        unit: u, of the candidates' layer.
        changes: Of its value, with TOGETHER - 1 places of any content behind the last.
        losses: Is given the answers, at the places of the changes.
        first: Place of the first change.
        stop: Place behind the last.
        waves: Is overwritten.
    """
    for place in range(first, stop, TOGETHER):
        _carry(network, sample, unit, changes, losses, place, waves)


@borrowing
def _carry(
    network: Network,
    sample: int,
    unit: int,
    changes: NDArray[Any],
    losses: NDArray[np.float64],
    first: int,
    waves: Waves,
) -> None:
    waves.units[0, 0] = 0
    for each in range(TOGETHER):
        waves.changes[0, each, 0] = changes[first + each]
    # The only sender of the first layer stands at place 0.
    count, row = 1, network.rows[0] + unit * network.widths[0]
    for layer in range(len(network.tables)):
        count = _advance(network, sample, layer, row, count, waves)
        row = network.rows[layer + 1]
    width, turn = network.scores.shape[1], len(network.tables) % 2
    for block in range(0, width, LANES):
        before = load(network.scores, sample * width + block)
        x0, x1, x2, x3 = _fed(network, before, row + block, width, turn, count, waves)
        store(waves.scores, block, x0)
        store(waves.scores, width + block, x1)
        store(waves.scores, 2 * width + block, x2)
        store(waves.scores, 3 * width + block, x3)
    for each in range(TOGETHER):
        losses[first + each] = loss_of(network, sample, waves.scores, each * width) - network.losses[sample]


@borrowing
def _advance(network: Network, sample: int, layer: int, row: int, count: int, waves: Waves) -> int:
    """Carry the changes to the next layer, and return how many of its units change."""
    first, size = network.starts[layer], network.starts[layer + 1] - network.starts[layer]
    turn, most, found = layer % 2, waves.units.shape[1], 0
    target = (1 - turn) * most
    is_relu, quantiser = network.tables[layer, 2] < 0, network.quantisers[layer]
    step, lowest, highest, shift = splat(quantiser[0]), splat(quantiser[1]), splat(quantiser[2]), splat(quantiser[3])
    nothing = shift - shift
    for block in range(0, size, LANES):
        here = sample * network.values.shape[1] + first + block
        before, value = load(network.preactivations, here), load(network.values, here)
        x0, x1, x2, x3 = _fed(network, before, row + block, size, turn, count, waves)
        if is_relu:
            x0, x1 = where(x0 >= nothing, x0, nothing), where(x1 >= nothing, x1, nothing)
            x2, x3 = where(x2 >= nothing, x2, nothing), where(x3 >= nothing, x3, nothing)
        else:
            x0 = code_of(x0, step, lowest, highest, shift) * step
            x1 = code_of(x1, step, lowest, highest, shift) * step
            x2 = code_of(x2, step, lowest, highest, shift) * step
            x3 = code_of(x3, step, lowest, highest, shift) * step
        x0, x1, x2, x3 = x0 - value, x1 - value, x2 - value, x3 - value
        place = target * TOGETHER + block
        store(waves.changes, place, x0)
        store(waves.changes, place + most, x1)
        store(waves.changes, place + 2 * most, x2)
        store(waves.changes, place + 3 * most, x3)
        changed = bits(x0 != nothing) | bits(x1 != nothing) | bits(x2 != nothing) | bits(x3 != nothing)
        while changed != 0:
            put(waves.units, target + found, block + lowest_bit(changed))
            changed &= changed - 1
            found += 1
    return found


@borrowing
def _fed(
    network: Network, before: Any, row: int, width: int, turn: int, count: int, waves: Waves
) -> tuple[Any, Any, Any, Any]:
    """Add to a vector what the changed units feed it, one after the other, for each of the changes."""
    x0, x1, x2, x3 = before, before, before, before
    most = waves.units.shape[1]
    units, changes = turn * most, turn * most * TOGETHER
    for index in range(units, units + count):
        unit = element(waves.units, index)
        weight, change = load(network.weights, row + unit * width), changes + unit
        x0 = x0 + splat(element(waves.changes, change)) * weight
        x1 = x1 + splat(element(waves.changes, change + most)) * weight
        x2 = x2 + splat(element(waves.changes, change + 2 * most)) * weight
        x3 = x3 + splat(element(waves.changes, change + 3 * most)) * weight
    return x0, x1, x2, x3
