"""The gradient-based opponent: the same hard LIF network, with a surrogate for the derivative of its spikes.

The forward pass is that of :class:`~lightning_polystep.layers.LIF`; only the backward pass pretends, as in snnTorch.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_polystep.layers import LIF

SurrogateName = Literal["fast_sigmoid", "atan"]


class FastSigmoid(torch.autograd.Function):
    r"""A step whose derivative is taken to be :math:`1 / (1 + k |x|)^2` with k = 25, snnTorch's default."""

    slope = 25.0

    @staticmethod
    def forward(ctx: Any, excess: Tensor) -> Tensor:
        """Fire at or above the threshold."""
        ctx.save_for_backward(excess)
        return (excess >= 0).to(excess.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Pass the surrogate gradient on."""
        (excess,) = ctx.saved_tensors
        return gradients[0] / (FastSigmoid.slope * excess.abs() + 1).square()


class ArcTangent(torch.autograd.Function):
    r"""A step whose derivative is taken to be :math:`(a / 2) / (1 + (\pi a x / 2)^2)` with a = 2."""

    alpha = 2.0

    @staticmethod
    def forward(ctx: Any, excess: Tensor) -> Tensor:
        """Fire at or above the threshold."""
        ctx.save_for_backward(excess)
        return (excess >= 0).to(excess.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Pass the surrogate gradient on."""
        (excess,) = ctx.saved_tensors
        alpha = ArcTangent.alpha
        return gradients[0] * (alpha / 2) / (1 + (math.pi / 2 * alpha * excess).square())


_SURROGATES: dict[str, type[FastSigmoid | ArcTangent]] = {"fast_sigmoid": FastSigmoid, "atan": ArcTangent}


class SurrogateLIF(nn.Module):
    """A LIF layer, reset to zero, that passes a surrogate gradient; none flows through the reset, as in snnTorch.

    Args:
        neurons: The hard layer that it stands for.
        surrogate: ``"fast_sigmoid"`` or ``"atan"``.

    Raises:
        ValueError: For dynamics other than reset to zero at once, fired by ``>=``.
    """

    def __init__(self, neurons: LIF, surrogate: SurrogateName) -> None:
        super().__init__()
        if neurons.reset_mechanism != "zero" or neurons.reset_delay or neurons.spike_on != "ge":
            raise ValueError("SurrogateLIF knows the immediate reset to zero and spike_on='ge' only.")
        self.beta, self.threshold = neurons.beta, neurons.threshold
        self.num_steps = neurons.num_steps
        self.spike = _SURROGATES[surrogate]

    def forward(self, current: Tensor) -> Tensor:
        """Return spikes (T, N, ...) for a current (T, N, ...), or (N, ...) if the layer has ``num_steps``."""
        currents = [current] * self.num_steps if self.num_steps is not None else list(current.unbind())
        membrane = torch.zeros_like(currents[0])
        spikes = []
        for drive in currents:
            membrane = self.beta * membrane + drive
            spike: Tensor = self.spike.apply(membrane - self.threshold)
            membrane = membrane * (1 - spike.detach())
            spikes.append(spike)
        return torch.stack(spikes)


def with_surrogate(network: nn.Sequential, surrogate: SurrogateName = "fast_sigmoid") -> nn.Sequential:
    """Return a trainable copy of a network whose LIF layers pass surrogate gradients; the weights are the same.

    Args:
        network: Layers in order.
        surrogate: ``"fast_sigmoid"`` or ``"atan"``.

    Example:
        >>> from models import SpikingMLP
        >>> network, images = SpikingMLP((784, 16, 10)), torch.rand(3, 1, 28, 28)
        >>> torch.equal(network(images), with_surrogate(network)(images))
        True
    """
    layers = [SurrogateLIF(layer, surrogate) if isinstance(layer, LIF) else layer for layer in network]
    return copy.deepcopy(nn.Sequential(*layers))
