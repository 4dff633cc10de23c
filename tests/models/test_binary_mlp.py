"""The binary network: ones and minus ones everywhere, and latent weights of the size of what they act as."""

import pytest
import torch

from lightning_polystep.functional import sign
from lightning_polystep.layers import QuantLinear, Sign
from lightning_polystep.scoring.recognise import recognise
from models import BinaryMLP, Classifier
from models.binary_mlp import BinaryPixels


def test_equals_its_equations():
    network, images = BinaryMLP((12, 7, 5, 3)), torch.rand(9, 1, 3, 4)
    x = images.flatten(1) - 0.5
    for layer in (layer for layer in network if isinstance(layer, QuantLinear)):
        sums = sign(x) @ sign(layer.weight).T
        assert torch.equal(sums, sums.round())
        x = sums * len(sign(x)[0]) ** -0.5 + layer.bias
    assert torch.allclose(network(images), x)


def test_defaults_are_those_of_tfc():
    network = BinaryMLP()
    shapes = [tuple(weight.shape) for weight in network.parameters() if weight.ndim == 2]
    assert shapes == [(64, 784), (64, 64), (64, 64), (10, 64)]
    assert sum(type(layer) is Sign for layer in network) == 3
    assert all(layer.weight_format == "binary" for layer in network if isinstance(layer, QuantLinear))


def test_latent_weights_are_smaller_than_the_binary_ones():
    layer = BinaryMLP()[2]
    latent, acting = layer.weight.detach().square().mean().sqrt(), layer.weight_scale.mean()
    assert float(latent / acting) == pytest.approx(0.35, abs=0.02)


def test_pixels_keep_the_promise_of_a_step_function():
    layer = BinaryPixels(0.25)
    pixels = torch.tensor([0.0, 0.2, 0.25, 0.3, 1.0])
    assert layer(pixels).tolist() == [-1, -1, 1, 1, 1]
    assert layer.levels(torch.float64).tolist() == [-1, 1]
    assert str(layer) == "BinaryPixels(threshold=0.25)"


def test_is_scored_as_a_stack():
    assert len(recognise(Classifier(BinaryMLP((6, 5, 4, 3)))).linears) == 3


def test_too_few_sizes_are_refused():
    with pytest.raises(ValueError, match="BinaryMLP: sizes needs an input and an output size"):
        BinaryMLP((784,))
