"""Probe snnTorch's neurons as their users wrote them: hidden state is rewound for every evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lightning_polystep.interop.adapters import Adapter, modules_of
from lightning_polystep.isolation import TensorState


class SnnTorchAdapter(Adapter):
    """Lets every candidate start from the membranes from which the commit pass started.

    snnTorch's neurons write their state at every call, also those without ``init_hidden``. A network that does not
    reset them carries its state from batch to batch: all candidates of a batch then start from the same carried state,
    and the state after the commit pass is the one that goes on.

    Args:
        module: Root of the tree that holds the neurons.

    Example:
        >>> import snntorch, torch
        >>> neuron = snntorch.Leaky(beta=0.9, init_hidden=True)
        >>> adapter = SnnTorchAdapter(neuron)
        >>> adapter.start()
        >>> _ = neuron(torch.ones(2))
        >>> adapter.rewind()
        >>> neuron.mem
        tensor([])

    Source:
        snnTorch 1.0.0, ``snntorch/_neurons``.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._state = TensorState(())

    def start(self) -> None:
        """Remember the hidden state of all neurons."""
        self._state = TensorState(modules_of(self._module, "snntorch").values())

    def rewind(self) -> None:
        """Put the remembered hidden state back."""
        self._state.restore()

    def held(self) -> dict[str, str]:
        """Return parameters that their neuron never reads: ``beta`` of those that compute it from ``tau``."""
        return {
            f"{name}.{attribute}" if name else attribute: "its neuron computes it from others, and never reads it"
            for name, neuron in modules_of(self._module, "snntorch").items()
            for attribute, _ in neuron.named_parameters(recurse=False)
            if isinstance(getattr(type(neuron), attribute, None), property)
        }

    @contextmanager
    def probing(self) -> Iterator[None]:
        """Put back the state of neurons outside the tree, which ``snntorch.utils.reset`` clears with all others."""
        from snntorch import SpikingNeuron

        own = set(self._module.modules())
        others = TensorState(neuron for neuron in SpikingNeuron.instances if neuron not in own)
        try:
            yield
        finally:
            others.restore()
