"""The levels of an element-wise step function, and the exact numbers between which each of them holds."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_polystep.kernels.bisection import TooManyChangesError, bisect, check_dtype


def step_function_dictionary(
    function: Callable[[Tensor], Tensor],
    levels: int,
    dtype: torch.dtype = torch.float32,
    lowest: float = -1e18,
    highest: float = 1e18,
) -> tuple[Tensor, Tensor]:
    r"""Tabulate a monotone step function: :math:`f(x) = l_q,\ q = \#\{p : x \ge b_p\}`.

    Equal values of a monotone function have nothing else between them, so bisecting the floating-point numbers between
    unequal ones finds every boundary to the last bit: the table says exactly what the function does in ``dtype``.

    Args:
        function: Element-wise, never falling or never rising; gets and returns a tensor of one dimension. The numbers
            0.0 and -0.0 count as one.
        levels: How many the function may have at most. A function with more is not tabulated to the end.
        dtype: float32 or float64: what the network computes in.
        lowest: Numbers from here ...
        highest: ... to here are told apart.

    Returns:
        Boundaries b, (P,), ascending, and levels l, (P + 1,), each different from its neighbours; both in ``dtype``.

    Raises:
        TypeError: If ``dtype`` is neither float32 nor float64, or the function returns another one.
        ValueError: If the function has more than ``levels`` levels, is not monotone at the numbers tried, or returns
            another shape or a number that is not finite.

    Example:
        >>> import torch
        >>> from lightning_polystep.kernels import step_function_dictionary
        >>> step_function_dictionary(torch.sign, levels=3)
        (tensor([0.0000e+00, 1.4013e-45]), tensor([-1.,  0.,  1.]))
    """
    name = "step_function_dictionary"
    check_dtype(dtype, name)

    def values(_: Tensor, number: Tensor) -> Tensor:
        value = function(number)
        if value.shape != number.shape or not value.isfinite().all():
            raise ValueError(f"{name}: the function must be element-wise and finite.")
        if value.dtype != dtype:
            raise TypeError(f"{name}: the function returned {value.dtype} for {dtype}.")
        return value[:, None]

    ends = torch.tensor([lowest, highest], dtype=dtype)
    try:
        first, _, boundaries, above = bisect(values, ends[:1], ends[1:], levels - 1)
    except TooManyChangesError as error:
        raise ValueError(f"{name}: the function has more than {levels} levels.") from error
    table = torch.cat([first, above])[:, 0]
    rises = table.diff() > 0
    if not (rises.all() or not rises.any()):
        raise ValueError(f"{name}: the function rises and falls, at one of {boundaries.tolist()}.")
    return boundaries, table
