"""Networks of SpikingJelly: layers in a row whose state is reset after each batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from benchmarks.general_networks import Case, louder

T = 25


class Net(nn.Module):
    """Two layers; returns the rates at which the last one fires."""

    def __init__(self, make_neuron: Callable[[], nn.Module], step_mode: str) -> None:
        super().__init__()
        self.step_mode = step_mode
        self.layer = nn.Sequential(
            layer.Flatten(), layer.Linear(784, 100), make_neuron(), layer.Linear(100, 10), make_neuron()
        )
        functional.set_step_mode(self, step_mode)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        if self.step_mode == "m":
            rates: Tensor = self.layer(x.unsqueeze(0).repeat(T, 1, 1, 1, 1)).mean(0)
            return rates
        out_fr = torch.zeros(1)
        for _ in range(T):
            out_fr = out_fr + self.layer(x)
        return out_fr / T


class ResidualNet(nn.Module):
    """A spike-element-wise (SEW) residual block between a strided convolution and the readout; returns rates."""

    def __init__(self, channels: int = 16, time_steps: int = 4) -> None:
        super().__init__()
        self.time_steps = time_steps
        self.stem = nn.Sequential(*_convolution(1, channels, stride=2))
        self.block = nn.Sequential(*_convolution(channels, channels), *_convolution(channels, channels))
        self.fc = nn.Sequential(layer.AvgPool2d(2), layer.Flatten(), layer.Linear(channels * 49, 10))
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        spikes = self.stem(x.unsqueeze(0).repeat(self.time_steps, 1, 1, 1, 1))
        scores: Tensor = self.fc(spikes + self.block(spikes)).mean(0)
        return scores


def _convolution(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, nn.Module, nn.Module]:
    convolution = layer.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return convolution, layer.BatchNorm2d(outputs), neuron.LIFNode(decay_input=False)


def reset_after(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what runs a network and resets its neurons after each batch."""

    def run(x: Tensor) -> Tensor:
        out: Tensor = net(x)
        functional.reset_net(net)
        return out

    return run


def residual() -> Case:
    """Batch norms make its neurons fire by themselves."""
    net = ResidualNet()
    scores = reset_after(net)
    return Case(net, lambda x, y: F.cross_entropy(scores(x), y), lambda x: scores(x).argmax(-1))


def fired(make_neuron: Callable[[], nn.Module], step_mode: str) -> Case:
    """At torch's first weights no neuron ever fires, at five times these 8 % of the hidden and 5 % of the last do."""
    net = Net(make_neuron, step_mode)
    louder(net, 5)
    rates = reset_after(net)
    return Case(net, lambda x, y: F.mse_loss(rates(x), F.one_hot(y, 10).float()), lambda x: rates(x).argmax(-1))


CASES: dict[str, Callable[[], Case]] = {
    "spikingjelly": lambda: fired(neuron.LIFNode, "s"),
    "spikingjelly_m": lambda: fired(neuron.LIFNode, "m"),
    "plif": lambda: fired(neuron.ParametricLIFNode, "m"),
    "if": lambda: fired(neuron.IFNode, "m"),
    "sew": residual,
}
