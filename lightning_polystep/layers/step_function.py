"""What fast scoring may rely on of an element-wise hard layer."""

from typing import ClassVar

import torch
from torch import Tensor, nn


class StepFunction(nn.Module):
    """Base of element-wise layers whose output is a non-decreasing step function of one pre-activation.

    A subclass promises two things:

    * each output element depends on the input element at the same place alone, by one function for all elements;
    * that function is non-decreasing and takes the values of :meth:`levels`, bit for bit, and no others.

    So the exact floating-point boundaries between levels can be found by bisection, and a candidate changes an output
    only where it moves a pre-activation across one of them. NaN is outside the promise.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import Sign, StepFunction
        >>> isinstance(Sign(), StepFunction), Sign.elementwise
        (True, True)
        >>> Sign().levels(torch.float32)
        tensor([-1.,  1.])
    """

    elementwise: ClassVar[bool] = True

    def levels(self, dtype: torch.dtype) -> Tensor:
        """Return all output values for inputs of ``dtype``, in order of growing input.

        Args:
            dtype: Floating-point dtype of the input.

        Returns:
            Shape ``(L,)``, increasing, in ``dtype``. A level may be out of reach for every input.
        """
        raise NotImplementedError(f"{type(self).__name__} must return its output values from levels().")
