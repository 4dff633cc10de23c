"""The network with a mixture of experts: its equations, the paper's shape, and the strict one."""

import pytest
import torch

from lightning_polystep.functional import hard_moe
from lightning_polystep.layers import HardMoE, Staircase
from models import MoENet


def test_equals_its_equations():
    network, images = MoENet((12, 7, 3), num_experts=3), torch.rand(9, 1, 3, 4)
    first, mixture, last = network[1], network[3], network[4]
    x = first(images.flatten(1)).relu()
    assert torch.equal(network(images), last(hard_moe(x, mixture.router(x), list(mixture.experts))))
    assert len(mixture.experts) == 3


def test_defaults_are_those_of_the_paper():
    network = MoENet()
    expert = [(128, 128), (128,), (128, 128), (128,)]
    shapes = [tuple(weight.shape) for weight in network.parameters()]
    assert shapes == [(128, 784), (128,), *expert * 4, (4, 128), (4,), (10, 128), (10,)]


def test_the_strict_one_has_levels_everywhere():
    network, images = MoENet((12, 7, 3), strict=True), torch.rand(9, 12)
    kinds = [type(module) for module in network.modules()]
    assert kinds.count(Staircase) == 5
    assert kinds.count(HardMoE) == 1
    assert torch.nn.ReLU not in kinds
    scores = network(images) / 0.125
    assert torch.equal(scores, scores.round())


@pytest.mark.parametrize("sizes", [(784, 10), (784, 128, 128, 10)])
def test_sizes_are_three(sizes):
    with pytest.raises(ValueError, match="MoENet: sizes must be three"):
        MoENet(sizes)
