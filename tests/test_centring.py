"""Biases that move along with weights: mean pre-activations stay, in the layer and in what candidates are."""

import pytest
import torch

from lightning_polystep.centring import bias_shifts
from lightning_polystep.layers import QuantConv2d, QuantLinear
from lightning_polystep.particles import Block, Proposal


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_the_pre_activation_at_the_mean_stays(granularity):
    layer = QuantLinear(5, 4, weight_format="binary", granularity=granularity)
    rows, mean = torch.tensor([0, 2]), torch.randn(5)
    before, after = layer.weight.detach().clone(), torch.randn(4, 5)
    expected = layer(mean).detach()
    shifts = bias_shifts(layer, rows, before[rows], after[rows], mean)
    with torch.no_grad():
        layer.weight[rows] = after[rows]
        layer.bias[rows] += shifts
    torch.testing.assert_close(layer(mean).detach(), expected)
    assert bool((shifts != 0).any())


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_candidate_moves_the_bias_where_it_flips_a_weight(kind):
    options = {"weight_format": "binary", "granularity": "per_tensor"}
    layer = QuantLinear(4, 3, **options) if kind == "linear" else QuantConv2d(1, 3, 2, **options)
    layer.weight_scale = torch.tensor(0.5)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -1.0, 1.0, -1.0]).expand(3, 4).reshape(layer.weight.shape))
    block = Block("layer", tuple(layer.parameters()), (), {}, 3, 5, "flips", site=layer)
    directions = 3 * torch.eye(5)[:, None]
    centre = torch.tensor([0.1, 0.2, 0.3, 0.4])
    _, moved = Proposal(block, torch.arange(3), torch.ones(3), directions, 1, 1.0, centre=centre).displacements(0, 5)
    expected = 3 * torch.eye(5)
    expected[[1, 3], -1] = torch.tensor([-0.2, -0.4])
    torch.testing.assert_close(moved, expected)
