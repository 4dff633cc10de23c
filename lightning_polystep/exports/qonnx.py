"""Write quantised networks as QONNX, the form that FINN and hls4ml compile to hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lightning_polystep.exports.chain import Link
from lightning_polystep.exports.quantised_graph import Codes, Graph, matrix_of, product, sums_dtype, write
from lightning_polystep.functional.quantisers import is_integer_format
from lightning_polystep.interop.snntorch_conversion import ConversionError
from lightning_polystep.layers import QuantActivation

if TYPE_CHECKING:
    import onnx

_DOMAIN = "qonnx.custom_op.general"


def to_qonnx(network: nn.Module, input_shape: tuple[int, ...]) -> onnx.ModelProto:
    r"""Write a row of quantised layers as QONNX.

    Activations and weights are ``Quant`` nodes of 1 to 8 bits, signs and binary weights ``BipolarQuant``; everything
    else is ONNX. Scales of weights are multiplied behind the sum, as the layers here do, so the ``Quant`` of a weight
    has the scale 1. For a layer with ``integer=True`` so has that of its input, in front of which the input is divided
    by its scale: sums are then of whole numbers, and exact in float32 below :math:`2^{24}`, in float64 above. A
    ``Relu``, which changes no code, stands before every unsigned ``Quant``: FINN takes no other.

    Args:
        network: As in :func:`~lightning_polystep.exports.to_onnx`.
        input_shape: Of one sample.

    Returns:
        The model.

    Raises:
        ConversionError: For a layer that cannot be said, by name; also an integer convolution whose sums may reach
            :math:`2^{24}`, because runtimes convolve in float32 alone.
        NotCalibratedError: If an activation has no scale.
        ModuleNotFoundError: Without the package ``onnx``.

    Example:
        >>> from lightning_polystep.layers import QuantLinear
        >>> first = QuantLinear(4, 3, input_quant=QuantActivation(4, scale=0.1), integer=True)
        >>> [node.op_type for node in to_qonnx(nn.Sequential(first), (4,)).graph.node]
        ['Div', 'Relu', 'Quant', 'Quant', 'MatMul', 'Mul', 'Add', 'Identity']

    Source:
        Pappalardo et al. 2022, *QONNX: representing arbitrary-precision quantized neural networks*, arXiv 2206.07527.
    """
    return write(network, input_shape, _Qonnx(), {_DOMAIN: 1})


class _Qonnx:
    """How QONNX says that numbers are quantised."""

    def activation(self, graph: Graph, x: str, layer: QuantActivation, name: str) -> str:
        """Quantise, and return the numbers that the codes stand for."""
        output = _quant(graph, x, layer, float(layer.format_for(torch.empty(0)).scale))
        graph.watched[name] = (output, None)
        return output

    def sign(self, graph: Graph, x: str, name: str) -> str | None:
        """Return 1 where x reaches 0, else -1."""
        output = graph.add("BipolarQuant", x, _number(graph, 1.0), domain=_DOMAIN)
        graph.watched[name] = (output, None)
        return output

    def weights(self, graph: Graph, codes: NDArray[np.float32], weight_format: str) -> str:
        """Return codes of weights as floats."""
        constant = graph.constant(codes)
        if weight_format == "binary":
            return graph.add("BipolarQuant", constant, _number(graph, 1.0), domain=_DOMAIN)
        bits = int(weight_format.removeprefix("int")) if is_integer_format(weight_format) else 2
        numbers = (_number(graph, value) for value in (1.0, 0.0, float(bits)))
        return graph.add("Quant", constant, *numbers, domain=_DOMAIN, signed=1, narrow=1, rounding_mode="ROUND")

    def sums(self, graph: Graph, x: str, link: Link, weights: Codes) -> str:
        """Return sums of codes, in the dtype in which the layer scales them."""
        layer: Any = link.layer
        wide = sums_dtype(layer) != torch.float32
        if wide and not isinstance(layer, nn.Linear):
            raise ConversionError(
                f"layer {link.name}: sums of this convolution may reach 2**24, and QONNX is convolved in float32: "
                "write it to ONNX, or split its channels."
            )
        scale = layer.input_quant.format_for(layer.weight).scale
        codes = _quant(graph, graph.add("Div", x, graph.constant(scale.float().numpy())), layer.input_quant, 1.0)
        graph.watched[link.name] = (codes, 0)
        quantised = self.weights(graph, matrix_of(weights.codes), weights.weight_format)
        if wide:
            codes, quantised = (graph.add("Cast", name, to=11) for name in (codes, quantised))
        return product(graph, codes, quantised, link)


def _quant(graph: Graph, x: str, layer: QuantActivation, scale: float) -> str:
    rectified = any(node.op_type == "Relu" and x in node.output for node in graph.nodes)
    if not layer.signed and not rectified:
        # It changes no code, and FINN takes an unsigned Quant behind a Relu alone.
        x = graph.add("Relu", x)
    numbers = (_number(graph, value) for value in (scale, 0.0, float(layer.bits)))
    narrow = int(layer.signed and layer.narrow_range)
    return graph.add(
        "Quant", x, *numbers, domain=_DOMAIN, signed=int(layer.signed), narrow=narrow, rounding_mode="ROUND"
    )


def _number(graph: Graph, value: float) -> str:
    return graph.constant(np.array(value, np.float32))
