"""A layer of activations with a few levels."""

import torch
from torch import Tensor

from lightning_polystep.functional.non_differentiable import OnBackward
from lightning_polystep.functional.staircase import (
    Rounding,
    Squash,
    check_staircase_options,
    staircase,
    staircase_levels,
)
from lightning_polystep.layers.step_function import StepFunction


class Staircase(StepFunction):
    """Squash the input and round it to a few levels; see :func:`~lightning_polystep.functional.staircase`.

    Args:
        levels: Number of steps per unit; kept as ``num_levels``.
        rounding: ``"floor"`` or ``"round"``.
        squash: ``"sigmoid"``, ``"clamp"`` (both to [0, 1]) or ``"tanh"`` (to [-1, 1]).
        on_backward: Whether a gradient raises or is zero.

    Raises:
        ValueError: If ``levels`` is below 1 or an option is misspelt.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import Staircase
        >>> Staircase()(torch.tensor([-3.0, 0.0, 1.0, 3.0]))
        tensor([0.0000, 0.4000, 0.6000, 0.8000])
    """

    def __init__(
        self,
        levels: int = 5,
        *,
        rounding: Rounding = "floor",
        squash: Squash = "sigmoid",
        on_backward: OnBackward = "raise",
    ) -> None:
        super().__init__()
        check_staircase_options(levels, rounding, squash, on_backward, "Staircase")
        self.num_levels = levels
        self.rounding = rounding
        self.squash = squash
        self.on_backward = on_backward

    def forward(self, x: Tensor) -> Tensor:
        """Round, in the shape and dtype of ``x``."""
        return staircase(
            x,
            self.num_levels,
            rounding=self.rounding,
            squash=self.squash,
            on_backward=self.on_backward,
            name=f"Staircase({self.extra_repr()})",
        )

    def levels(self, dtype: torch.dtype) -> Tensor:
        """Return the multiples of 1 / ``num_levels`` in the range of the squash."""
        return staircase_levels(self.num_levels, self.squash, dtype)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"levels={self.num_levels}, rounding={self.rounding!r}, squash={self.squash!r}"
