"""Probe snnTorch's neurons as their users wrote them: hidden state rewound per evaluation, surrogates out of vmap."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lightning_polystep.interop.adapters import Adapter, modules_of
from lightning_polystep.isolation import TensorState

_SURROGATES = "snntorch.surrogate"


class SnnTorchAdapter(Adapter):
    """Lets every candidate start from the membranes from which the commit pass started.

    snnTorch's neurons write their state at every call, also those without ``init_hidden``. A network that does not
    reset them carries its state from batch to batch: all candidates of a batch then start from the same carried state,
    and the state after the commit pass is the one that goes on.

    Surrogates define a backward that nothing calls here, by the old kind of ``autograd.Function`` that vmap refuses.
    Under vmap they are replaced by their forward, :math:`H(u) = 1` where u > 0; one candidate at a time runs them as
    they are. A ``spike_grad`` that is not from ``snntorch.surrogate`` stays, because its forward is not known.

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
        snnTorch 1.0.0, ``snntorch/_neurons`` and ``snntorch/surrogate.py``.
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

    @contextmanager
    def vectorised(self) -> Iterator[None]:
        """Replace snnTorch's surrogates, wherever a module of the tree holds one, by the hard step."""
        replaced = [
            (vars(part), name, value)
            for part in self._module.modules()
            for name, value in vars(part).items()
            if _is_surrogate(value)
        ]
        for table, name, _ in replaced:
            table[name] = _hard_step
        try:
            yield
        finally:
            for table, name, value in replaced:
                table[name] = value


def _is_surrogate(value: Any) -> bool:
    return callable(value) and getattr(value, "__module__", None) == _SURROGATES


def _hard_step(x: Tensor) -> Tensor:
    # As all of snntorch.surrogate compute it, float32 whatever the dtype of x.
    return (x > 0).float()
