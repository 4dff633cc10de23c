"""The paper's network with argmax attention."""

from collections.abc import Sequence

from torch import nn

from lightning_polystep.layers import SlotArgmaxAttention
from models.initialisation import PIXELS, RELU, unit_preactivations_

# Of a value gated by the sigmoid of a key of size 0.5, with values of mean square 1.
_GATED = 0.25


class SlotAttentionNet(nn.Sequential):
    """A hidden layer of ReLUs, argmax attention over learned key slots, and a linear layer of scores.

    Args:
        sizes: Features of the input, of the hidden layer, and of the output.
        num_slots: Number of learned keys.

    Raises:
        ValueError: If ``sizes`` are not three.

    Example:
        >>> import torch
        >>> from models import SlotAttentionNet
        >>> SlotAttentionNet((784, 128, 10))(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])

    Source:
        arXiv 2605.01928, the argmax-attention network.
    """

    def __init__(self, sizes: Sequence[int] = (784, 128, 10), num_slots: int = 8) -> None:
        if len(sizes) != 3:
            raise ValueError(
                f"SlotAttentionNet: sizes must be three, of input, hidden layer and output, got {tuple(sizes)}."
            )
        features_in, hidden, features_out = sizes
        attention = SlotArgmaxAttention(hidden, num_slots)
        unit_preactivations_(attention.value, RELU)
        super().__init__(
            nn.Flatten(),
            unit_preactivations_(nn.Linear(features_in, hidden), PIXELS),
            nn.ReLU(),
            attention,
            unit_preactivations_(nn.Linear(hidden, features_out), _GATED),
        )
