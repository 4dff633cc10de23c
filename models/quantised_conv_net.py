"""A convolutional network whose weights and activations are whole numbers of few bits."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from lightning_polystep.functional.quantisers import Granularity
from lightning_polystep.layers import QuantActivation, QuantConv2d, QuantLinear
from models.initialisation import BRIGHTEST, PIXELS, RELU, initialised
from models.sizes import check_two

_KERNEL, _POOL = 5, 2


class QuantisedLeNet(nn.Sequential):
    """LeNet-5 with int8 weights and 8-bit inputs in every layer, the pixels included.

    Two convolutions, each with ReLU and a max-pooling, and fully connected layers. Sums are computed in float32, which
    simulates integers; the scales of the hidden activations have to be calibrated, by
    :class:`~lightning_polystep.callbacks.Calibrate` or :func:`~lightning_polystep.layers.calibrate`.

    Args:
        image_shape: Channels, height and width.
        channels: Of the two convolutions.
        features: Of the hidden layers behind them.
        num_classes: Number of classes.
        bits: Of the hidden activations.
        granularity: Whether the scales of the weights are ``"per_channel"`` or ``"per_tensor"``.

    Raises:
        ValueError: If ``channels`` are not two, or the image is too small for two convolutions and poolings.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import calibrate
        >>> from models import QuantisedLeNet
        >>> network, images = QuantisedLeNet(), torch.rand(2, 1, 28, 28)
        >>> calibrate(network, [images])
        >>> network(images).shape
        torch.Size([2, 10])

    Source:
        LeCun et al. 1998, *Gradient-based learning applied to document recognition*; Brevitas has the same network of
        four bits among its examples.
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (1, 28, 28),
        channels: Sequence[int] = (6, 16),
        features: Sequence[int] = (120, 84),
        num_classes: int = 10,
        bits: int = 8,
        granularity: Granularity = "per_channel",
    ) -> None:
        check_two(channels, "QuantisedLeNet: channels")
        colours, *sides = image_shape
        height, width = ((side // _POOL - _KERNEL + 1) // _POOL for side in sides)
        if min(height, width) < 1:
            raise ValueError(f"QuantisedLeNet: images need at least 12 x 12 pixels, got {tuple(image_shape)}.")
        # Pixels come as whole numbers over 255: their scale is known.
        pixels = QuantActivation(scale=1 / BRIGHTEST)
        first = QuantConv2d(
            colours, channels[0], _KERNEL, padding=_KERNEL // 2, granularity=granularity, input_quant=pixels
        )
        second = QuantConv2d(
            channels[0], channels[1], _KERNEL, granularity=granularity, input_quant=QuantActivation(bits)
        )
        layers: list[nn.Module] = []
        for convolution, mean_square in ((first, PIXELS), (second, RELU)):
            layers += [initialised(convolution, mean_square), nn.ReLU(), nn.MaxPool2d(_POOL)]
        layers.append(nn.Flatten())
        sizes = (channels[1] * height * width, *features, num_classes)
        for features_in, features_out in pairwise(sizes):
            linear = QuantLinear(features_in, features_out, granularity=granularity, input_quant=QuantActivation(bits))
            layers += [initialised(linear, RELU), nn.ReLU()]
        super().__init__(*layers[:-1])
