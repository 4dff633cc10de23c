"""Where a monotone function of a floating-point number changes its value, to the last bit."""

from collections.abc import Callable

import torch
from torch import Tensor

_BITS = {torch.float32: (torch.int32, 31), torch.float64: (torch.int64, 63)}


class TooManyChangesError(ValueError):
    """A function has more values than its caller expects; a continuous one has billions."""


def check_dtype(dtype: torch.dtype, name: str) -> None:
    """Refuse, as a TypeError, floats whose order is not known here."""
    if dtype not in _BITS:
        raise TypeError(f"{name}: dtype must be float32 or float64, got {dtype}.")


def bisect(
    function: Callable[[Tensor, Tensor], Tensor], lowest: Tensor, highest: Tensor, most: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find all numbers at which functions change their value, by halving all intervals whose ends differ at once.

    A function has to be the same between two numbers for which it is the same.

    Args:
        function: From the indices of functions, (K,) int64, and numbers, (K,), to the values there, (K, F).
        lowest: For each of D functions the first number, (D,), float32 or float64.
        highest: The last number, (D,).
        most: How many changes there may be.

    Returns:
        The values at ``lowest``, (D, F); and for each change, in the order of the numbers, the index of its function,
        (B,), the first number beyond it, (B,), and the values from there on, (B, F).

    Raises:
        TooManyChangesError: If there are more than ``most``; not all of them are looked for.
    """
    index = torch.arange(len(lowest))
    first, above = function(index, lowest), function(index, highest)
    below, low, high = first, _key(lowest), _key(highest)
    done: list[tuple[Tensor, Tensor, Tensor]] = []
    while True:
        open_ = (below != above).any(1)
        index, low, high, below, above = (x[open_] for x in (index, low, high, below, above))
        if most is not None and len(index) + sum(len(keys) for _, keys, _ in done) > most:
            raise TooManyChangesError
        middle = (low >> 1) + (high >> 1) + (low & high & 1)  # their sum might overflow
        close = middle == low
        done.append((index[close], high[close], above[close]))
        index, low, high, below, above, middle = (x[~close] for x in (index, low, high, below, above, middle))
        if not len(index):
            break
        value = function(index, _number(middle, lowest.dtype))
        index = index.repeat(2)
        low, high = torch.cat([low, middle]), torch.cat([middle, high])
        below, above = torch.cat([below, value]), torch.cat([value, above])
    indices, keys, values = (torch.cat(parts) for parts in zip(*done, strict=True))
    order = keys.argsort(stable=True)
    return first, indices[order], _number(keys[order], lowest.dtype), values[order]


def _key(number: Tensor) -> Tensor:
    """Number the floating-point numbers in their order, 0 at zero."""
    integer, sign = _BITS[number.dtype]
    bits = number.view(integer).long()
    return torch.where(bits < 0, -(bits & ((1 << sign) - 1)), bits)


def _number(key: Tensor, dtype: torch.dtype) -> Tensor:
    integer, _ = _BITS[dtype]
    size = key.abs().to(integer).view(dtype)
    return torch.where(key < 0, -size, size)
