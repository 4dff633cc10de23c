"""Constants of neurons: leaks, thresholds and time constants have bounds and a scale of their own.

They are no weights. A leak lives in [0, 1], where most layers clamp it: beyond the clamp every value is the same, so a
candidate there tells nothing, and what has got there does not come back. A radius fit for weights would throw it from
one end to the other.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import nn

from lightning_polystep.interop.adapters import comes_from


class Constant(NamedTuple):
    """How a constant of neurons is searched.

    Args:
        scale: How far one unit of radius moves it.
        low: The least value that differs from those below it.
        high: The largest value that differs from those above it.
    """

    scale: float
    low: float = -math.inf
    high: float = math.inf


# A tenth of the way from no memory to all of it.
_SHARE = Constant(0.1, 0.0, 1.0)
# These relative to their size; none is below 0.
_THRESHOLD, _TIME = Constant(0.3, 0.0), Constant(0.1, 0.0)
_LEVEL = Constant(0.3)
_OTHER = Constant(1.0)

_KINDS = {
    **dict.fromkeys(("alpha", "beta", "leak", "decay", "alpha_mem", "alpha_syn"), _SHARE),
    **dict.fromkeys(("threshold", "v_th", "v_threshold", "spike_threshold"), _THRESHOLD),
    **dict.fromkeys(("tau", "tau_mem", "tau_syn", "tau_mem_inv", "tau_syn_inv", "tau_adapt_inv"), _TIME),
    **dict.fromkeys(("v_leak", "v_reset", "graded_spikes_factor"), _LEVEL),
}
_RELATIVE = (_THRESHOLD, _TIME, _LEVEL)
_LIBRARIES = ("snntorch", "norse", "spikingjelly", "sinabs", "lava")
_NEURONS = ("neuron", "lif", "lsnn", "izhikevich", "spiking", "leaky")


def constant_of(owner: nn.Module, attribute: str, parameter: nn.Parameter) -> Constant | None:
    """Return how a parameter is searched if it is a constant of neurons; None for any other.

    Neurons of this package say so by ``search_scale``. Of other modules, one number or one per neuron counts by what it
    is called, and in the neurons of a known library whatever it is called.

    Args:
        owner: The module that holds it.
        attribute: Its name there.
        parameter: The parameter.

    Example:
        >>> from lightning_polystep.layers import LIF
        >>> neurons = LIF(beta=0.9, threshold=2.0, learn_beta=True, learn_threshold=True)
        >>> constant_of(neurons, "beta", neurons.beta)
        Constant(scale=0.1, low=0.0, high=1.0)
        >>> constant_of(neurons, "threshold", neurons.threshold)
        Constant(scale=0.6, low=0.0, high=inf)
    """
    declared = getattr(type(owner), "search_scale", {})
    if attribute not in declared and not _is_of_neurons(owner, attribute, parameter):
        return None
    kind, values = _KINDS.get(attribute, _OTHER), parameter.detach().double()
    scale, (low, high) = declared.get(attribute, kind.scale), kind[1:]
    size = float(values.square().mean().sqrt()) if kind in _RELATIVE and values.numel() else 1.0
    # Who starts a leak above 1, or a threshold below 0, means something else by it, unless the layer clamps it.
    clamped = kind is _SHARE and (attribute in declared or comes_from(owner, "snntorch"))
    low = low if clamped or bool((values >= low).all()) else -math.inf
    high = high if clamped or bool((values <= high).all()) else math.inf
    return Constant(scale * (size if 0 < size < math.inf else 1.0), low, high)


def _is_of_neurons(owner: nn.Module, attribute: str, parameter: nn.Parameter) -> bool:
    # One number per neuron: a vector, or one of channels with axes of 1 behind it.
    if attribute in {"weight", "bias"} or max(parameter.shape, default=1) < parameter.numel():
        return False
    return attribute in _KINDS or is_foreign_neuron(owner)


def is_foreign_neuron(module: nn.Module) -> bool:
    """Tell whether a module is a layer of neurons of a library that is known by name."""
    return any(
        kind.__module__.partition(".")[0] in _LIBRARIES and any(word in kind.__module__.lower() for word in _NEURONS)
        for kind in type(module).__mro__
    )
