"""Write quantised networks as plain ONNX: quantise, clip, dequantise, and integer products."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lightning_polystep.exports.chain import Link
from lightning_polystep.exports.quantised_graph import Codes, Graph, matrix_of, product, sums_dtype, write
from lightning_polystep.functional.quantisers import code_range
from lightning_polystep.layers import QuantActivation

if TYPE_CHECKING:
    import onnx

# In uint8, 0 is here. Products of uint8 and int8 saturate in runtimes on some processors; of uint8 and uint8 never.
_MIDDLE = 128


def to_onnx(network: nn.Module, input_shape: tuple[int, ...]) -> onnx.ModelProto:
    r"""Write a row of quantised layers as ONNX that any runtime runs.

    Activations are ``QuantizeLinear``, ``Clip`` (where codes have fewer than 8 bits or a narrow range) and
    ``DequantizeLinear``: QCDQ. Weights are constants of codes in int8. With :math:`q` the codes of a layer's weights
    and :math:`s_o` its scale, the graph computes what the layer does, in its order,

    .. math::
        y_o = s_o \sum_i q_{oi} x_i + b_o

    For a layer with ``integer=True`` the sum is one of codes, ``MatMulInteger`` or ``ConvInteger`` in int32, so that
    every integer of the network is the same in the runtime, bit for bit. Sums of other layers are of floats, whose
    rounding depends on the order in which a runtime adds; a code of the next layer may then differ where a number is
    within that of a tie, unless scales are powers of two. Any other step function (:class:`Staircase`, :class:`Sign`, a
    layer of the user's) is written as the floats at which it steps, found to the last bit.

    Args:
        network: An ``nn.Sequential`` of quantised layers, step functions, and Linear, Conv2d, ReLU, pooling, batch
            normalisation and Flatten; in float32.
        input_shape: Of one sample.

    Returns:
        The model; ``onnx.save(model, path)`` makes a file of it.

    Raises:
        ConversionError: For a layer that cannot be said, by name.
        NotCalibratedError: If an activation has no scale.
        ModuleNotFoundError: Without the package ``onnx``.

    Example:
        >>> from lightning_polystep.layers import QuantLinear
        >>> first = QuantLinear(4, 3, input_quant=QuantActivation(4, scale=0.1), integer=True)
        >>> [node.op_type for node in to_onnx(nn.Sequential(first), (4,)).graph.node]
        ['QuantizeLinear', 'Clip', 'MatMulInteger', 'Cast', 'Mul', 'Add', 'Identity']

    Source:
        ONNX operators, opset 13; Brevitas' and FINN's name for the form is QCDQ.
    """
    return write(network, input_shape, _Qcdq(), {})


class _Qcdq:
    """How plain ONNX says that numbers are quantised."""

    def activation(self, graph: Graph, x: str, layer: QuantActivation, name: str) -> str:
        """Quantise, and return the numbers that the codes stand for."""
        codes, scale, zero = _codes(graph, x, layer, name, middle=0)
        return graph.add("DequantizeLinear", codes, scale, zero)

    def sign(self, graph: Graph, x: str, name: str) -> str | None:
        """Leave it to a comparison."""
        return None

    def weights(self, graph: Graph, codes: NDArray[np.float32], weight_format: str) -> str:
        """Return codes of weights as floats.

        By a Cast: behind a DequantizeLinear of weights, onnxruntime 1.32 rounds the inputs of a product to 8 bits by
        itself (it makes a MatMulNBits of both), which is off by a hundredth.
        """
        return graph.add("Cast", graph.constant(codes.astype(np.int8)), to=1)

    def sums(self, graph: Graph, x: str, link: Link, weights: Codes) -> str:
        """Return sums of codes, in the dtype in which the layer scales them."""
        layer: Any = link.layer
        codes, _, zero = _codes(graph, x, layer.input_quant, link.name, middle=_MIDDLE)
        middle = graph.constant(np.array(_MIDDLE, np.uint8))
        shifted = graph.constant((matrix_of(weights.codes) + _MIDDLE).astype(np.uint8))
        sums = product(graph, codes, shifted, link, zero, middle, integer=True)
        return graph.add("Cast", sums, to=1 if sums_dtype(layer) == torch.float32 else 11)


def _codes(graph: Graph, x: str, layer: QuantActivation, name: str, middle: int) -> tuple[str, str, str]:
    """Add codes in 8 bits; return their name, that of the scale and that of the zero point.

    Args:
        graph: The graph.
        x: What is quantised.
        layer: The quantiser.
        name: In the network.
        middle: Zero point of signed codes: 0 for int8, 128 for uint8.
    """
    low, high = code_range(layer.bits, layer.signed, layer.narrow_range)
    zero = middle if layer.signed else 0
    kind = np.int8 if layer.signed and not middle else np.uint8
    limits, scale = np.iinfo(kind), layer.format_for(torch.empty(0)).scale.float()
    names = graph.constant(scale.numpy()), graph.constant(np.array(zero, kind))
    codes = graph.add("QuantizeLinear", x, *names)
    if (low + zero, high + zero) != (limits.min, limits.max):
        codes = graph.add("Clip", codes, *(graph.constant(np.array(end + zero, kind)) for end in (low, high)))
    graph.watched[name] = (codes, zero)
    return codes, *names
