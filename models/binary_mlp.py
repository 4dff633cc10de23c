"""Fully connected networks of binary weights and binary activations."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_polystep.functional import sign
from lightning_polystep.layers import QuantLinear, Sign, StepFunction
from models.initialisation import unit_preactivations_
from models.sizes import check_sizes

# Of ones and minus ones.
_BINARY = 1.0
# Root mean square of latent weights, in units of the scale at which their signs act.
_LATENT = 0.35


class BinaryPixels(StepFunction):
    """Return 1 for pixels of at least a threshold, -1 for darker ones.

    Args:
        threshold: Between the brightness of black, 0, and of white, 1.

    Example:
        >>> import torch
        >>> from models.binary_mlp import BinaryPixels
        >>> BinaryPixels()(torch.tensor([0.0, 0.5, 1.0]))
        tensor([-1.,  1.,  1.])
    """

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        """Take the sign, in the shape and dtype of ``x``."""
        return sign(x - self.threshold, name="BinaryPixels")

    def levels(self, dtype: torch.dtype) -> Tensor:
        """Return -1 and 1."""
        return torch.tensor([-1.0, 1.0], dtype=dtype)

    def extra_repr(self) -> str:
        """Show the threshold."""
        return f"threshold={self.threshold}"


class BinaryMLP(nn.Sequential):
    """Binary pixels, binary weights and a sign between layers, as the TFC and SFC 1W1A networks of BNN-PYNQ.

    The bias of a layer is the threshold of its signs. It stands for BNN-PYNQ's batch normalisation, which before a sign
    is a threshold as well (and is made one when such a network is compiled to hardware). Each weight acts by its sign
    alone, times a scale per output unit that stays as it was at first: pre-activations of root mean square 1. The
    latent weights start at a third of that size, from where few steps flip a weight whose flip pays.

    Args:
        sizes: Features of the input, of each hidden layer, and of the output; TFC is 784-64-64-64-10, SFC
            784-256-256-256-10.
        threshold: Of the pixels.

    Raises:
        ValueError: If ``sizes`` names fewer than two.

    Example:
        >>> import torch
        >>> from models import BinaryMLP
        >>> BinaryMLP((784, 64, 64, 64, 10))(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])

    Source:
        Umuroglu et al. 2017, *FINN*, arXiv 1612.07119; Brevitas, ``bnn_pynq``, TFC_1W1A and SFC_1W1A.
    """

    def __init__(self, sizes: Sequence[int] = (784, 64, 64, 64, 10), threshold: float = 0.5) -> None:
        check_sizes(sizes, "BinaryMLP")
        layers: list[nn.Module] = [nn.Flatten(), BinaryPixels(threshold)]
        for index, (features_in, features_out) in enumerate(pairwise(sizes)):
            if index:
                layers.append(Sign())
            linear = QuantLinear(features_in, features_out, weight_format="binary")
            unit_preactivations_(linear, _BINARY)
            with torch.no_grad():
                linear.weight.mul_(_LATENT)
            linear.weight_scale = torch.full((features_out,), features_in**-0.5)
            layers.append(linear)
        super().__init__(*layers)
