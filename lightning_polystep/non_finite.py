"""Numbers that are not finite, noticed before a hard layer turns them into ordinary ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_polystep.interop.adapters import comes_from
from lightning_polystep.layers import ArgmaxAttention, HardMoE, SlotArgmaxAttention, StepFunction
from lightning_polystep.layers.lif import SpikingNeuron
from lightning_polystep.layers.quantised import QuantisedWeight
from lightning_polystep.sites import looking_on

_HARD = (SpikingNeuron, StepFunction, QuantisedWeight, ArgmaxAttention, SlotArgmaxAttention, HardMoE)


@dataclass
class HardInputs:
    """What the hard layers of a pass were given, summed up: a sum is finite unless one of its numbers is not.

    A comparison with NaN is false, so a neuron does not fire, a sign is -1, and the loss looks like any other.
    Elsewhere a number that is not finite reaches the loss, unless the user's code means it not to.
    """

    _sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, inputs: tuple[Any, ...]) -> None:
        """Take note of what a layer is called with.

        Args:
            name: Of the layer.
            inputs: Its arguments, of which tensors of floats count.
        """
        for value in inputs:
            if isinstance(value, Tensor) and value.is_floating_point():
                # In no less than float32: a sum of many halves may overflow.
                total = value.detach().sum(dtype=torch.promote_types(value.dtype, torch.float32))
                known = self._sums.get(name)
                # In place: see `layers.sliced.Rows` for what many small tensors between large ones do.
                self._sums[name] = total if known is None else known.add_(total.to(known))

    def non_finite(self) -> list[str]:
        """Return the names of the layers that were given something that is not finite, in the order of their calls."""
        totals = [total.double() for total in self._sums.values()]
        if not totals or bool(torch.stack([total.to(totals[0].device) for total in totals]).isfinite().all()):
            return []
        return [name for name, total in self._sums.items() if not bool(total.isfinite())]


@contextmanager
def noticing(module: nn.Module) -> Iterator[HardInputs]:
    """Sum up what the hard layers of a module are given while the body runs it once; probes do not count.

    Args:
        module: Its layers of this package and snnTorch's neurons are looked at.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import Sign
        >>> network = nn.Sequential(nn.Linear(2, 2), Sign())
        >>> with noticing(network) as seen:
        ...     signs = network(torch.tensor([[1.0, torch.nan]]))
        >>> signs.isfinite().all(), seen.non_finite()
        (tensor(True), ['1'])
    """
    seen = HardInputs()

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        @looking_on
        def hook(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen.add(name, inputs)

        return hook

    hard = [(n, part) for n, part in module.named_modules() if isinstance(part, _HARD) or _is_snntorch_neuron(part)]
    handles = [part.register_forward_pre_hook(note(name)) for name, part in hard]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _is_snntorch_neuron(part: nn.Module) -> bool:
    return comes_from(part, "snntorch") and next(part.children(), None) is None
