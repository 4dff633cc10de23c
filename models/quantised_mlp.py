"""Fully connected networks with weights of 8 bits: in the middle alone, as in the paper, or in every layer."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from lightning_polystep.functional.quantisers import Granularity
from lightning_polystep.layers import QuantActivation, QuantLinear
from models.initialisation import BRIGHTEST, PIXELS, RELU, initialised
from models.sizes import check_sizes


class Int8MLP(nn.Sequential):
    """The paper's int8 network: ReLU layers of which the first and the last have float weights, the others int8.

    The activations are float, so that the first and the last layer, and all biases, have a gradient.

    Args:
        sizes: Features of the input, of each hidden layer, and of the output; at least one layer in the middle.
        granularity: Whether the scales of the weights are ``"per_channel"`` or, as in the paper, ``"per_tensor"``.

    Raises:
        ValueError: If ``sizes`` leaves no layer in the middle.

    Example:
        >>> import torch
        >>> from models import Int8MLP
        >>> Int8MLP((784, 128, 128, 10))(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])

    Source:
        arXiv 2605.01928, the int8 network.
    """

    def __init__(self, sizes: Sequence[int] = (784, 128, 128, 10), granularity: Granularity = "per_channel") -> None:
        check_sizes(sizes, "Int8MLP", fewest=4)
        layers: list[nn.Module] = [nn.Flatten()]
        for index, (features_in, features_out) in enumerate(pairwise(sizes)):
            if index:
                layers.append(nn.ReLU())
            linear: nn.Linear = nn.Linear(features_in, features_out)
            if 0 < index < len(sizes) - 2:
                linear = QuantLinear(features_in, features_out, granularity=granularity)
            layers.append(initialised(linear, RELU if index else PIXELS))
        super().__init__(*layers)


class IntegerMLP(nn.Sequential):
    """A strictly integer network: int8 weights and 8-bit activations in every layer, the pixels included.

    Every sum is one of integer codes, accumulated exactly; only scales and biases are float. The scales of the hidden
    activations have to be calibrated, by :class:`~lightning_polystep.callbacks.Calibrate` or
    :func:`~lightning_polystep.layers.calibrate`.

    Args:
        sizes: Features of the input, of each hidden layer, and of the output.
        bits: Of the hidden activations.
        granularity: Whether the scales of the weights are ``"per_channel"`` or ``"per_tensor"``.

    Raises:
        ValueError: If ``sizes`` names fewer than two.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import calibrate
        >>> from models import IntegerMLP
        >>> network, images = IntegerMLP((784, 128, 128, 10)), torch.rand(2, 1, 28, 28)
        >>> calibrate(network, [images])
        >>> network(images).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        sizes: Sequence[int] = (784, 128, 128, 10),
        bits: int = 8,
        granularity: Granularity = "per_channel",
    ) -> None:
        check_sizes(sizes, "IntegerMLP")
        layers: list[nn.Module] = [nn.Flatten()]
        for index, (features_in, features_out) in enumerate(pairwise(sizes)):
            if index:
                layers.append(nn.ReLU())
            # Pixels come as whole numbers over 255: their scale is known.
            inputs = QuantActivation(bits) if index else QuantActivation(scale=1 / BRIGHTEST)
            linear = QuantLinear(features_in, features_out, granularity=granularity, input_quant=inputs, integer=True)
            layers.append(initialised(linear, RELU if index else PIXELS))
        super().__init__(*layers)
