"""Whether scales that follow the weights may move now: while candidates are scored, they may not."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_frozen: ContextVar[bool] = ContextVar("scales_frozen", default=False)


@contextmanager
def frozen_scales() -> Iterator[None]:
    """Keep every scale as it is while the body runs, so that a candidate changes the codes of its own unit alone.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import QuantLinear
        >>> layer = QuantLinear(2, 1, follow=True)
        >>> before = layer.weight_scale.clone()
        >>> with frozen_scales(), torch.no_grad():
        ...     _ = layer.weight.mul_(2)
        ...     _ = layer(torch.ones(1, 2))
        >>> torch.equal(layer.weight_scale, before)
        True
    """
    token = _frozen.set(True)
    try:
        yield
    finally:
        _frozen.reset(token)


def scales_are_frozen() -> bool:
    """Tell whether the code runs inside :func:`frozen_scales`."""
    return _frozen.get()
