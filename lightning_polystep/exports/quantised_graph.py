"""Write quantised networks as ONNX graphs; how numbers are quantised is up to the format (QCDQ or QONNX)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_polystep.__about__ import __version__
from lightning_polystep.exports.chain import Link, chain_of
from lightning_polystep.exports.nir_graph import padding_of
from lightning_polystep.functional.quantised import accumulator_dtype
from lightning_polystep.functional.quantisers import code_range, largest_code, per_output, quantise_weight, weight_scale
from lightning_polystep.interop.snntorch_conversion import ConversionError
from lightning_polystep.kernels.bisection import bisect
from lightning_polystep.layers import QuantActivation, Sign, StepFunction
from lightning_polystep.layers.quantised import QuantisedWeight

if TYPE_CHECKING:
    import onnx

OPSET = 13
# What runtimes of the day read; newer files than a runtime are refused.
_IR_VERSION = 8
# Sums of codes are added in int32.
_MOST_SUM = 2**31
WATCHED = "lightning_polystep.watched"


class Graph:
    """Nodes and constants of an ONNX graph, in the order in which they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        # Of each quantiser, by its name in the network: the tensor that holds its codes, and what is added to them;
        # None where it holds the numbers that the codes stand for.
        self.watched: dict[str, tuple[str, int | None]] = {}
        self.exact = True

    def add(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node, and return the name of what it computes."""
        import onnx

        output = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(operator, list(inputs), [output], output, domain=domain, **attributes))
        return output

    def constant(self, values: NDArray[Any]) -> str:
        """Add a constant, and return its name."""
        import onnx

        name = f"constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name))
        return name


@dataclass(frozen=True)
class Codes:
    """The codes of a layer's weights, whole numbers, and what they are multiplied by behind the sum.

    Args:
        codes: ``(out, ...)``.
        scale: ``()`` or ``(out,)``.
        weight_format: As in :class:`~lightning_polystep.layers.QuantLinear`.
    """

    codes: Tensor
    scale: Tensor
    weight_format: str


class Dialect(Protocol):
    """How a format says that numbers are quantised."""

    def activation(self, graph: Graph, x: str, layer: QuantActivation, name: str) -> str:
        """Quantise, and return the numbers that the codes stand for."""

    def sign(self, graph: Graph, x: str, name: str) -> str | None:
        """Return 1 where x reaches 0, else -1; None where the format has no word for it."""

    def weights(self, graph: Graph, codes: NDArray[np.float32], weight_format: str) -> str:
        """Return codes of weights as floats."""

    def sums(self, graph: Graph, x: str, link: Link, weights: Codes) -> str:
        """Quantise x by the layer's own quantiser, and return the sums of codes, in float32 or float64."""


def write(network: nn.Module, input_shape: tuple[int, ...], dialect: Dialect, domains: dict[str, int]) -> Any:
    """Write a row of layers as an ONNX model.

    Args:
        network: The network.
        input_shape: Of one sample.
        dialect: Of the format.
        domains: Domains of operators beside ONNX's own, with their versions.

    Returns:
        The model, checked.

    Raises:
        ConversionError: If a layer cannot be said, by name.
        NotCalibratedError: If an activation has no scale.
    """
    import onnx

    graph, x = Graph(), "input"
    with torch.no_grad():
        for link in chain_of(network):
            x = _add(graph, x, link, dialect)
        shape = tuple(network.eval()(torch.zeros(1, *input_shape)).shape[1:])
    kind = onnx.TensorProto.FLOAT
    graph.nodes.append(onnx.helper.make_node("Identity", [x], ["output"], "output"))
    made = onnx.helper.make_graph(
        graph.nodes,
        "lightning_polystep",
        [onnx.helper.make_tensor_value_info("input", kind, ["N", *input_shape])],
        [onnx.helper.make_tensor_value_info("output", kind, ["N", *shape])],
        graph.constants,
    )
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in {"": OPSET, **domains}.items()]
    model = onnx.helper.make_model(
        made,
        opset_imports=imports,
        ir_version=_IR_VERSION,
        producer_name="lightning_polystep",
        producer_version=__version__,
    )
    told = json.dumps({"codes": graph.watched, "exact": graph.exact})
    onnx.helper.set_model_props(model, {WATCHED: told})
    onnx.checker.check_model(model)
    return model


