"""A fully connected network whose units step between a few levels."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from lightning_polystep.functional.staircase import Rounding, Squash
from lightning_polystep.layers import Staircase
from models.initialisation import PIXELS, unit_preactivations_
from models.sizes import check_sizes

# Of the outputs of a staircase of 5 levels on pre-activations of root mean square 1.
_STAIRCASE = 0.2


class StaircaseMLP(nn.Sequential):
    """Fully connected layers with a staircase between them; by default the paper's ``floor(5 * sigmoid(x)) / 5``.

    Args:
        sizes: Features of the input, of each hidden layer, and of the output.
        levels: Steps per unit of the squash.
        rounding: ``"floor"`` or ``"round"``.
        squash: ``"sigmoid"``, ``"clamp"`` or ``"tanh"``.
        input_mean_square: Of the inputs, for first weights that make the first pre-activations about 1.

    Raises:
        ValueError: If ``sizes`` names fewer than two.

    Example:
        >>> import torch
        >>> from models import StaircaseMLP
        >>> StaircaseMLP((784, 128, 128, 10))(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])

    Source:
        arXiv 2605.01928, the staircase network.
    """

    def __init__(
        self,
        sizes: Sequence[int] = (784, 128, 128, 10),
        levels: int = 5,
        rounding: Rounding = "floor",
        squash: Squash = "sigmoid",
        input_mean_square: float = PIXELS,
    ) -> None:
        check_sizes(sizes, "StaircaseMLP")
        layers: list[nn.Module] = [nn.Flatten()]
        for index, (features_in, features_out) in enumerate(pairwise(sizes)):
            if index:
                layers.append(Staircase(levels, rounding=rounding, squash=squash))
            linear = nn.Linear(features_in, features_out)
            layers.append(unit_preactivations_(linear, _STAIRCASE if index else input_mean_square))
        super().__init__(*layers)
