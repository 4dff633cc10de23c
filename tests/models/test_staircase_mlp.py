"""The staircase network: its equations, the paper's shape, and that it is scored as a stack."""

import pytest
import torch

from lightning_polystep.functional import staircase
from lightning_polystep.layers import Staircase
from lightning_polystep.scoring.recognise import recognise
from models import Classifier, StaircaseMLP


def test_equals_its_equations():
    network, images = StaircaseMLP((12, 7, 5, 3)), torch.rand(4, 1, 3, 4)
    first, second, third = (layer for layer in network if isinstance(layer, torch.nn.Linear))
    assert torch.equal(network(images), third(staircase(second(staircase(first(images.flatten(1)))))))


def test_defaults_are_those_of_the_paper():
    network = StaircaseMLP()
    shapes = [tuple(weight.shape) for weight in network.parameters()]
    assert shapes == [(128, 784), (128,), (128, 128), (128,), (10, 128), (10,)]
    assert [layer.num_levels for layer in network if isinstance(layer, Staircase)] == [5, 5]


def test_options_reach_every_layer():
    network = StaircaseMLP((4, 3, 3, 2), levels=2, rounding="round", squash="tanh")
    layers = [layer for layer in network if isinstance(layer, Staircase)]
    assert [(layer.num_levels, layer.rounding, layer.squash) for layer in layers] == [(2, "round", "tanh")] * 2


def test_is_scored_as_a_stack():
    assert len(recognise(Classifier(StaircaseMLP((6, 5, 4, 3)))).linears) == 3


@pytest.mark.parametrize("sizes", [(), (784,)])
def test_too_few_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="StaircaseMLP: sizes needs an input and an output size"):
        StaircaseMLP(sizes)
