"""Read graphs of NIR, the Neuromorphic Intermediate Representation, as networks that PolyStep trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_polystep.exports.nir_graph import TIME_STEP
from lightning_polystep.interop.snntorch_conversion import ConversionError
from lightning_polystep.layers import LIF, OverTime, SpikeCount, SpikeRate

if TYPE_CHECKING:
    import nir

# Files hold float32 numbers too: an input gain that close to 1 is 1.
_ONE = 1e-6


def from_nir(
    graph: nir.NIRGraph, *, num_steps: int | None = None, dt: float | None = None, readout: bool = True
) -> nn.Sequential:
    r"""Read a NIR graph as an ``nn.Sequential`` that takes all time steps at once.

    A neuron with :math:`\tau \dot v = -v + R I` becomes :class:`~lightning_polystep.layers.LIF` with
    :math:`\beta = 1 - dt / \tau`, in units in which its input has a gain of 1: :math:`\theta` is divided by
    :math:`R\, dt / \tau`. It fires above its threshold (``spike_on="gt"``) and is reset to zero at once. A sum of
    spikes behind which neurons without memory fire above a half is their max-pooling.

    Args:
        graph: What ``nir.read`` returns: one input, one output, and a single path from one to the other.
        num_steps: T, for a constant input ``(N, ...)``; None takes that of the graph's metadata, and without one the
            network takes ``(T, N, ...)``. 0 asks for the time axis in any case.
        dt: Length of a time step; that of the graph's metadata by default, else 1e-4 as in snnTorch's reader.
        readout: Whether to end in the sum or the mean over time that the metadata name.

    Returns:
        The network, in float32; weights are parameters, leaks and thresholds buffers.

    Raises:
        ConversionError: If the graph branches or recurs, or a node has no layer here: in one sentence.

    Example:
        >>> from lightning_polystep.exports import to_nir
        >>> network = nn.Sequential(nn.Linear(4, 3), LIF(0.9, num_steps=5, spike_on="gt"), SpikeCount())
        >>> from_nir(to_nir(network, (4,)))
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
          (1): LIF(beta=0.9, threshold=1, num_steps=5, reset_mechanism='zero', spike_on='gt')
          (2): SpikeCount()
        )

    Source:
        Pedersen et al. 2024, *Neuromorphic intermediate representation*, Nature Communications 15; ``nir`` 1.0.8.
    """
    metadata = graph.metadata if isinstance(graph.metadata, dict) else {}
    steps = int(metadata.get("num_steps", 0)) if num_steps is None else num_steps
    step = float(metadata.get("dt", TIME_STEP)) if dt is None else dt
    layers: list[nn.Module] = []
    timed, path = steps == 0, _path(graph)
    for (name, node), following in zip(path, [*path[1:], ("", None)], strict=True):
        kind = type(node).__name__
        if (
            layers
            and type(layers[-1]) is OverTime
            and type(layers[-1].layer) is nn.MaxPool2d
            and _fires_above_a_half(node, step)
        ):
            continue
        if kind == "SumPool2d" and layers and type(layers[-1]) is LIF and _fires_above_a_half(following[1], step):
            layers.append(OverTime(nn.MaxPool2d(_size(node.kernel_size), _size(node.stride))))
        elif kind in ("LIF", "IF"):
            layers.append(_neurons(name, node, step, None if timed else steps))
            timed = True
        elif kind == "Flatten":
            layers.append(_flatten(name, node, timed))
        elif kind in _WEIGHTED:
            layer = _WEIGHTED[kind](node)
            layers.append(OverTime(layer) if timed and kind not in ("Affine", "Linear") else layer)
        else:
            raise ConversionError(f"{name}: a node {kind} of NIR has no layer here that computes the same.")
    if readout and "readout" in metadata:
        layers.append(SpikeRate() if _text(metadata["readout"]) == "mean" else SpikeCount())
    return nn.Sequential(*layers)


def _path(graph: nir.NIRGraph) -> list[tuple[str, Any]]:
    """Return the nodes between input and output, in order."""
    following: dict[str, list[str]] = {}
    for source, target in graph.edges:
        following.setdefault(source, []).append(target)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ConversionError(
            f"The graph has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs: one of each is read."
        )
    place, seen = next(iter(graph.inputs)), list[str]()
    while place not in graph.outputs:
        targets = following.get(place, [])
        if len(targets) != 1 or targets[0] in seen:
            raise ConversionError(
                f"{place} leads to {len(targets)} nodes ({', '.join(targets)}): the graph branches or recurs, and "
                "only a single path from input to output is read."
            )
        place = targets[0]
        seen.append(place)
    if len(seen) + 1 != len(graph.nodes):
        raise ConversionError("The graph holds nodes beside the path from input to output: it branches or recurs.")
    return [(name, graph.nodes[name]) for name in seen[:-1]]


def _neurons(name: str, node: Any, dt: float, num_steps: int | None) -> LIF:
    leak = getattr(node, "v_leak", np.zeros(()))
    for what, values in (("v_leak", leak), ("v_reset", node.v_reset)):
        if np.any(np.asarray(values) != 0):
            raise ConversionError(
                f"{name}: neurons here rest at 0 and are reset to 0, and this node has another {what}."
            )
    resistance = np.asarray(node.r, np.float64)
    if type(node).__name__ == "IF":
        beta, gain = np.ones_like(resistance), resistance
    else:
        share = dt / np.asarray(node.tau, np.float64)
        beta, gain = 1 - share, resistance * share
    if np.any((beta < 0) | (gain <= 0)):
        raise ConversionError(
            f"{name}: a time step of {dt:g} is longer than the neurons' time constant, or R is not above 0."
        )
    gain = np.where(np.abs(gain - 1) < _ONE, 1.0, gain)
    threshold = np.asarray(node.v_threshold, np.float64) / gain
    return LIF(_constant(beta), _constant(threshold), num_steps=num_steps, spike_on="gt")


def _fires_above_a_half(node: Any, dt: float) -> bool:
    """Tell whether neurons without memory make a sum of spikes their maximum."""
    if type(node).__name__ != "LIF":
        return False
    share = dt / np.asarray(node.tau, np.float64)
    forgets = np.abs(share - 1) < _ONE
    return bool((forgets & (np.abs(node.r * share - 1) < _ONE) & (node.v_threshold == 0.5)).all())


def _constant(values: NDArray[np.float64]) -> float | Tensor:
    """Return one number where all are the same in float32, else one per neuron."""
    single = values.astype(np.float32)
    if single.size and (single == single.flat[0]).all():
        return torch.tensor(single.flat[0])
    return torch.from_numpy(single)


def _flatten(name: str, node: Any, timed: bool) -> nn.Module:
    if int(node.start_dim) not in (0, 1) or int(node.end_dim) not in (-1, len(node.input_type["input"]) - 1):
        raise ConversionError(f"{name}: a Flatten of all dimensions of a sample is read, and not of some.")
    if int(node.start_dim) == 1 and len(node.input_type["input"]) > 1 and node.input_type["input"][0] != 1:
        raise ConversionError(
            f"{name}: a Flatten that leaves the first dimension of a sample as it is has no layer here."
        )
    return nn.Flatten(2 if timed else 1)


def _linear(node: Any) -> nn.Linear:
    bias = getattr(node, "bias", None)
    layer = nn.Linear(node.weight.shape[1], node.weight.shape[0], bias=bias is not None)
    return _filled(layer, node.weight, bias)


def _convolution(node: Any) -> nn.Conv2d:
    geometry = {key: _size(getattr(node, key)) for key in ("stride", "padding", "dilation")}
    weight, groups = node.weight, int(node.groups)
    layer = nn.Conv2d(weight.shape[1] * groups, weight.shape[0], weight.shape[2:], groups=groups, **geometry)
    return _filled(layer, weight, node.bias)


def _average(node: Any) -> nn.AvgPool2d:
    return nn.AvgPool2d(_size(node.kernel_size), _size(node.stride), _size(node.padding))


def _sum(node: Any) -> nn.AvgPool2d:
    return nn.AvgPool2d(_size(node.kernel_size), _size(node.stride), _size(node.padding), divisor_override=1)


_WEIGHTED: dict[str, Any] = {
    "Affine": _linear,
    "Linear": _linear,
    "Conv2d": _convolution,
    "AvgPool2d": _average,
    "SumPool2d": _sum,
}


def _filled(layer: Any, weight: NDArray[Any], bias: NDArray[Any] | None) -> Any:
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(np.asarray(weight)))
        if bias is not None:
            layer.bias.copy_(torch.as_tensor(np.asarray(bias)))
    return layer


def _size(value: Any) -> Any:
    text = _text(value)
    if isinstance(text, str):
        return text
    numbers = [int(each) for each in np.asarray(value).ravel()]
    return (numbers[0], numbers[-1])


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
