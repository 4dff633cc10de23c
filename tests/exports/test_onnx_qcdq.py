import pytest
import torch
from hypothesis import given, settings
from torch import nn

pytest.importorskip("onnxruntime")

from lightning_polystep.exports import check_onnx, to_onnx
from lightning_polystep.layers import QuantActivation, QuantLinear
from tests.exports.networks import integer_networks, quantised_networks, stepping_networks


@given(integer_networks())
@settings(max_examples=20)
def test_integer_networks_are_equal_bit_for_bit_in_onnxruntime(case):
    network, shape, inputs = case
    found = check_onnx(network, to_onnx(network, shape), inputs)
    assert len(found) == 3
    assert found[-1].what == "output"  # and not "up to rounding"
    assert [str(parity) for parity in found if parity.unequal] == []


@given(stepping_networks())
@settings(max_examples=20)
def test_binary_networks_and_step_functions_are_equal_bit_for_bit_in_onnxruntime(case):
    network, shape, inputs = case
    found = check_onnx(network, to_onnx(network, shape), inputs)
    assert sum(parity.what.startswith("codes of") for parity in found) >= 3
    assert [str(parity) for parity in found if parity.unequal] == []


@given(quantised_networks())
@settings(max_examples=20)
def test_codes_between_float_sums_are_equal_where_these_do_not_round(case):
    network, shape, inputs = case
    found = check_onnx(network, to_onnx(network, shape), inputs)
    assert [parity.what for parity in found] == ["codes of 0", "codes of 2", "codes of 4", "output (up to rounding)"]
    assert [str(parity) for parity in found if parity.unequal] == []


def test_sums_that_float32_cannot_hold_are_exact():
    torch.manual_seed(0)
    layer = QuantLinear(600, 4, input_quant=QuantActivation(8, scale=1 / 255), integer=True)
    with torch.no_grad():
        layer.weight.copy_(torch.rand(4, 600) + 0.5)
        layer.calibrate_weight()
    network, inputs = nn.Sequential(layer), 1 - torch.rand(6, 600) / 50
    sums = layer.input_quant.codes(inputs).double() @ layer.weight_codes().T.double()
    assert sums.max() > 2**23
    found = check_onnx(network, to_onnx(network, (600,)), inputs)
    assert [str(parity) for parity in found if parity.unequal] == []


def test_weights_are_stored_in_eight_bits():
    small = to_onnx(nn.Sequential(QuantLinear(256, 256, bias=False)), (256,))
    assert 2**16 < small.ByteSize() < 1.1 * 2**16


def test_fewer_bits_are_clipped():
    network = nn.Sequential(QuantActivation(3, signed=True, scale=0.5, narrow_range=False))
    graph = to_onnx(network, (1,))
    assert [node.op_type for node in graph.graph.node][:3] == ["QuantizeLinear", "Clip", "DequantizeLinear"]
    inputs = torch.tensor([[-9.0], [9.0], [0.25], [0.75], [float("inf")]])
    assert network(inputs).flatten().tolist() == [-2.0, 1.5, 0.0, 1.0, 1.5]
    assert all(parity.unequal == 0 for parity in check_onnx(network, graph, inputs))
