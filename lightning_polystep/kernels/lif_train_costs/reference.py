"""Costs by brute force: the whole network behind a unit runs for every candidate."""

from typing import NamedTuple, cast

import torch
from torch import Tensor

from lightning_polystep.functional.heaviside import SpikeOn
from lightning_polystep.functional.lif import lif
from lightning_polystep.functional.neurons import ResetMechanism
from lightning_polystep.kernels.readout import Readout, readout_losses


class Hidden(NamedTuple):
    """L hidden layers in their order, the one of the candidates first; each tuple holds one entry per layer.

    Args:
        currents: Of the incumbent, (N, T, H); (N, 1, H) where the first layer's are constant.
        betas: (H,).
        thresholds: (H,).
        weights: Of the linear layer behind, (H', H), with H' neurons in the next layer or the readout.
        reset_mechanism: What a spike does to the membrane.
        reset_delay: Whether it does so one step later.
        spike_on: Whether a membrane exactly at the threshold fires.
    """

    currents: tuple[Tensor, ...]
    betas: tuple[Tensor, ...]
    thresholds: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    reset_mechanism: str
    reset_delay: bool
    spike_on: str


def lif_train_costs(shifts: Tensor, hidden: Hidden, *readout_arguments: object) -> Tensor:
    """See :func:`lightning_polystep.kernels.lif_train_costs`."""
    readout = Readout(*readout_arguments)  # type: ignore[arg-type]
    before = readout_losses(readout, readout.currents)
    steps = readout.currents.shape[1]
    first, *behind = (currents.expand(-1, steps, -1) for currents in hidden.currents)
    incumbents = [_spikes(hidden, layer, currents) for layer, currents in enumerate((first, *behind))]
    rows = []
    for unit in range(first.shape[2]):
        spikes = _spikes(hidden, 0, first[..., unit] + shifts.movedim(2, 0), unit)
        # Of all neurons of the layer, only this one changes.
        changes, weights = (spikes - incumbents[0][..., unit])[..., None], hidden.weights[0][:, unit, None]
        for layer, currents in enumerate(behind, 1):
            spikes = _spikes(hidden, layer, _fed(currents, changes, weights))
            changes, weights = spikes - incumbents[layer], hidden.weights[layer]
        after = readout_losses(readout, _fed(readout.currents, changes, weights))
        rows.append((after - before).sum(-1))
    return torch.stack(rows) if rows else shifts.new_zeros((0, shifts.shape[2]), dtype=torch.float64)


def _spikes(hidden: Hidden, layer: int, currents: Tensor, unit: int | None = None) -> Tensor:
    """Simulate a layer on currents (..., N, T, H), or one of its neurons on (..., N, T)."""
    time = -2 if unit is None else -1
    neurons = slice(None) if unit is None else unit
    spikes = lif(
        currents.movedim(time, 0),
        hidden.betas[layer][neurons],
        hidden.thresholds[layer][neurons],
        reset_mechanism=cast("ResetMechanism", hidden.reset_mechanism),
        reset_delay=hidden.reset_delay,
        spike_on=cast("SpikeOn", hidden.spike_on),
        name="lif_train_costs",
    )
    return cast("Tensor", spikes).movedim(0, time)


def _fed(currents: Tensor, changes: Tensor, weights: Tensor) -> Tensor:
    """Add what changed spikes (..., N, T, H) feed the next layer: neuron by neuron, so that all round alike."""
    for neuron in range(changes.shape[-1]):
        currents = currents + changes[..., neuron, None] * weights[:, neuron]
    return currents