def _add(graph: Graph, x: str, link: Link, dialect: Dialect) -> str:
    layer: Any = link.layer
    if link.every_step:
        raise ConversionError(f"layer {link.name}: ONNX graphs here have no time axis: write spiking networks to NIR.")
    for kind, writer in _WRITERS.items():
        if type(layer) is kind:
            return writer(graph, x, link)
    if type(layer) is QuantActivation:
        return dialect.activation(graph, x, layer, link.name)
    if type(layer) is Sign and layer.positive_on == "ge" and (said := dialect.sign(graph, x, link.name)) is not None:
        return said
    if isinstance(layer, StepFunction):
        return _steps(graph, x, link)
    if isinstance(layer, QuantisedWeight):
        return _quantised(graph, x, link, dialect)
    raise ConversionError(
        f"layer {link.name}: {layer} is not written to ONNX here: export the parts before and behind it."
    )


def _quantised(graph: Graph, x: str, link: Link, dialect: Dialect) -> str:
    layer: Any = link.layer
    if layer.weight.dtype != torch.float32:
        raise ConversionError(
            f"layer {link.name}: weights are {layer.weight.dtype}, and ONNX graphs here are float32: call .float()."
        )
    if layer.weight_format == "float":
        x = x if layer.input_quant is None else dialect.activation(graph, x, layer.input_quant, link.name)
        return _weighted(graph, x, link)
    scale = weight_scale(layer.weight, layer.weight_format, layer.granularity) if layer.follow else layer.weight_scale
    weights = Codes(quantise_weight(layer.weight, scale, layer.weight_format), scale, layer.weight_format)
    if layer.integer:
        return _scaled_sums(graph, dialect.sums(graph, x, link, weights), link, weights)
    if layer.input_quant is not None:
        x = dialect.activation(graph, x, layer.input_quant, link.name)
    graph.exact = False
    sums = product(graph, x, dialect.weights(graph, matrix_of(weights.codes), layer.weight_format), link)
    scaled = graph.add("Mul", sums, graph.constant(_behind(per_output(scale, _dims(layer), torch.float32))))
    return _biased(graph, scaled, layer)


def _scaled_sums(graph: Graph, sums: str, link: Link, weights: Codes) -> str:
    """Multiply sums of codes by both scales, in the dtype in which the layer itself does."""
    layer: Any = link.layer
    dtype = sums_dtype(layer)
    scale = layer.input_quant.format_for(layer.weight).scale.to(dtype) * per_output(weights.scale, _dims(layer), dtype)
    x = graph.add("Mul", sums, graph.constant(_behind(scale)))
    return _biased(graph, x if dtype == torch.float32 else graph.add("Cast", x, to=1), layer)


def sums_dtype(layer: Any) -> torch.dtype:
    """Return the dtype in which an integer layer scales its sums.

    Raises:
        ConversionError: If they may be beyond int32.
    """
    low, high = code_range(layer.input_quant.bits, layer.input_quant.signed, layer.input_quant.narrow_range)
    largest, fan_in = max(-low, high), layer.weight[0].numel()
    if largest * largest_code(layer.weight_format) * fan_in >= _MOST_SUM:
        raise ConversionError(f"{layer}: sums of {fan_in} products may be beyond int32, in which ONNX adds codes.")
    return accumulator_dtype(largest, largest_code(layer.weight_format), fan_in)


def product(graph: Graph, x: str, weights: str, link: Link, *zero_points: str, integer: bool = False) -> str:
    """Add the product of a Linear or convolution layer.

    Args:
        graph: The graph.
        x: The inputs.
        weights: As :func:`matrix_of` arranges them.
        link: The layer.
        zero_points: Of inputs and weights, for integers.
        integer: Whether both are integers, added in int32.
    """
    layer: Any = link.layer
    if isinstance(layer, nn.Linear):
        return graph.add("MatMulInteger" if integer else "MatMul", x, weights, *zero_points)
    if layer.padding_mode != "zeros":
        raise ConversionError(
            f'layer {link.name}: ONNX convolutions pad with zeros, and not padding_mode="{layer.padding_mode}".'
        )
    vertical, horizontal = padding_of(layer, link.name)
    return graph.add(
        "ConvInteger" if integer else "Conv",
        x,
        weights,
        *zero_points,
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride),
        pads=[vertical, horizontal, vertical, horizontal],
        dilations=list(layer.dilation),
        group=layer.groups,
    )


