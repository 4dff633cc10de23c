"""Score: recognise a network of Linear and hard LIF layers, and read its layers.

The stack is a sequence of Linear and LIF layers in ``nn.Sequential`` order with a readout at its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from lightning_polystep.layers import LIF, LastMembrane, Sliced, SpikeCount, SpikeRate
from lightning_polystep.scoring.stack import Criterion, Layer, NotAStackError, Stack

Readout = SpikeCount | SpikeRate | LastMembrane

# What the kernels call a criterion of a readout.
_LOSSES: dict[tuple[type[nn.Module], type[nn.Module]], str] = {
    (SpikeCount, nn.CrossEntropyLoss): "cross_entropy_count",
    (LastMembrane, nn.CrossEntropyLoss): "cross_entropy_membrane",
    (SpikeRate, nn.MSELoss): "mse_rate",
}


@dataclass(frozen=True)
class SpikingLayer(Layer):
    """A Linear layer and the neurons that it drives."""

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

    between = "LIF layer"
    rounded = 0

    @property
    def loss(self) -> str:
        """What the kernels call readout and criterion together."""
        return _LOSSES[type(self.readout), type(self.criterion)]

    def passed_on(self, place: int, inputs: Tensor, currents: Tensor) -> Tensor:
        """Return the spikes that a layer's neurons fire, or the scores that are read from the last ones."""
        del inputs
        layer = self.layers[place]
        output = LIF.forward(layer.neurons, currents)
        return cast("Tensor", self.readout.forward(output) if layer is self.layers[-1] else output)  # type: ignore[arg-type]

    def has_time(self, place: int) -> bool:
        """Tell whether a layer's current changes over time."""
        return self.layers[place].neurons.num_steps is None


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
    if isinstance(network, Sliced) and network.samples is not None and layers[0].neurons.num_steps is None:
        raise NotAStackError("the network is Sliced, but what drives its first LIF layer changes over time")
    return SpikingStack(network, criterion, tuple(layers), readout)
