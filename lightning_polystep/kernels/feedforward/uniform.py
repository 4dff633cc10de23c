"""Uniform quantisers among step functions: arithmetic finds their outcome, where a table has to be searched."""

from typing import Any

import torch
from torch import Tensor

from lightning_polystep.kernels.simd import borrowing, where

# Adding this rounds a number to the nearest whole one, if it is at most the second of these.
_SHIFT = {torch.float32: 1.5 * 2.0**23, torch.float64: 1.5 * 2.0**52}
_LARGEST_CODE = 2**21


def uniform_quantiser(boundaries: Tensor, levels: Tensor) -> Tensor:
    r"""Return what describes a step function that is a uniform quantiser.

    .. math:: f(x) = s \operatorname{round}(\operatorname{clamp}(x / s, l, h))

    Two monotone functions that agree right below and at each boundary of one of them agree everywhere, so the answer
    holds for every number, to the bit.

    Args:
        boundaries: Of the step function, (D, P), ascending.
        levels: Of the step function, (D, P + 1).

    Returns:
        s, l, h, and a number that rounds by being added, (4,), in the dtype of the levels; all 0 where the step
        function is something else.

    Example:
        >>> from lightning_polystep.kernels import step_function_dictionary
        >>> step = torch.tensor(0.5)
        >>> boundaries, levels = step_function_dictionary(lambda x: (x / step).round().clamp(0, 2) * step, levels=3)
        >>> uniform_quantiser(boundaries[None], levels[None])
        tensor([5.0000e-01, 0.0000e+00, 2.0000e+00, 1.2583e+07])
        >>> uniform_quantiser(boundaries[None] + 0.1, levels[None])
        tensor([0., 0., 0., 0.])
    """
    other, zero = levels.new_zeros(4), (levels == 0).nonzero()
    if len(levels) != 1 or levels.shape[1] < 2 or len(zero) != 1:
        return other
    here, last = int(zero[0, 1]), levels.shape[1] - 1
    step = levels[0, here + 1] if here < last else -levels[0, here - 1]
    codes = torch.arange(-here, last - here + 1).to(levels)
    if last > _LARGEST_CODE or not step > 0 or not torch.equal(codes * step, levels[0]):
        return other
    below = boundaries[0].nextafter(boundaries.new_tensor(-torch.inf))
    for numbers, expected in ((below, codes[:-1]), (boundaries[0], codes[1:])):
        if not torch.equal((numbers / step).clamp(codes[0], codes[-1]).round(), expected):
            return other
    return torch.stack([step, codes[0], codes[-1], levels.new_tensor(_SHIFT[levels.dtype])])


@borrowing
def code_of(x: Any, step: Any, lowest: Any, highest: Any, shift: Any) -> Any:
    """Return the codes round(clamp(x / s, l, h)) of a vector, from vectors of :func:`uniform_quantiser`'s numbers."""
    code = x / step
    code = where(lowest >= code, lowest, code)
    code = where(code >= highest, highest, code)
    return (code + shift) - shift
