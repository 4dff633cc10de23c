"""Small policies: linear, or with one hidden layer, of float or hard units and float, int8 or binary weights."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from lightning_polystep.layers import QuantActivation, QuantLinear, Sign
from models.sizes import check_sizes

Units = Literal["tanh", "sign", "int8"]
Weights = Literal["float", "int8", "binary"]

# Hidden units of 8 bits reach from -2 to 2, about as far as pre-activations do.
_UNIT_RANGE = 2.0
# Weights of 8 bits reach so many times one over the root of the inputs' number to either side.
_WEIGHT_RANGE = 16.0
_LARGEST_CODE = 127
# Root mean square of latent binary weights, in units of the scale at which their signs act.
_LATENT = 0.35


class PolicyNet(nn.Sequential):
    """From observations to a score for each action, or to the action itself.

    Scales of weights and units are constants, so nothing is to be calibrated and no candidate changes those of others:
    8 bits span 16 / sqrt(inputs) for weights and 2 for units; binary weights act as 1 / sqrt(inputs). Biases are float.

    Args:
        sizes: Observations, units of each hidden layer (none for a linear policy), and outputs.
        units: ``"tanh"``, ``"sign"`` (-1 and 1) or ``"int8"`` (rounded and clamped) between layers.
        weights: ``"float"``, ``"int8"`` or ``"binary"``.

    Raises:
        ValueError: If a name is unknown or ``sizes`` names fewer than two.

    Example:
        >>> import torch
        >>> from models import PolicyNet
        >>> PolicyNet((4, 16, 2), units="sign", weights="binary")(torch.rand(3, 4)).shape
        torch.Size([3, 2])
    """

    def __init__(self, sizes: Sequence[int] = (4, 16, 2), units: Units = "tanh", weights: Weights = "float") -> None:
        check_sizes(sizes, "PolicyNet")
        if units not in _UNITS:
            raise ValueError(f"PolicyNet: units must be one of {', '.join(_UNITS)}, got {units!r}.")
        if weights not in _WEIGHTS:
            raise ValueError(f"PolicyNet: weights must be one of {', '.join(_WEIGHTS)}, got {weights!r}.")
        layers: list[nn.Module] = []
        for index, (features_in, features_out) in enumerate(pairwise(sizes)):
            if index:
                layers.append(_UNITS[units]())
            layers.append(_WEIGHTS[weights](features_in, features_out))
        super().__init__(*layers)


def _int8(features_in: int, features_out: int) -> QuantLinear:
    linear = QuantLinear(features_in, features_out, weight_format="int8")
    return _scaled(linear, _WEIGHT_RANGE / _LARGEST_CODE * features_in**-0.5)


def _binary(features_in: int, features_out: int) -> QuantLinear:
    linear = QuantLinear(features_in, features_out, weight_format="binary")
    with torch.no_grad():
        linear.weight.mul_(_LATENT / float(linear.weight.square().mean().sqrt()) * features_in**-0.5)
    return _scaled(linear, features_in**-0.5)


def _scaled(linear: QuantLinear, scale: float) -> QuantLinear:
    linear.weight_scale = torch.full((linear.out_features,), scale)
    linear.scale_given = True
    return linear


_UNITS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "sign": Sign,
    "int8": lambda: QuantActivation(8, signed=True, scale=_UNIT_RANGE / _LARGEST_CODE),
}
_WEIGHTS: dict[str, Callable[[int, int], nn.Linear]] = {"float": nn.Linear, "int8": _int8, "binary": _binary}
