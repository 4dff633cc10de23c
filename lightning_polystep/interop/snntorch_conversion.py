"""Convert sequential snnTorch networks to this package's layers, and back, spike for spike."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Literal

from torch import Tensor, nn

from lightning_polystep.interop.adapters import comes_from
from lightning_polystep.layers import LIF, LastMembrane, SpikeCount, SpikeRate

Readout = Literal["count", "rate", "membrane", "none"]

_READOUTS: dict[str, type[nn.Module]] = {"count": SpikeCount, "rate": SpikeRate, "membrane": LastMembrane}
# Modules without state that treat every sample alike, with or without a time axis in front.
_SHAPELESS = (nn.Linear, nn.ReLU, nn.Identity)


class ConversionError(ValueError):
    """A network holds something that the other library's layers cannot express."""


def from_snntorch(
    network: nn.Module, *, num_steps: int | None = None, readout: Readout = "count", copy: bool = True
) -> nn.Sequential:
    r"""Convert an ``nn.Sequential`` of ``nn.Linear`` and ``snntorch.Leaky`` to layers of this package.

    The converted network takes all time steps at once, ``(T, N, ...)``, or, with ``num_steps``, a constant input
    ``(N, ...)``; it starts from rest at every call, as the original does after a reset of its states. Its spikes are
    those of ``snntorch.Leaky``, :math:`s_t = 1` where :math:`v_t > \theta`, with the same reset and delay, bit for bit
    on equal currents. (A Linear layer adds up all steps at once here, which may round a current otherwise than one step
    at a time does.)

    Args:
        network: As snnTorch's users write it; ``init_hidden`` or not, ``output`` on the last neuron or not.
        num_steps: T, for a constant input.
        readout: What is done with the last spikes: "count" and "rate" per neuron, the last "membrane", or "none".
        copy: Whether the result has parameters of its own; if not, the ``nn.Linear`` layers are the original ones.
            Leaks and thresholds are always copied.

    Returns:
        The converted network.

    Raises:
        ConversionError: If the network has a ``forward`` of its own, or holds another neuron than ``Leaky``, or one
            with inhibition, a quantised state, graded spikes or a spike function of the user's.

    Example:
        >>> import snntorch, torch
        >>> spiking = nn.Sequential(nn.Linear(4, 3), snntorch.Leaky(beta=0.9, init_hidden=True))
        >>> from_snntorch(spiking, num_steps=5)(torch.rand(2, 4)).shape
        torch.Size([2, 3])

    Source:
        snnTorch 1.0.0, ``snntorch/_neurons/leaky.py``.
    """
    if type(network).forward is not nn.Sequential.forward:
        raise own_forward(network)
    if readout not in (*_READOUTS, "none"):
        raise ConversionError(f'readout must be "count", "rate", "membrane" or "none", got {readout!r}.')
    leaves = leaves_of(network)
    neurons = [place for place, leaf in enumerate(leaves) if comes_from(leaf, "snntorch")]
    if not neurons:
        raise ConversionError(
            "The network holds no snntorch.Leaky, so there is nothing to convert: give the nn.Sequential that holds "
            "the neurons themselves."
        )
    if readout != "none" and neurons[-1] != len(leaves) - 1:
        raise ConversionError(f'The network ends in {leaves[-1]}, not in a neuron to read out: use readout="none".')
    converted: list[nn.Module] = []
    for place, leaf in enumerate(leaves):
        if place in neurons:
            last = place == neurons[-1]
            steps = num_steps if place == neurons[0] else None
            converted.append(_to_lif(leaf, steps, return_membrane=last and readout == "membrane"))
        elif type(leaf) in _SHAPELESS or (place < neurons[0] and num_steps is not None and type(leaf) is nn.Flatten):
            converted.append(clone(leaf) if copy else leaf)
        else:
            raise ConversionError(
                f"{leaf} cannot be given a time axis: only Linear, ReLU and Identity are converted"
                + (", and Flatten at the front with num_steps" if type(leaf) is nn.Flatten else "")
                + '. Train the network as it is with Trainer(strategy="polystep").'
            )
    if readout != "none":
        converted.append(_READOUTS[readout]())
    return _in_mode(converted, network)


def to_snntorch(network: nn.Module, *, copy: bool = True) -> nn.Sequential:
    """Convert back: an ``nn.Sequential`` of Linear and :class:`~lightning_polystep.layers.LIF` to snnTorch.

    The result takes one time step per call and keeps its states (``init_hidden=True``), and its last neuron returns
    ``(spikes, membrane)``: call it T times after a reset of the states. A readout at the end is left out.

    Args:
        network: As :func:`from_snntorch` returns it.
        copy: Whether the result has parameters of its own; if not, the ``nn.Linear`` layers are the original ones.

    Returns:
        The snnTorch network.

    Raises:
        ConversionError: For ``spike_on="ge"``, which snnTorch does not have, an immediate reset to zero with a
            threshold below 0, and other layers.

    Example:
        >>> import torch
        >>> spiking = nn.Sequential(nn.Linear(4, 3), LIF(0.9, spike_on="gt"), SpikeCount())
        >>> spikes, membrane = to_snntorch(spiking)(torch.rand(2, 4))
        >>> spikes.shape
        torch.Size([2, 3])
    """
    if type(network).forward is not nn.Sequential.forward:
        raise own_forward(network)
    leaves = leaves_of(network)
    if leaves and type(leaves[-1]) in _READOUTS.values():
        leaves = leaves[:-1]
    converted: list[nn.Module] = []
    for place, leaf in enumerate(leaves):
        if type(leaf) is LIF:
            converted.append(_to_leaky(leaf, output=place == len(leaves) - 1))
        elif type(leaf) in (*_SHAPELESS, nn.Flatten):
            converted.append(clone(leaf) if copy else leaf)
        else:
            raise ConversionError(
                f"{leaf} has no counterpart in snnTorch that computes the same: convert the parts before and behind it."
            )
    return _in_mode(converted, network)


