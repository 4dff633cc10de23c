"""Networks with a hard mixture of experts."""

from collections.abc import Sequence

from torch import nn

from lightning_polystep.layers import HardMoE, QuantActivation, Staircase
from models.initialisation import PIXELS, RELU, unit_preactivations_

_UNIT = 1.0
_STAIRCASE = 0.2
# Of scores: from -15.9 to 15.9 with 8 bits.
_SCORE_STEP = 0.125


class MoENet(nn.Sequential):
    """A hidden layer, a hard mixture of experts with one hidden layer each, and a linear layer of scores.

    By default it is the paper's network, of ReLUs: all but the router has a gradient. With ``strict`` no parameter has:
    units are staircases and scores are rounded.

    Args:
        sizes: Features of the input, of every hidden layer, and of the output.
        num_experts: Number of experts.
        strict: Whether every true gradient is zero.

    Raises:
        ValueError: If ``sizes`` are not three.

    Example:
        >>> import torch
        >>> from models import MoENet
        >>> MoENet((784, 128, 10))(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])

    Source:
        arXiv 2605.01928, the network with a hard mixture of experts.
    """

    def __init__(self, sizes: Sequence[int] = (784, 128, 10), num_experts: int = 4, strict: bool = False) -> None:
        if len(sizes) != 3:
            raise ValueError(f"MoENet: sizes must be three, of input, hidden layer and output, got {tuple(sizes)}.")
        features_in, hidden, features_out = sizes
        activation, kept = (Staircase, _STAIRCASE) if strict else (nn.ReLU, RELU)

        def linear(before: int, after: int, mean_square: float) -> nn.Linear:
            return unit_preactivations_(nn.Linear(before, after), mean_square)

        experts = [
            nn.Sequential(linear(hidden, hidden, kept), activation(), linear(hidden, hidden, kept))
            for _ in range(num_experts)
        ]
        scores = [QuantActivation(signed=True, scale=_SCORE_STEP)] if strict else []
        super().__init__(
            nn.Flatten(),
            linear(features_in, hidden, PIXELS),
            activation(),
            HardMoE(experts, router=linear(hidden, num_experts, kept)),
            linear(hidden, features_out, _UNIT),
            *scores,
        )
