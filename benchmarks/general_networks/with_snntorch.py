"""Networks of snnTorch in the style of its tutorials: a class whose forward carries the membranes by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import snntorch as snn
import snntorch.functional as SF
import torch
import torch.nn.functional as F
from snntorch import surrogate
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from benchmarks.general_networks import Case, louder

Loss = Callable[[Tensor, Tensor], Tensor]


class Net(nn.Module):
    """Two layers; returns spikes and membranes of the last one, over time."""

    def __init__(self, hidden: int = 128, outputs: int = 10, num_steps: int = 15, learned: bool = False) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.fc1 = nn.Linear(784, hidden)
        self.lif1 = _leaky(hidden, learned)
        self.fc2 = nn.Linear(hidden, outputs)
        self.lif2 = _leaky(outputs, learned)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run all time steps."""
        x = x.view(x.size(0), -1)
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk2_rec = []
        mem2_rec = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec), torch.stack(mem2_rec)


def _leaky(neurons: int, learned: bool) -> Any:
    if not learned:
        return snn.Leaky(beta=0.95)
    return snn.Leaky(
        beta=torch.full((neurons,), 0.95), threshold=torch.ones(neurons), learn_beta=True, learn_threshold=True
    )


class InPlaceNet(Net):
    """Counts spikes as they come."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Return the counts."""
        x = x.view(x.size(0), -1)
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        cnt = torch.zeros(x.size(0), 10, device=x.device)
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            cnt += spk2
        return cnt


class SpikesNet(Net):
    """Returns the spikes of both layers."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run all time steps."""
        x = x.view(x.size(0), -1)
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk1_rec = []
        spk2_rec = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk1_rec.append(spk1)
            spk2_rec.append(spk2)
        return torch.stack(spk1_rec), torch.stack(spk2_rec)


class SynapticNet(nn.Module):
    """Neurons whose currents leak too; returns spikes."""

    def __init__(self, num_steps: int = 15) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.fc1, self.lif1 = nn.Linear(784, 128), snn.Synaptic(alpha=0.9, beta=0.8)
        self.fc2, self.lif2 = nn.Linear(128, 10), snn.Synaptic(alpha=0.9, beta=0.8)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        x = x.flatten(1)
        syn1, mem1 = self.lif1.init_synaptic()
        syn2, mem2 = self.lif2.init_synaptic()
        spikes = []
        for _ in range(self.num_steps):
            spk, syn1, mem1 = self.lif1(self.fc1(x), syn1, mem1)
            spk, syn2, mem2 = self.lif2(self.fc2(spk), syn2, mem2)
            spikes.append(spk)
        return torch.stack(spikes)


class RecurrentNet(nn.Module):
    """Hidden neurons whose spikes come back through weights of their own; returns spikes."""

    def __init__(self, num_steps: int = 15) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.fc1, self.lif1 = nn.Linear(784, 128), snn.RLeaky(beta=0.9, linear_features=128)
        self.fc2, self.lif2 = nn.Linear(128, 10), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        x = x.flatten(1)
        spk1, mem1 = self.lif1.init_rleaky()
        mem2 = self.lif2.init_leaky()
        spikes = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), spk1, mem1)
            spk, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk)
        return torch.stack(spikes)


