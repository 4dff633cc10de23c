"""Networks that need nothing but torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.general_networks import Case


class SurrogateHeaviside(torch.autograd.Function):
    """A step with the derivative of a fast sigmoid, as SpyTorch's tutorials write it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Fire above 0."""
        ctx.save_for_backward(x)
        return (x > 0).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Pass the surrogate gradient on."""
        (x,) = ctx.saved_tensors
        return gradients[0] / (10 * x.abs() + 1) ** 2


class OwnNeurons(nn.Module):
    """Leaky neurons written out; returns spike counts."""

    def __init__(self, hidden: int = 128, num_steps: int = 15, beta: float = 0.95) -> None:
        super().__init__()
        self.num_steps, self.beta = num_steps, beta
        self.fc1 = nn.Linear(784, hidden)
        self.fc2 = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        x = x.flatten(1)
        mem1 = torch.zeros(x.shape[0], self.fc1.out_features)
        mem2 = torch.zeros(x.shape[0], 10)
        count = torch.zeros(x.shape[0], 10)
        for _ in range(self.num_steps):
            mem1 = self.beta * mem1 + self.fc1(x)
            spk1 = SurrogateHeaviside.apply(mem1 - 1)
            mem1 = mem1 - spk1.detach()
            mem2 = self.beta * mem2 + self.fc2(spk1)
            spk2 = SurrogateHeaviside.apply(mem2 - 1)
            mem2 = mem2 - spk2.detach()
            count = count + spk2
        return count


class RowLSTM(nn.Module):
    """Reads an image row by row."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.lstm = nn.LSTM(28, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        out, _ = self.lstm(x.squeeze(1))
        scores: Tensor = self.fc(out[:, -1])
        return scores


class RowTransformer(nn.Module):
    """Attends to the rows of an image."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Linear(28, width)
        self.position = nn.Parameter(0.02 * torch.randn(28, width))
        self.block = nn.TransformerEncoderLayer(width, nhead=4, dim_feedforward=2 * width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        x = self.block(self.embed(x.squeeze(1)) + self.position)
        scores: Tensor = self.head(x.mean(1))
        return scores


class SignSTE(torch.autograd.Function):
    """A sign that passes the gradient where its input lies in [-1, 1]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return -1 or 1."""
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Pass the gradient on."""
        (x,) = ctx.saved_tensors
        return gradients[0] * (x.abs() <= 1)


class SignMLP(nn.Module):
    """One hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(13, 16)
        self.fc2 = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        scores: Tensor = self.fc2(SignSTE.apply(self.fc1(x)))
        return scores


class SignLinear(nn.Linear):
    """Multiplies with the signs of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what the signs make of the inputs."""
        return F.linear(x, SignSTE.apply(self.weight), self.bias)


class BinaryMLP(nn.Module):
    """Weights and activations of one bit, with batch norms, the last one behind the scores.

    Args:
        hidden: Units of each of two hidden layers.
        trains_hidden: Whether these are trained; else they stay random, which is the control.
    """

    def __init__(self, hidden: int = 128, *, trains_hidden: bool = True) -> None:
        super().__init__()
        sizes = (784, hidden, hidden, 10)
        self.layers = nn.ModuleList(
            SignLinear(before, after, bias=False) for before, after in itertools.pairwise(sizes)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for size in sizes[1:])
        self.layers[:-1].requires_grad_(trains_hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        x = x.flatten(1)
        for place, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = norm(layer(x if place == 0 else SignSTE.apply(x)))
        return x


def classifier(net: nn.Module) -> Case:
    """Cross-entropy of scores."""
    return Case(net, lambda x, y: F.cross_entropy(net(x), y), lambda x: net(x).argmax(-1))


CASES: dict[str, Callable[[], Case]] = {
    "own_surrogate": lambda: classifier(OwnNeurons()),
    "lstm": lambda: classifier(RowLSTM()),
    "transformer": lambda: classifier(RowTransformer()),
    "wine": lambda: classifier(SignMLP()),
    "binary": lambda: classifier(BinaryMLP()),
    "binary_control": lambda: classifier(BinaryMLP(trains_hidden=False)),
}
