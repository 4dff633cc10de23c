"""Transport: how the costs of a particle's vertices become weights. One function per file."""

from collections.abc import Callable

from torch import Tensor

from lightning_polystep.transport.softmax import softmax_transport

TRANSPORTS: dict[str, Callable[[Tensor, float], Tensor]] = {"softmax": softmax_transport}

__all__ = ["TRANSPORTS", "softmax_transport"]