class DeepNet(nn.Module):
    """Three layers; returns spikes."""

    def __init__(self, num_steps: int = 25) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.fc1, self.lif1 = nn.Linear(784, 200), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(200, 200), snn.Leaky(beta=0.9)
        self.fc3, self.lif3 = nn.Linear(200, 10), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        x = x.flatten(1)
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        spikes = []
        for _ in range(self.num_steps):
            spk, mem1 = self.lif1(self.fc1(x), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            spk, mem3 = self.lif3(self.fc3(spk), mem3)
            spikes.append(spk)
        return torch.stack(spikes)


class ConvNet(nn.Module):
    """The convolutional network of tutorial 6; returns spikes and membranes of the last layer."""

    def __init__(self, num_steps: int = 10) -> None:
        super().__init__()
        self.num_steps = num_steps
        spike_grad = surrogate.fast_sigmoid(slope=25)
        self.conv1 = nn.Conv2d(1, 8, 5)
        self.lif1 = snn.Leaky(beta=0.5, spike_grad=spike_grad)
        self.conv2 = nn.Conv2d(8, 16, 5)
        self.lif2 = snn.Leaky(beta=0.5, spike_grad=spike_grad)
        self.fc1 = nn.Linear(16 * 4 * 4, 10)
        self.lif3 = snn.Leaky(beta=0.5, spike_grad=spike_grad)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run all time steps."""
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        mem3 = self.lif3.init_leaky()
        spk3_rec = []
        mem3_rec = []
        for _ in range(self.num_steps):
            cur1 = F.max_pool2d(self.conv1(x), 2)
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = F.max_pool2d(self.conv2(spk1), 2)
            spk2, mem2 = self.lif2(cur2, mem2)
            cur3 = self.fc1(spk2.view(x.size(0), -1))
            spk3, mem3 = self.lif3(cur3, mem3)
            spk3_rec.append(spk3)
            mem3_rec.append(mem3)
        return torch.stack(spk3_rec), torch.stack(mem3_rec)


class CountingConvNet(nn.Module):
    """12C5-P2-32C5-P2-10; returns how often each class fired."""

    def __init__(self, num_steps: int = 10) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.conv1, self.lif1 = nn.Conv2d(1, 12, 5), snn.Leaky(beta=0.9)
        self.conv2, self.lif2 = nn.Conv2d(12, 32, 5), snn.Leaky(beta=0.9)
        self.fc, self.lif3 = nn.Linear(32 * 4 * 4, 10), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        counts = torch.zeros(len(x), 10)
        for _ in range(self.num_steps):
            spk, mem1 = self.lif1(self.conv1(x), mem1)
            spk, mem2 = self.lif2(self.conv2(F.max_pool2d(spk, 2)), mem2)
            spk, mem3 = self.lif3(self.fc(F.max_pool2d(spk, 2).flatten(1)), mem3)
            counts = counts + spk
        return counts


class MaskedLinear(nn.Linear):
    """A layer whose absent connections stay absent."""

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, sparsity: float) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("mask", (torch.rand(outputs, inputs) >= sparsity).float())

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by the weights that are there."""
        return F.linear(x, self.weight * self.mask, self.bias)


class Sparse(nn.Module):
    """The same as a parametrisation."""

    mask: Tensor

    def __init__(self, weight: Tensor, sparsity: float) -> None:
        super().__init__()
        self.register_buffer("mask", (torch.rand_like(weight) >= sparsity).float())

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weights that are there."""
        return weight * self.mask


def count_logged() -> Case:
    """Keep the history that a training loop prints."""
    net, criterion = Net(), SF.ce_count_loss()
    loss_hist: list[float] = []
    acc_hist: list[float] = []

    def loss(x: Tensor, targets: Tensor) -> Tensor:
        spk_rec, _ = net(x)
        loss_val: Tensor = criterion(spk_rec, targets)
        loss_hist.append(loss_val.item())
        acc_hist.append(SF.acc.accuracy_rate(spk_rec, targets))
        return loss_val

    return Case(net, loss, lambda x: most_spikes(net(x)[0]))


def by_spikes(
    criterion: Loss, predict: Callable[[Tensor], Tensor], outputs: int = 10, *, learned: bool = False
) -> Case:
    """A loss of snnTorch on the spikes."""
    net = Net(outputs=outputs, learned=learned)
    return Case(net, lambda x, y: criterion(net(x)[0], y), lambda x: predict(net(x)[0]))


def by_membranes() -> Case:
    """A loss of snnTorch on the membranes."""
    net, criterion = Net(), SF.ce_max_membrane_loss()
    return Case(net, lambda x, y: criterion(net(x)[1], y), lambda x: net(x)[1].amax(0).argmax(-1))


def tutorial5() -> Case:
    """Sum the loss over time."""
    net, criterion = Net(1000, num_steps=25), nn.CrossEntropyLoss()

    def loss(x: Tensor, targets: Tensor) -> Tensor:
        _, mem_rec = net(x)
        loss_val = torch.zeros(1, dtype=torch.float)
        for step in range(net.num_steps):
            loss_val += criterion(mem_rec[step], targets)
        return loss_val

    return Case(net, loss, lambda x: most_spikes(net(x)[0]))


def tutorial6() -> Case:
    """At torch's first weights the second and the last layer are silent, at three times these 17 and 4 % fire."""
    net, criterion = ConvNet(), SF.ce_rate_loss()
    louder(net, 3)
    return Case(net, lambda x, y: criterion(net(x)[0], y), lambda x: most_spikes(net(x)[0]))


def counted(net: Net, energy: float = 0.0) -> Case:
    """Cross-entropy of spike counts; spikes may cost something themselves."""

    def loss(x: Tensor, targets: Tensor) -> Tensor:
        hidden, spikes = net(x)
        loss_val = F.cross_entropy(spikes.sum(0), targets)
        return loss_val + energy * hidden.mean() if energy else loss_val

    return Case(net, loss, lambda x: most_spikes(net(x)[1]))


def in_place() -> Case:
    """Counts that are added up in place."""
    net = InPlaceNet()
    return Case(net, lambda x, y: F.cross_entropy(net(x), y), lambda x: net(x).argmax(-1))


def summed(net: nn.Module, times: float = 1.0) -> Case:
    """Cross-entropy of the spikes that a network returns, counted over time."""
    louder(net, times)
    return Case(net, lambda x, y: F.cross_entropy(net(x).sum(0), y), lambda x: most_spikes(net(x)))


def deep() -> Case:
    """At torch's first weights the second layer fires in 0.4 % of the steps and the last hardly ever."""
    return summed(DeepNet(), 2)


def convolutional(*, trains_filters: bool = True) -> Case:
    """At twice torch's first weights all three layers fire."""
    net = CountingConvNet()
    louder(net, 2)
    if not trains_filters:  # the control: what a readout makes of random filters
        for layer in (net.conv1, net.conv2):
            layer.requires_grad_(requires_grad=False)
    return Case(net, lambda x, y: F.cross_entropy(net(x), y), lambda x: net(x).argmax(-1))


def small() -> SpikesNet:
    """The network that the sparse ones are compared with."""
    return SpikesNet(64)


def pruned() -> Case:
    """Sparse by torch.nn.utils.prune."""
    net = small()
    prune.l1_unstructured(net.fc1, "weight", 0.8)
    return counted(net)


def masked() -> Case:
    """Sparse by a layer of one's own."""
    net = small()
    net.fc1 = MaskedLinear(784, 64, 0.8)
    return counted(net)


def parametrised() -> Case:
    """Sparse by torch.nn.utils.parametrize."""
    net = small()
    parametrize.register_parametrization(net.fc1, "weight", Sparse(net.fc1.weight, 0.8))
    return counted(net)


def most_spikes(spikes: Tensor) -> Tensor:
    """Return the class that fired most; spikes (T, N, classes)."""
    return spikes.sum(0).argmax(-1)


def first_spike(spikes: Tensor) -> Tensor:
    """Return the class that fired first; silence comes last."""
    silent = torch.ones_like(spikes[:1])
    return torch.cat([spikes, silent]).argmax(0).argmin(-1)


def most_spikes_of_ten(spikes: Tensor) -> Tensor:
    """Return the class whose population fired most."""
    return most_spikes(spikes.unflatten(-1, (10, -1)).sum(-1))


CASES: dict[str, Callable[[], Case]] = {
    "count": count_logged,
    "rate": partial(by_spikes, SF.ce_rate_loss(), most_spikes),
    "temporal": partial(by_spikes, SF.ce_temporal_loss(), first_spike),
    "membrane": by_membranes,
    "population": partial(
        by_spikes, SF.ce_count_loss(population_code=True, num_classes=10), most_spikes_of_ten, outputs=100
    ),
    "in_place": in_place,
    "tutorial5": tutorial5,
    "tutorial6": tutorial6,
    "conv": convolutional,
    "conv_control": partial(convolutional, trains_filters=False),
    "fashion_conv": convolutional,
    "fashion_conv_control": partial(convolutional, trains_filters=False),
    "synaptic": lambda: summed(SynapticNet()),
    "rleaky": lambda: summed(RecurrentNet()),
    "deep": deep,
    "learned": partial(by_spikes, SF.ce_count_loss(), most_spikes, learned=True),
    "small": lambda: counted(small()),
    "energy": lambda: counted(small(), energy=0.1),
    "pruned": pruned,
    "masked": masked,
    "parametrised": parametrised,
}
