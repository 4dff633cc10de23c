"""Numbers that are not finite in front of hard layers: noticed in every kind of layer, and nowhere else."""

import pytest
import snntorch
import torch
from torch import nn

from lightning_polystep.layers import (
    LIF,
    RLIF,
    ArgmaxAttention,
    HardMoE,
    Heaviside,
    QuantActivation,
    QuantConv2d,
    QuantLinear,
    Sign,
    SlotArgmaxAttention,
    Staircase,
    Synaptic,
)
from lightning_polystep.non_finite import noticing
from lightning_polystep.sites import not_recording
from models.binary_mlp import BinaryPixels

HARD = [
    LIF(num_steps=3),
    Synaptic(num_steps=3),
    RLIF(4, num_steps=3),
    Heaviside(),
    Sign(),
    BinaryPixels(),
    Staircase(),
    QuantActivation(signed=True, scale=0.1),
    QuantLinear(4, 3),
    ArgmaxAttention(4),
    SlotArgmaxAttention(4),
    HardMoE([nn.Linear(4, 2), nn.Linear(4, 2)], router=4),
    snntorch.Leaky(beta=0.9, init_hidden=True),
]


def noticed(network, *inputs):
    with torch.no_grad(), noticing(network) as seen:
        network(*inputs)
    return seen.non_finite()


@pytest.mark.parametrize("layer", HARD, ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_every_hard_layer_is_looked_at(layer, bad):
    inputs = torch.randn(5, 4)
    network = nn.Sequential(nn.Identity(), layer)
    assert noticed(network, inputs) == []
    inputs[3, 1] = bad
    assert "1" in noticed(network, inputs)


def test_convolutions_too():
    images = torch.randn(2, 1, 5, 5)
    images[1, 0, 2, 2] = torch.nan
    assert noticed(nn.Sequential(QuantConv2d(1, 2, 3)), images) == ["0"]


def test_other_layers_are_the_users_own_business():
    inputs = torch.full((5, 4), torch.nan)
    assert noticed(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), inputs) == []


def test_every_argument_and_every_call_counts():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = ArgmaxAttention(4)

        def forward(self, tokens, other):
            return self.attention(self.attention(tokens), other)

    tokens = torch.randn(2, 3, 4)
    assert noticed(Twice(), tokens, tokens) == []
    assert noticed(Twice(), tokens, torch.full_like(tokens, torch.inf)) == ["attention"]


def test_opposite_infinities_do_not_cancel():
    assert noticed(nn.Sequential(Sign()), torch.tensor([torch.inf, -torch.inf])) == ["0"]


def test_a_sum_of_halves_may_be_large():
    assert noticed(nn.Sequential(Sign()), torch.full((100,), 6e4, dtype=torch.float16)) == []
    assert noticed(nn.Sequential(Sign()), torch.tensor([torch.nan], dtype=torch.bfloat16)) == ["0"]
    assert noticed(nn.Sequential(Sign()), torch.full((3,), 1e300, dtype=torch.float64)) == []


def test_integers_are_finite_and_probes_do_not_count():
    assert noticed(nn.Sequential(Sign()), torch.tensor([1, -1])) == []
    with not_recording():
        assert noticed(nn.Sequential(Sign()), torch.tensor([torch.nan])) == []


def test_no_hook_stays_behind():
    network = nn.Sequential(Sign())
    with pytest.raises(RuntimeError, match="stop"), noticing(network):
        raise RuntimeError("stop")
    assert not network[0]._forward_pre_hooks
