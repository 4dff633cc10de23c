"""Observe: numbers that leave the tape for Python or another library, and tensors that are given other memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor
from torch.overrides import TorchFunctionMode

_READS = {Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.data_ptr, Tensor.__dlpack__}
_DATA: Any = Tensor.data
_SET_DATA = _DATA.__set__


class Leaving(TorchFunctionMode):
    """Tells of what no operation of torch is: reading the numbers of a tensor at once, and ``tensor.data = other``.

    Args:
        read: Called with a tensor whose numbers are read.
        assign: Called with a tensor, what its data become, and a function that does it.

    Example:
        >>> import torch
        >>> seen = []
        >>> with Leaving(seen.append, lambda tensor, value, do: do()):
        ...     numbers = torch.ones(2).tolist()
        >>> seen
        [tensor([1., 1.])]
    """

    serves_tape: ClassVar[bool] = True

    def __init__(
        self, read: Callable[[Tensor], None], assign: Callable[[Tensor, Tensor, Callable[[], Any]], None]
    ) -> None:
        super().__init__()
        self._read = read
        self._assign = assign

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch."""
        del types
        kwargs = kwargs or {}
        if function in _READS:
            self._read(args[0])
        elif function == _SET_DATA:
            return self._assign(args[0], args[1], lambda: function(*args))
        return function(*args, **kwargs)
