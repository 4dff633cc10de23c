"""Scales of this package's own layers that follow the training: moved between two steps, frozen within one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_polystep.functional.quantisers import activation_scale
from lightning_polystep.interop.adapters import Adapter
from lightning_polystep.layers.following import frozen_scales, scales_are_frozen
from lightning_polystep.layers.quantised import QuantisedWeight
from lightning_polystep.layers.quantisers import QuantActivation
from lightning_polystep.tape.pause import unrecorded

# As Brevitas averages its statistics, and Calibrate's percentile.
_MOMENTUM = 0.1
_PERCENTILE = 99.9
# Enough for that percentile, and a quarter of a millisecond to sort.
_MOST_VALUES = 2**14


class FollowingScales(Adapter):
    """Moves the scales of layers that were built with ``follow=True``, and freezes them while candidates are scored.

    A weight's scale is set from the weight by its layer, at every pass that counts. An activation's scale moves by a
    tenth of the way to the percentile of what the commit pass before showed, in training mode: one scale for the whole
    of a pass, and for all its candidates.

    Args:
        module: Root of the tree that holds the layers.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2), QuantActivation(scale=1.0, follow=True))
        >>> follower = FollowingScales(network)
        >>> for _ in range(2):
        ...     with follower.observing():
        ...         _ = network(torch.randn(8, 2))
        >>> float(network[1].scale) < 1.0
        True
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._scales: dict[QuantisedWeight, Tensor | None] = {}

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Move the scales of activations, and measure for the next move."""
        for part in self._module.modules():
            if isinstance(part, QuantActivation) and part.follow and bool(part.next_scale > 0):
                part.scale = torch.lerp(part.scale, part.next_scale.to(part.scale), _MOMENTUM)
                part.next_scale = torch.zeros_like(part.next_scale)
        with ExitStack() as hooks:
            for part in self._module.modules():
                quantiser = part.input_quant if isinstance(part, QuantisedWeight) else part
                if isinstance(quantiser, QuantActivation) and quantiser.follow:
                    hooks.callback(part.register_forward_pre_hook(self._measuring(quantiser)).remove)
            yield

    def probing(self) -> AbstractContextManager[None]:
        """Freeze all scales, at what the commit pass has made of them."""
        weights = (part for part in self._module.modules() if isinstance(part, QuantisedWeight))
        self._scales = {part: part.weight_scale for part in weights if part.follow}
        return frozen_scales()

    def rewind(self) -> None:
        """Give weights the scales of the commit pass, not those that it began with."""
        for part, scale in self._scales.items():
            part.weight_scale = scale

    def _measuring(self, quantiser: QuantActivation) -> Any:
        def measure(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            if scales_are_frozen() or not quantiser.training or not inputs or not quantiser.calibrated:
                return
            with unrecorded():
                values = inputs[0].detach().flatten()
                values = values[:: max(1, len(values) // _MOST_VALUES)]
                if bool(values.isfinite().any()):
                    scale = activation_scale(values, quantiser.bits, quantiser.signed, _PERCENTILE)
                    # Called several times in a pass, as over time steps: the widest call counts.
                    quantiser.next_scale = torch.maximum(quantiser.next_scale, scale.to(quantiser.next_scale))

        return measure


def follows(module: nn.Module) -> bool:
    """Tell whether a module tree holds a layer whose scale follows."""
    return any(isinstance(part, QuantisedWeight | QuantActivation) and part.follow for part in module.modules())
