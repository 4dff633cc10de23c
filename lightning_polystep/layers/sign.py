"""A layer that outputs ones and minus ones."""

import torch
from torch import Tensor

from lightning_polystep.functional.heaviside import SpikeOn, check_step_options
from lightning_polystep.functional.non_differentiable import OnBackward
from lightning_polystep.functional.sign import sign
from lightning_polystep.layers.step_function import StepFunction


class Sign(StepFunction):
    """Return 1 where the input reaches 0, else -1; see :func:`~lightning_polystep.functional.sign`.

    Args:
        positive_on: Whether an input of exactly 0 gives 1 (``"ge"``) or -1 (``"gt"``).
        on_backward: Whether a gradient raises or is zero.

    Raises:
        ValueError: If an option is misspelt.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import Sign
        >>> Sign()(torch.tensor([-2.0, 0.0, 3.0]))
        tensor([-1.,  1.,  1.])
    """

    def __init__(self, *, positive_on: SpikeOn = "ge", on_backward: OnBackward = "raise") -> None:
        super().__init__()
        check_step_options(positive_on, on_backward, "Sign", option="positive_on")
        self.positive_on = positive_on
        self.on_backward = on_backward

    def forward(self, x: Tensor) -> Tensor:
        """Take the sign, in the shape and dtype of ``x``."""
        return sign(x, positive_on=self.positive_on, on_backward=self.on_backward, name=f"Sign({self.extra_repr()})")

    def levels(self, dtype: torch.dtype) -> Tensor:
        """Return -1 and 1."""
        return torch.tensor([-1.0, 1.0], dtype=dtype)

    def extra_repr(self) -> str:
        """Show what happens at a tie."""
        return f"positive_on={self.positive_on!r}"
