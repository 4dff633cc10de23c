"""Networks of Norse: cells whose state goes in and out."""

from __future__ import annotations

from collections.abc import Callable

import norse.torch as norse
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.general_networks import Case, louder


class Net(nn.Module):
    """A layer of neurons and a leaky readout; returns the readout's voltages over time."""

    def __init__(self, seq_length: int = 25) -> None:
        super().__init__()
        self.seq_length = seq_length
        self.fc1 = nn.Linear(784, 100)
        self.lif = norse.LIFCell()
        self.fc_out = nn.Linear(100, 10)
        self.out = norse.LICell()

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        x = x.flatten(1)
        s, so = None, None
        voltages = []
        for _ in range(self.seq_length):
            z, s = self.lif(self.fc1(x), s)
            v, so = self.out(self.fc_out(z), so)
            voltages.append(v)
        return torch.stack(voltages)


class RecurrentNet(nn.Module):
    """The same with connections among the neurons."""

    def __init__(self, seq_length: int = 25) -> None:
        super().__init__()
        self.seq_length = seq_length
        self.lif = norse.LIFRecurrentCell(784, 100)
        self.fc_out = nn.Linear(100, 10)
        self.out = norse.LICell()

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        x = x.flatten(1)
        s, so = None, None
        voltages = []
        for _ in range(self.seq_length):
            z, s = self.lif(x, s)
            v, so = self.out(self.fc_out(z), so)
            voltages.append(v)
        return torch.stack(voltages)


class AdaptiveNet(Net):
    """The same with neurons that tire."""

    def __init__(self) -> None:
        super().__init__()
        self.lif = norse.LSNNCell()


class LiftedNet(nn.Module):
    """A convolution lifted over time, in Norse's own container; returns the readout's voltages over time."""

    def __init__(self, seq_length: int = 10) -> None:
        super().__init__()
        self.seq_length = seq_length
        self.net = norse.SequentialState(
            norse.Lift(nn.Conv2d(1, 8, 5, stride=2)),
            norse.LIF(),
            nn.Flatten(2),
            norse.Lift(nn.Linear(8 * 12 * 12, 10)),
            norse.LI(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        voltages: Tensor = self.net(x.expand(self.seq_length, *x.shape))[0]
        return voltages


def _highest(net: nn.Module) -> Case:
    def scores(x: Tensor) -> Tensor:
        highest, _ = torch.max(net(x), 0)
        return F.log_softmax(highest, dim=1)

    return Case(net, lambda x, y: F.nll_loss(scores(x), y), lambda x: scores(x).argmax(-1))


def loud(net: nn.Module) -> Case:
    """At torch's first weights 0.6 % of LIFCell's neurons fire in a step, at five times these 11 %."""
    louder(net, 5)
    return _highest(net)


CASES: dict[str, Callable[[], Case]] = {
    "norse": lambda: loud(Net()),
    "norse_recurrent": lambda: _highest(RecurrentNet()),
    "norse_adaptive": lambda: loud(AdaptiveNet()),
    "norse_lifted": lambda: loud(LiftedNet()),
}
