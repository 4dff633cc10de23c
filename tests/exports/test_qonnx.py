import pytest
import torch
from hypothesis import given, settings
from torch import nn

pytest.importorskip("qonnx")

from lightning_polystep.exports import check_onnx, run_qonnx, to_qonnx
from lightning_polystep.interop import ConversionError
from lightning_polystep.layers import QuantActivation, QuantConv2d, QuantLinear, Sign
from tests.exports.networks import integer_networks, quantised_networks, stepping_networks


@given(integer_networks())
@settings(max_examples=20)
def test_integer_networks_are_equal_bit_for_bit_in_the_executor_of_qonnx(case):
    network, shape, inputs = case
    found = check_onnx(network, to_qonnx(network, shape), inputs, run_qonnx)
    assert len(found) == 3
    assert [str(parity) for parity in found if parity.unequal] == []


@given(stepping_networks())
@settings(max_examples=20)
def test_binary_networks_and_step_functions_are_equal_bit_for_bit_in_the_executor_of_qonnx(case):
    network, shape, inputs = case
    found = check_onnx(network, to_qonnx(network, shape), inputs, run_qonnx)
    assert sum(parity.what.startswith("codes of") for parity in found) >= 3
    assert [str(parity) for parity in found if parity.unequal] == []


@given(quantised_networks())
@settings(max_examples=20)
def test_codes_between_float_sums_are_equal_where_these_do_not_round(case):
    network, shape, inputs = case
    found = check_onnx(network, to_qonnx(network, shape), inputs, run_qonnx)
    assert [str(parity) for parity in found if parity.unequal] == []


@given(quantised_networks())
@settings(max_examples=20)
def test_every_unsigned_activation_stands_behind_one_relu_as_finn_asks(case):
    network, shape, _ = case
    graph = to_qonnx(nn.Sequential(*network, nn.ReLU(), QuantActivation(4, scale=0.1)), shape).graph
    made_by = {node.output[0]: node for node in graph.node}
    unsigned = [n for n in graph.node if n.op_type == "Quant" and not {a.name: a.i for a in n.attribute}["signed"]]
    assert unsigned
    for node in unsigned:
        relu = made_by[node.input[0]]
        assert relu.op_type == "Relu"
        assert made_by[relu.input[0]].op_type != "Relu" if relu.input[0] in made_by else True


def test_signs_and_binary_weights_are_bipolar():
    network = nn.Sequential(QuantLinear(6, 5, weight_format="binary"), Sign(), QuantLinear(5, 2, weight_format="int4"))
    graph = to_qonnx(network, (6,))
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("BipolarQuant") == 2
    assert kinds.count("Quant") == 1
    found = check_onnx(network, graph, torch.randn(9, 6), run_qonnx)
    assert [str(parity) for parity in found if parity.unequal] == []


def test_a_sign_that_is_minus_one_at_zero_is_a_comparison():
    network = nn.Sequential(Sign(positive_on="gt"))
    graph = to_qonnx(network, (3,))
    assert "BipolarQuant" not in [node.op_type for node in graph.graph.node]
    found = check_onnx(network, graph, torch.tensor([[0.0, -0.0, 1.0]]), run_qonnx)
    assert [parity.unequal for parity in found] == [0, 0]


def test_sums_that_float32_cannot_hold_are_in_float64_or_refused():
    inputs = {"input_quant": QuantActivation(8, scale=1 / 255), "integer": True}
    assert "Cast" in [
        node.op_type for node in to_qonnx(nn.Sequential(QuantLinear(600, 2, **inputs)), (600,)).graph.node
    ]
    with pytest.raises(ConversionError, match=r"may reach 2\*\*24, and QONNX is convolved in float32"):
        to_qonnx(nn.Sequential(QuantConv2d(64, 2, 3, **inputs)), (64, 3, 3))