def matrix_of(weight: Tensor) -> NDArray[Any]:
    """Return weights as ONNX multiplies by them: those of a Linear transposed."""
    return (weight.T if weight.ndim == 2 else weight).detach().cpu().contiguous().numpy()


def _weighted(graph: Graph, x: str, link: Link) -> str:
    layer: Any = link.layer
    graph.exact = False
    return _biased(graph, product(graph, x, graph.constant(matrix_of(layer.weight)), link), layer)


def _biased(graph: Graph, x: str, layer: Any) -> str:
    if layer.bias is None:
        return x
    return graph.add("Add", x, graph.constant(_behind(per_output(layer.bias, _dims(layer), torch.float32))))


def _steps(graph: Graph, x: str, link: Link) -> str:
    """Write any step function as the numbers at which it steps, found to the last bit, and its levels."""
    layer: Any = link.layer
    most = torch.tensor([torch.finfo(torch.float32).max])
    first, _, changes, values = bisect(lambda _, numbers: layer(numbers).unsqueeze(1), -most, most, most=2**16)
    levels = torch.cat([first, values]).flatten().numpy()
    if len(levels) == 2:
        reached = graph.add("GreaterOrEqual", x, graph.constant(changes.numpy().reshape(())))
        output = graph.add("Where", reached, *(graph.constant(level.reshape(())) for level in levels[::-1]))
    else:
        last = graph.add("Unsqueeze", x, graph.constant(np.array([-1])))
        reached = graph.add("Cast", graph.add("GreaterOrEqual", last, graph.constant(changes.numpy())), to=7)
        index = graph.add("ReduceSum", reached, graph.constant(np.array([-1])), keepdims=0)
        output = graph.add("Gather", graph.constant(levels), index, axis=0)
    graph.watched[link.name] = (output, None)
    return output


def _flatten(graph: Graph, x: str, link: Link) -> str:
    layer: Any = link.layer
    if (layer.start_dim, layer.end_dim) != (1, -1):
        raise ConversionError(
            f"layer {link.name}: ONNX's Flatten leaves one dimension in front and one behind: use nn.Flatten()."
        )
    return graph.add("Flatten", x, axis=1)


def _pool(operator: str) -> Callable[[Graph, str, Link], str]:
    def write_pool(graph: Graph, x: str, link: Link) -> str:
        layer: Any = link.layer
        average = operator == "AveragePool"
        if layer.ceil_mode or (average and layer.divisor_override is not None):
            raise ConversionError(
                f"layer {link.name}: {layer} is not written to ONNX with ceil_mode or divisor_override."
            )
        kernel, stride, padding = (list(_pair(v)) for v in (layer.kernel_size, layer.stride, layer.padding))
        more: dict[str, Any] = (
            {"count_include_pad": int(layer.count_include_pad)}
            if average
            else {"dilations": list(_pair(layer.dilation))}
        )
        graph.exact &= not average
        return graph.add(operator, x, kernel_shape=kernel, strides=stride, pads=padding * 2, **more)

    return write_pool


def _batch_norm(graph: Graph, x: str, link: Link) -> str:
    layer: Any = link.layer
    if layer.running_mean is None or not layer.affine:
        raise ConversionError(f"layer {link.name}: {layer} has no running statistics or no weights to write.")
    graph.exact = False
    parts = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
    return graph.add("BatchNormalization", x, *(graph.constant(p.detach().numpy()) for p in parts), epsilon=layer.eps)


_WRITERS: dict[type[nn.Module], Callable[[Graph, str, Link], str]] = {
    nn.Identity: lambda _graph, x, _link: x,
    nn.Dropout: lambda _graph, x, _link: x,
    nn.Flatten: _flatten,
    nn.ReLU: lambda graph, x, _link: graph.add("Relu", x),
    nn.Linear: _weighted,
    nn.Conv2d: _weighted,
    nn.MaxPool2d: _pool("MaxPool"),
    nn.AvgPool2d: _pool("AveragePool"),
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
}


def _dims(layer: nn.Module) -> int:
    return 1 if isinstance(layer, nn.Linear) else 3


def _behind(values: Tensor) -> NDArray[Any]:
    return values.detach().cpu().numpy()


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
