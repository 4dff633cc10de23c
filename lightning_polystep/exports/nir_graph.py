"""Write spiking networks as graphs of NIR, the Neuromorphic Intermediate Representation."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_polystep.exports.chain import Link, chain_of
from lightning_polystep.interop.snntorch_conversion import ConversionError
from lightning_polystep.layers import LIF, MeanOverTime, SpikeCount, SpikeRate, TimeFirst
from lightning_polystep.layers.lif import SpikingNeuron

if TYPE_CHECKING:
    import nir

AtThreshold = Literal["refuse", "shift"]

# The time step that snnTorch's reader takes for granted; a graph of NIR has none.
TIME_STEP = 1e-4
# A leak of 1 keeps all: a time constant so long that float64 rounds the leak to 1.
_LONGEST = 2.0**60
_READOUTS: dict[type[nn.Module], str] = {SpikeCount: "sum", SpikeRate: "mean", MeanOverTime: "mean"}
_DROPPED = (nn.Identity, nn.Dropout)


def to_nir(
    network: nn.Module,
    input_shape: tuple[int, ...],
    *,
    at_threshold: AtThreshold = "refuse",
    unit_resistance: bool = False,
    dt: float = TIME_STEP,
) -> nir.NIRGraph:
    r"""Write a row of Linear, Conv2d, pooling and LIF layers as a NIR graph, whose readers run one step at a time.

    A neuron of NIR follows :math:`\tau \dot v = (v_{leak} - v) + R I`, fires where :math:`v > \theta` and is set to
    :math:`v_{reset}`. Its readers take an Euler step of length dt, which is the neuron of
    :func:`~lightning_polystep.functional.lif` with

    .. math::
        \beta = 1 - dt / \tau, \qquad R = \tau / dt, \qquad v_{leak} = v_{reset} = 0

    In float64, so that a float32 leak comes back bit for bit. A max-pooling of spikes becomes a sum and a neuron
    without memory that fires above a half; groups of a convolution become zeros. What comes behind the last neurons and
    takes a sum or a mean over time is left to the caller: the graph's ``metadata`` say ``readout="sum"`` or ``"mean"``,
    as well as ``dt`` and, for networks of a constant input, ``num_steps``.

    Args:
        network: An ``nn.Sequential`` or ``Sliced``, in float32.
        input_shape: Of one sample at one time step.
        at_threshold: What to do with neurons that fire at the threshold itself (``spike_on="ge"``), which NIR's do
            not: ``"refuse"``, or ``"shift"`` thresholds to the next smaller float32, which is the same neuron.
        unit_resistance: Whether to write R = 1 and thresholds :math:`(1 - \beta) \theta` instead, the same neuron
            measured in other units: Norse's reader ignores R. Rounds thresholds.
        dt: Length of a time step, which the reader has to take as well.

    Returns:
        The graph; ``nir.write(path, graph)`` makes a file of it.

    Raises:
        ConversionError: For what NIR cannot say, in a sentence: a reset by subtraction, none or delayed, a spike at the
            threshold, and layers without a node.
        ModuleNotFoundError: Without the package ``nir``.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 3), LIF(0.9, num_steps=5, spike_on="gt"), SpikeCount())
        >>> graph = to_nir(network, (4,))
        >>> [type(node).__name__ for node in graph.nodes.values()], graph.metadata["readout"]
        (['Input', 'Affine', 'LIF', 'Output'], 'sum')

    Source:
        Pedersen et al. 2024, *Neuromorphic intermediate representation*, Nature Communications 15; ``nir`` 1.0.8.
    """
    import nir

    writer = _Writer(tuple(input_shape), at_threshold, unit_resistance, dt)
    for link in chain_of(network):
        writer.add(link)
    if not writer.neurons:
        raise ConversionError("The network has no LIF layer, and NIR is for spiking networks: use ONNX or QONNX.")
    names = ["input", *writer.nodes, "output"]
    nodes = {
        "input": nir.Input(input_type=np.array(input_shape)),
        **writer.nodes,
        "output": nir.Output(output_type=np.array(writer.shape)),
    }
    edges = list(pairwise(names))
    return nir.NIRGraph(nodes=nodes, edges=edges, metadata={"dt": dt, **writer.metadata})


@dataclass
class _Writer:
    """Nodes as they are added, and the shape that the next one gets.

    Args:
        shape: Of one sample at one step.
        at_threshold: As in :func:`to_nir`.
        unit_resistance: As there.
        dt: As there.
    """

    shape: tuple[int, ...]
    at_threshold: AtThreshold
    unit_resistance: bool
    dt: float
    nodes: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    neurons: int = 0
    spikes: bool = False

    def add(self, link: Link) -> None:
        """Add the node of a layer."""
        layer, spikes, self.spikes = link.layer, self.spikes, False
        if type(layer) in _DROPPED:
            self.spikes = spikes
        elif isinstance(layer, SpikingNeuron):
            self._neurons(link)
            self.spikes = True
        elif type(layer) in _READOUTS:
            self._readout(link)
        elif type(layer) in (nn.Flatten, TimeFirst):
            self._flatten()
            self.spikes = spikes
        elif type(layer) is nn.MaxPool2d:
            self._max_pool(link, spikes)
            self.spikes = True
        elif type(layer) in (nn.Linear, nn.Conv2d, nn.AvgPool2d):
            self._weighted(link)
        else:
            cure = ": fold it first (lightning_polystep.interop.fold_batch_norm)" if "BatchNorm" in str(layer) else ""
            raise ConversionError(f"layer {link.name}: {layer} has no node in NIR that computes the same{cure}.")

    def _weighted(self, link: Link) -> None:
        import nir

        layer: Any = link.layer
        readout = self.metadata.get("readout")
        if readout is not None and (type(layer) is not nn.Linear or readout == "sum"):
            raise ConversionError(
                f"layer {link.name}: {layer} comes behind a {readout} over time, and NIR runs each layer at each step: "
                "only a Linear behind a mean (SpikeRate) is the same in either order."
            )
        if type(layer) is nn.Linear:
            weight = _array(layer.weight)
            node = nir.Linear(weight) if layer.bias is None else nir.Affine(weight, _array(layer.bias))
        elif type(layer) is nn.Conv2d:
            node = self._convolution(link)
        else:
            if layer.ceil_mode or not layer.count_include_pad or layer.divisor_override is not None:
                raise ConversionError(
                    f"layer {link.name}: NIR's AvgPool2d has no ceil_mode, and divides by the whole window."
                )
            node = nir.AvgPool2d(*(np.array(_pair(v)) for v in (layer.kernel_size, layer.stride, layer.padding)))
        self._append(link, node, layer)

    def _convolution(self, link: Link) -> Any:
        import nir

        layer: Any = link.layer
        if layer.padding_mode != "zeros":
            raise ConversionError(
                f'layer {link.name}: NIR\'s Conv2d pads with zeros, and not padding_mode="{layer.padding_mode}".'
            )
        bias = np.zeros(len(layer.weight), np.float32) if layer.bias is None else _array(layer.bias)
        return nir.Conv2d(
            input_shape=self.shape[1:],
            weight=_array(_without_groups(layer.weight, layer.groups)),
            stride=layer.stride,
            padding=padding_of(layer, link.name),
            dilation=layer.dilation,
            groups=1,
            bias=bias,
        )

    def _max_pool(self, link: Link, spikes: bool) -> None:
        import nir

        layer: Any = link.layer
        if not spikes:
            raise ConversionError(
                f"layer {link.name}: NIR has no max-pooling, but for spikes, right behind a LIF layer."
            )
        if layer.ceil_mode or _pair(layer.padding) != (0, 0) or _pair(layer.dilation) != (1, 1):
            raise ConversionError(
                f"layer {link.name}: a max-pooling goes into NIR without padding, dilation and ceil_mode only."
            )
        pool = nir.SumPool2d(*(np.array(_pair(v)) for v in (layer.kernel_size, layer.stride, 0)))
        self._append(link, pool, layer)
        self.nodes[f"{_name(link)}_any"] = self._lif(
            np.zeros(self.shape), np.full(self.shape, 0.5), unit_resistance=True
        )

    def _neurons(self, link: Link) -> None:
        layer: Any = link.layer
        refused = _why_not(layer, self.at_threshold)
        if refused:
            raise ConversionError(f"layer {link.name}: {refused}")
        if layer.num_steps is not None:
            self.metadata["num_steps"] = layer.num_steps
        beta = np.broadcast_to(_array(layer.beta).astype(np.float64).clip(0, 1), self.shape)
        threshold = _array(layer.threshold)
        if layer.spike_on == "ge":
            threshold = np.nextafter(threshold, np.float32(-np.inf))
        if bool((threshold < 0).any()):
            raise ConversionError(
                f"layer {link.name}: readers of NIR disagree on neurons with a threshold below 0, which fire at rest."
            )
        threshold = np.broadcast_to(threshold.astype(np.float64), self.shape)
        self.nodes[_name(link)] = self._lif(beta, threshold, unit_resistance=self.unit_resistance)
        self.neurons += 1

    def _lif(self, beta: NDArray[np.float64], threshold: NDArray[np.float64], *, unit_resistance: bool) -> Any:
        import nir

        steps = 1 / np.maximum(1 - beta, 1 / _LONGEST)
        resistance = np.ones_like(beta) if unit_resistance else steps
        return nir.LIF(
            tau=self.dt * steps,
            r=resistance,
            v_leak=np.zeros_like(beta),
            v_threshold=threshold * (resistance / steps),
            v_reset=np.zeros_like(beta),
        )

    def _flatten(self) -> None:
        import nir

        if len(self.shape) != 1:
            name = f"flatten_{len(self.nodes)}"
            self.nodes[name] = nir.Flatten({"input": np.array(self.shape)}, start_dim=0, end_dim=-1)
            self.shape = (int(np.prod(self.shape)),)

    def _readout(self, link: Link) -> None:
        if not self.neurons:
            raise ConversionError(
                f"layer {link.name}: {link.layer} comes before the first neurons: there are no spikes yet."
            )
        self.metadata["readout"] = _READOUTS[type(link.layer)]
        if type(link.layer) is MeanOverTime:
            self._flatten()

    def _append(self, link: Link, node: Any, layer: nn.Module) -> None:
        try:
            with torch.no_grad():
                self.shape = tuple(layer(torch.zeros(1, *self.shape)).shape[1:])
        except RuntimeError as error:
            raise ConversionError(
                f"layer {link.name}: {layer} does not take a sample of shape {self.shape}."
            ) from error
        if node.input_type["input"] is None:
            node.input_type = {"input": np.array(list(self.nodes.values())[-1].output_type["output"])}
        node.output_type = {"output": np.array(self.shape)}
        self.nodes[_name(link)] = node


def padding_of(layer: nn.Conv2d, name: str) -> tuple[int, int]:
    """Return the zeros on each side of the two dimensions, also where a convolution gives a word for them.

    Raises:
        ConversionError: If "same" puts one more on one side than on the other.
    """
    if not isinstance(layer.padding, str):
        return layer.padding[0], layer.padding[1]
    totals = [
        d * (k - 1) if layer.padding == "same" else 0 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
    ]
    if any(total % 2 for total in totals):
        raise ConversionError(
            f'layer {name}: padding="same" of an even kernel pads one side more, which the format has no word for.'
        )
    return totals[0] // 2, totals[1] // 2


def _without_groups(weight: Tensor, groups: int) -> Tensor:
    """Return the weights of the same convolution in one group, with zeros: ``nir`` and its readers forget groups."""
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    whole = weight.new_zeros(weight.shape[0], inputs * groups, *weight.shape[2:])
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        whole[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return whole


def _why_not(layer: SpikingNeuron, at_threshold: AtThreshold) -> str | None:
    """Return a sentence on why neurons cannot be said in NIR; None if they can."""
    if type(layer) is not LIF:
        return f"{type(layer).__name__} is not written to NIR here: of the neurons, LIF alone is."
    if layer.reset_mechanism != "zero":
        return f'A spike of NIR sets the membrane to a value: reset_mechanism="{layer.reset_mechanism}" cannot be said.'
    if layer.reset_delay:
        return "A spike of NIR resets the membrane at once: reset_delay=True cannot be said."
    if layer.return_membrane:
        return "A neuron of NIR gives its spikes alone: return_membrane=True cannot be said."
    if layer.spike_on == "ge" and at_threshold == "refuse":
        return (
            'A neuron of NIR fires above its threshold and not at it: train with spike_on="gt", or have thresholds '
            'shifted to the next smaller float32, which is the same neuron (at_threshold="shift").'
        )
    return None


def _name(link: Link) -> str:
    kind = type(link.layer).__name__.lower()
    return f"{kind}_{link.name.replace('.layer', '').replace('.', '_')}"


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy()


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
