"""Initial weights for networks that are trained by forward passes."""

import math
from typing import TypeVar

import torch
from torch import nn

from lightning_polystep.layers import QuantConv2d, QuantLinear

# A pixel of MNIST in [0, 1] has a mean square of 0.10: most are 0.
PIXELS = 0.1
# Pixels come as whole numbers over this.
BRIGHTEST = 255
# A ReLU keeps half of the mean square of pre-activations that are as often negative as positive.
RELU = 0.5

LayerT = TypeVar("LayerT", nn.Linear, nn.Conv2d)


@torch.no_grad()
def unit_preactivations_(linear: LayerT, mean_square: float) -> LayerT:
    r"""Draw weights uniformly such that pre-activations have a root mean square of 1, and set the bias to 0.

    .. math::
        w \sim U(-b, b), \quad b = \sqrt{3 / (n m)}

    where n is the number of inputs of a unit and m their mean square. Steps of hard layers lie about 1 apart, so that
    is where a probe of some tenths meets some of them: torch's own weights make MNIST's first pre-activations 0.2,
    which no candidate lifts over a threshold of 1.

    Args:
        linear: Linear layer or convolution, changed in place.
        mean_square: Of the layer's inputs.

    Returns:
        The layer.

    Example:
        >>> import torch
        >>> from models.initialisation import unit_preactivations_
        >>> layer = unit_preactivations_(torch.nn.Linear(400, 50), mean_square=1.0)
        >>> round(float(layer(torch.randn(100, 400)).std().detach()), 1)
        1.0
    """
    bound = math.sqrt(3 / (linear.weight[0].numel() * mean_square))
    nn.init.uniform_(linear.weight, -bound, bound)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


def initialised(layer: LayerT, mean_square: float) -> LayerT:
    """Draw first weights as :func:`unit_preactivations_` does, and take the scales of quantised ones from them.

    Args:
        layer: Linear layer or convolution, quantised or not; changed in place.
        mean_square: Of the layer's inputs.

    Returns:
        The layer.
    """
    unit_preactivations_(layer, mean_square)
    if isinstance(layer, QuantConv2d | QuantLinear):
        layer.calibrate_weight()
    return layer