def leaves_of(network: nn.Module) -> list[nn.Module]:
    """Return the layers of nested Sequentials, in the order in which they run.

    Raises:
        ConversionError: If one of them has a forward of its own.
    """
    if not isinstance(network, nn.Sequential):
        return [network]
    if type(network).forward is not nn.Sequential.forward:
        raise own_forward(network)
    return [leaf for child in network for leaf in leaves_of(child)]


def _in_mode(layers: list[nn.Module], network: nn.Module) -> nn.Sequential:
    """Put layers in a row; new ones, which have no mode of their own, are in that of the network."""
    for layer in layers:
        if isinstance(layer, LIF | SpikeCount | SpikeRate | LastMembrane) or comes_from(layer, "snntorch"):
            layer.train(network.training)
    row = nn.Sequential(*layers)
    row.training = network.training
    return row


def own_forward(network: nn.Module) -> ConversionError:
    """Return the error about a class whose ``forward`` is its own: its layers are known, but not in which order."""
    return ConversionError(
        f"{type(network).__name__} has a forward of its own, which cannot be read: put its layers into an "
        "nn.Sequential, in the order in which forward calls them, and convert that; or train the network as it is with "
        'Trainer(strategy="polystep").'
    )


def clone(layer: nn.Module) -> nn.Module:
    """Return a copy of a layer that shares no tensor with it."""
    return deepcopy(layer)


def _to_lif(neuron: nn.Module, num_steps: int | None, *, return_membrane: bool) -> LIF:
    import snntorch
    from snntorch._neurons.neurons import SpikingNeuron

    leaky: Any = neuron
    if type(neuron) is not snntorch.Leaky:
        raise ConversionError(
            f"{type(neuron).__name__} is not snntorch.Leaky, the one neuron that is converted: use Leaky, build the "
            "network of lightning_polystep.layers (Synaptic, RLIF), or train it as it is with "
            'Trainer(strategy="polystep").'
        )
    known = getattr(leaky.spike_grad, "__module__", None) == "snntorch.surrogate"
    refused = {
        "inhibition": bool(leaky.inhibition),
        "state_quant": bool(leaky.state_quant),
        "learn_graded_spikes_factor": isinstance(leaky.graded_spikes_factor, nn.Parameter),
        "graded_spikes_factor": not bool((leaky.graded_spikes_factor == 1).all()),
        "a spike_grad that is not from snntorch.surrogate": not known
        and leaky.spike_grad is not SpikingNeuron._surrogate_bypass,
    }
    for name, given in refused.items():
        if given:
            raise ConversionError(
                f"snntorch.Leaky with {name} has no counterpart here that computes the same: leave it out, or train "
                'the network as it is with Trainer(strategy="polystep").'
            )
    reset_mechanism = list(SpikingNeuron.reset_dict)[int(leaky.reset_mechanism_val)]
    _check_reset(reset_mechanism, leaky.reset_delay, leaky.threshold)
    return LIF(
        _plain(leaky.beta),
        _plain(leaky.threshold),
        num_steps=num_steps,
        reset_mechanism=reset_mechanism,
        reset_delay=bool(leaky.reset_delay),
        spike_on="gt",
        learn_beta=isinstance(leaky.beta, nn.Parameter),
        learn_threshold=isinstance(leaky.threshold, nn.Parameter),
        return_membrane=return_membrane,
    )


def _to_leaky(layer: LIF, *, output: bool) -> nn.Module:
    import snntorch

    if layer.spike_on != "gt":
        raise ConversionError(
            f'{layer} fires at the threshold (spike_on="ge"), where snnTorch\'s neurons do not: use spike_on="gt".'
        )
    _check_reset(layer.reset_mechanism, layer.reset_delay, layer.threshold)
    return snntorch.Leaky(
        beta=_plain(layer.beta),
        threshold=_plain(layer.threshold),
        init_hidden=True,
        learn_beta=isinstance(layer.beta, nn.Parameter),
        learn_threshold=isinstance(layer.threshold, nn.Parameter),
        reset_mechanism=layer.reset_mechanism,
        reset_delay=layer.reset_delay,
        output=output,
    )


def _check_reset(reset_mechanism: str, reset_delay: bool, threshold: Tensor) -> None:
    """Refuse the one case in which the two libraries disagree; see ``functional/lif.py``."""
    if reset_mechanism == "zero" and not reset_delay and bool((threshold < 0).any()):
        raise ConversionError(
            "An immediate reset to zero with a threshold below 0 doubles membranes in snnTorch and clears them here."
        )


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()
