"""The networks of 8 bits: which layers are quantised, and that sums are sums of integers."""

import pytest
import torch
from torch import nn

from lightning_polystep.layers import NotCalibratedError, QuantLinear, calibrate
from lightning_polystep.scoring.recognise import recognise
from models import Classifier, Int8MLP, IntegerMLP


def linears(network):
    return [layer for layer in network if isinstance(layer, nn.Linear)]


def test_the_papers_network_quantises_the_middle_layer_alone():
    network = Int8MLP()
    assert [type(layer) for layer in linears(network)] == [nn.Linear, QuantLinear, nn.Linear]
    shapes = [tuple(weight.shape) for weight in network.parameters()]
    assert shapes == [(128, 784), (128,), (128, 128), (128,), (10, 128), (10,)]
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_every_layer_between_the_first_and_the_last_is_quantised():
    kinds = [type(layer) for layer in linears(Int8MLP((6, 5, 4, 3, 2)))]
    assert kinds == [nn.Linear, QuantLinear, QuantLinear, nn.Linear]


def test_scales_are_those_of_the_weights_as_initialised():
    for network in (Int8MLP((6, 5, 4, 3)), IntegerMLP((6, 5, 4, 3))):
        for layer in linears(network):
            if isinstance(layer, QuantLinear):
                assert torch.equal(layer.weight_scale, layer.weight.abs().amax(1) / 127)


def test_granularity_reaches_the_layers():
    assert Int8MLP((6, 5, 4, 3), granularity="per_tensor")[3].weight_scale.ndim == 0
    assert IntegerMLP((6, 5, 3), granularity="per_tensor")[1].weight_scale.ndim == 0


def test_the_strict_network_computes_with_integers_in_every_layer():
    network, images = IntegerMLP((12, 7, 5, 3)), torch.rand(40, 1, 3, 4)
    with pytest.raises(NotCalibratedError):
        network(images)
    calibrate(network, [images], keep_given=True)
    assert all(type(layer) is QuantLinear and layer.integer for layer in linears(network))
    x = images.flatten(1)
    for index, layer in enumerate(linears(network)):
        codes = layer.input_quant.codes(x.relu() if index else x)
        assert torch.equal(codes, codes.round())
        sums = codes.double() @ layer.weight_codes().double().T
        x = (sums.float() * (layer.input_quant.scale * layer.weight_scale)) + layer.bias
    assert torch.allclose(network(images), x)


def test_pixels_keep_their_scale():
    network = IntegerMLP((12, 7, 3))
    calibrate(network, [0.5 * torch.rand(40, 12)], keep_given=True)
    assert float(linears(network)[0].input_quant.scale) == pytest.approx(1 / 255)
    assert linears(network)[1].input_quant.calibrated


@pytest.mark.parametrize("kind", [Int8MLP, IntegerMLP])
def test_is_scored_as_a_stack(kind):
    assert len(recognise(Classifier(kind((6, 5, 4, 3)))).linears) == 3


def test_too_few_sizes_are_refused():
    with pytest.raises(ValueError, match="Int8MLP: sizes needs an input and an output size, and 2 between them"):
        Int8MLP((784, 128, 10))
    with pytest.raises(ValueError, match="IntegerMLP: sizes needs an input and an output size"):
        IntegerMLP((784,))
