import pytest
import torch
from torch import nn

pytest.importorskip("onnxruntime")

from lightning_polystep.exports import check_onnx, run_onnxruntime, to_onnx
from lightning_polystep.layers import QuantActivation, QuantLinear


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(QuantLinear(4, 3, input_quant=QuantActivation(4, True, scale=0.2), integer=True), nn.ReLU())


def test_a_file_of_another_network_is_found_out():
    codes, output = check_onnx(network(0), to_onnx(network(1), (4,)), torch.randn(9, 4))
    assert codes.unequal == 0  # the inputs are quantised alike
    assert output.unequal > 0


def test_another_quantiser_of_the_inputs_is_found_out():
    ours, theirs = network(0), network(0)
    theirs[0].input_quant.scale *= 1.5
    codes, _ = check_onnx(ours, to_onnx(theirs, (4,)), torch.randn(9, 4))
    assert codes.unequal > 0


def test_what_is_watched_is_no_output_of_the_file():
    model = to_onnx(network(0), (4,))
    check_onnx(network(0), model, torch.randn(9, 4))
    assert [output.name for output in model.graph.output] == ["output"]
    assert set(run_onnxruntime(model, torch.randn(2, 4).numpy(), [])) == {"output"}
