"""A layer that outputs zeros and ones."""

import torch
from torch import Tensor

from lightning_polystep.functional.heaviside import SpikeOn, check_step_options, heaviside
from lightning_polystep.functional.non_differentiable import OnBackward
from lightning_polystep.layers.step_function import StepFunction


class Heaviside(StepFunction):
    """Return 1 where the input reaches 0, else 0; see :func:`~lightning_polystep.functional.heaviside`.

    Args:
        spike_on: Whether an input of exactly 0 gives 1 (``"ge"``) or 0 (``"gt"``).
        on_backward: Whether a gradient raises or is zero.

    Raises:
        ValueError: If an option is misspelt.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import Heaviside
        >>> Heaviside()(torch.tensor([-1.0, 0.0, 2.0]))
        tensor([0., 1., 1.])
    """

    def __init__(self, *, spike_on: SpikeOn = "ge", on_backward: OnBackward = "raise") -> None:
        super().__init__()
        check_step_options(spike_on, on_backward, "Heaviside")
        self.spike_on = spike_on
        self.on_backward = on_backward

    def forward(self, x: Tensor) -> Tensor:
        """Step, in the shape and dtype of ``x``."""
        return heaviside(
            x, spike_on=self.spike_on, on_backward=self.on_backward, name=f"Heaviside({self.extra_repr()})"
        )

    def levels(self, dtype: torch.dtype) -> Tensor:
        """Return 0 and 1."""
        return torch.tensor([0.0, 1.0], dtype=dtype)

    def extra_repr(self) -> str:
        """Show what happens at a tie."""
        return f"spike_on={self.spike_on!r}"
