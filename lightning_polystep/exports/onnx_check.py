"""Run exported ONNX and QONNX graphs, and compare every code with the network's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_polystep.exports.chain import Link, chain_of
from lightning_polystep.exports.parity import Parity, compare, compare_closely
from lightning_polystep.exports.quantised_graph import WATCHED
from lightning_polystep.layers import QuantActivation
from lightning_polystep.layers.quantised import QuantisedWeight

if TYPE_CHECKING:
    import onnx

# From a model, inputs and names of tensors to the tensors and the output, by name.
Runtime = Callable[["onnx.ModelProto", NDArray[np.float32], list[str]], dict[str, NDArray[Any]]]


def run_onnxruntime(model: onnx.ModelProto, inputs: NDArray[np.float32], names: list[str]) -> dict[str, NDArray[Any]]:
    """Run a model in onnxruntime, as it optimises by default, with tensors inside as further outputs.

    Raises:
        ModuleNotFoundError: Without the package ``onnxruntime``.
    """
    import onnx
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = ["output", *names]
    return dict(zip(wanted, session.run(wanted, {"input": inputs}), strict=True))


def run_qonnx(model: onnx.ModelProto, inputs: NDArray[np.float32], names: list[str]) -> dict[str, NDArray[Any]]:
    """Run a model in the executor of the package ``qonnx``, node by node, which keeps all tensors.

    Raises:
        ModuleNotFoundError: Without it.
    """
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    wrapped = ModelWrapper(model)
    for value in (*wrapped.graph.input, *wrapped.graph.output):  # its executor wants shapes without names
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_value = len(inputs)
    wrapped = wrapped.transform(InferShapes())
    tensors = execute_onnx(wrapped, {"input": inputs}, return_full_exec_context=True)
    return {name: tensors[name] for name in ["output", *names]}


def check_onnx(
    network: nn.Module, model: onnx.ModelProto, inputs: Tensor, run: Runtime = run_onnxruntime
) -> list[Parity]:
    """Compare a network with what a runtime computes from its graph: the codes of every quantiser, and the output.

    Args:
        network: As given to :func:`~lightning_polystep.exports.to_onnx` or ``to_qonnx``.
        model: As they returned it, or loaded from a file.
        inputs: A batch, float32.
        run: :func:`run_onnxruntime` or :func:`run_qonnx`.

    Returns:
        One entry for each quantiser, and one for the output: bit for bit where all sums are of integers.

    Example:
        >>> from lightning_polystep.exports import to_onnx
        >>> network = nn.Sequential(nn.Linear(4, 3), QuantActivation(4, scale=0.1))
        >>> [str(parity) for parity in check_onnx(network, to_onnx(network, (4,)), torch.rand(2, 4))][0]
        'codes of 1: all 6 equal'
    """
    props = {prop.key: prop.value for prop in model.metadata_props}
    told = json.loads(props[WATCHED])
    codes: dict[str, tuple[str, int | None]] = told["codes"]
    ours, output = _own_codes(network.eval(), codes, inputs)
    theirs = run(model, inputs.numpy(), [tensor for tensor, _ in codes.values()])
    found = []
    for name, (tensor, zero) in codes.items():
        read = torch.from_numpy(np.asarray(theirs[tensor]).astype(np.float64)) - (zero or 0)
        found.append(compare(f"codes of {name}", ours[name], read))
    last = torch.from_numpy(np.asarray(theirs["output"]))
    found.append((compare if told["exact"] else compare_closely)("output", output, last))
    return found


def _own_codes(
    network: nn.Module, codes: dict[str, tuple[str, int | None]], inputs: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    heard: dict[str, Tensor] = {}

    def keeper(link: Link, zero: int | None) -> Callable[..., None]:
        def keep(layer: Any, given: tuple[Tensor, ...], output: Tensor) -> None:
            quantiser = layer.input_quant if isinstance(layer, QuantisedWeight) else layer
            if isinstance(quantiser, QuantActivation):
                heard[link.name] = (quantiser.codes if zero is not None else quantiser.forward)(given[0])
            else:
                heard[link.name] = output

        return keep

    with torch.no_grad(), ExitStack() as hooks:
        for link in chain_of(network):
            if link.name in codes:
                hooks.callback(link.layer.register_forward_hook(keeper(link, codes[link.name][1])).remove)
        output = network(inputs)
    return heard, output
