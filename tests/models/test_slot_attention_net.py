"""The network with argmax attention: its equations and the paper's shape."""

import pytest
import torch

from lightning_polystep.functional import slot_argmax_attention
from models import SlotAttentionNet


def test_equals_its_equations():
    network, images = SlotAttentionNet((12, 7, 3), num_slots=4), torch.rand(9, 1, 3, 4)
    first, attention, last = network[1], network[3], network[4]
    x = first(images.flatten(1)).relu()
    assert torch.equal(network(images), last(slot_argmax_attention(x, attention.keys, attention.value(x))))
    assert attention.keys.shape == (4, 7)


def test_defaults_are_those_of_the_paper():
    shapes = [tuple(weight.shape) for weight in SlotAttentionNet().parameters()]
    assert shapes == [(128, 784), (128,), (8, 128), (128, 128), (128,), (10, 128), (10,)]


def test_samples_take_different_slots_from_the_first_step():
    network = SlotAttentionNet()
    with torch.no_grad():
        hidden = torch.nn.Sequential(*list(network)[:3])(torch.rand(200, 784) * (torch.rand(200, 784) < 0.2))
        slots = (hidden @ network[3].keys.T).argmax(1)
    assert len(slots.unique()) >= 2


@pytest.mark.parametrize("sizes", [(784, 10), (784, 128, 128, 10)])
def test_sizes_are_three(sizes):
    with pytest.raises(ValueError, match="SlotAttentionNet: sizes must be three"):
        SlotAttentionNet(sizes)
