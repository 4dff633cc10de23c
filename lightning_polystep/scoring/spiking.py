"""Score: recognise a network of Linear and hard LIF layers, and read its layers.

The stack is a sequence of Linear and LIF layers in ``nn.Sequential`` order with a readout at its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_polystep.layers import LIF, LastMembrane, SpikeCount, SpikeRate
from lightning_polystep.scoring.stack import Capture, Criterion, NotAStackError, Stack, every_few, off_by_rounding

Readout = SpikeCount | SpikeRate | LastMembrane

# What the kernels call a criterion of a readout.
_LOSSES: dict[tuple[type[nn.Module], type[nn.Module]], str] = {
    (SpikeCount, nn.CrossEntropyLoss): "cross_entropy_count",
    (LastMembrane, nn.CrossEntropyLoss): "cross_entropy_membrane",
    (SpikeRate, nn.MSELoss): "mse_rate",
}


@dataclass(frozen=True)
class SpikingLayer:
    """A Linear layer and the neurons that it drives."""

    linear: nn.Linear
    neurons: LIF


@dataclass(frozen=True)
class SpikingStack(Stack):
    """A recognised spiking network with its loss.

    Args:
        network: The whole network.
        criterion: The loss.
        layers: Its spiking layers, first to last.
        readout: The layer that turns the last spikes or membranes into scores.
    """

    layers: tuple[SpikingLayer, ...]
    readout: Readout

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        """The Linear layers, first to last."""
        return tuple(layer.linear for layer in self.layers)

    @property
    def loss(self) -> str:
        """What the kernels call readout and criterion together."""
        return _LOSSES[type(self.readout), type(self.criterion)]

    def intervention(self, capture: Capture) -> str | None:
        """Return where something beside the layers had a hand in the pass; None if nowhere."""
        scores, _ = capture.scored()
        every, last = every_few(scores), len(self.layers) - 1
        for index, (layer, inputs, currents) in enumerate(
            zip(self.layers, capture.inputs, capture.currents, strict=True)
        ):
            linear, neurons = layer.linear, layer.neurons
            if currents.dtype not in {torch.float32, torch.float64} or inputs.dtype != currents.dtype:
                return f"the network computes in {currents.dtype}"
            expected = 2 if neurons.num_steps is not None else 3
            if currents.ndim != expected or scores.ndim != 2 or currents.shape[-2] != len(scores):
                return f"a layer's current has shape {tuple(currents.shape)}: not one position per sample"
            current = currents[..., every, :]
            if off_by_rounding(functional.linear(inputs[..., every, :], linear.weight, linear.bias), current):
                return f"something beside Linear layer {index + 1} had a hand in its output"
            output = LIF.forward(neurons, current)
            after = self.readout.forward(output) if index == last else output  # type: ignore[arg-type]
            seen = scores[every] if index == last else capture.inputs[index + 1][..., every, :]
            if not torch.equal(cast("Tensor", after), seen):
                return f"something beside LIF layer {index + 1} had a hand in its output"
        return None


def read_spiking(network: nn.Module, children: list[nn.Module], criterion: Criterion) -> SpikingStack:
    """Read a spiking network.

    Args:
        network: The whole network.
        children: Its layers in the order in which they run.
        criterion: Its loss.

    Raises:
        NotAStackError: Naming what is unknown.
    """
    readout, pairs = children[-1] if children else None, children[:-1]
    if not isinstance(readout, Readout) or type(readout) not in {SpikeCount, SpikeRate, LastMembrane}:
        raise NotAStackError("the network does not end in SpikeCount, SpikeRate or LastMembrane")
    layers = []
    for linear, neurons in zip(pairs[::2], pairs[1::2], strict=False):
        if type(linear) is not nn.Linear or type(neurons) is not LIF:
            raise NotAStackError(
                f"{type(linear).__name__} followed by {type(neurons).__name__} is not Linear followed by LIF"
            )
        layers.append(SpikingLayer(linear, neurons))
    if not layers or len(pairs) % 2:
        raise NotAStackError("the network is not a sequence of Linear and LIF layers")
    if (type(readout), type(criterion)) not in _LOSSES:
        raise NotAStackError(f"{type(criterion).__name__} of {type(readout).__name__} is not among the known losses")
    return SpikingStack(network, criterion, tuple(layers), readout)
