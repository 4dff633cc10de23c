"""Flips: candidates that give each binary weight both signs, from biases around the row's own."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from lightning_polystep import Engine, PolyStep
from lightning_polystep.layers import QuantLinear
from lightning_polystep.particles import Block, Proposal
from lightning_polystep.randomness import generator
from lightning_polystep.sites import update_statistics
from lightning_polystep.subspaces import SUBSPACES, FlipSubspace, particle_dim
from models import BinaryMLP

SUBSPACE = FlipSubspace()
GROUP = {"probe_radius": 0.3, "particle_dim": 4}


def block(bias=True):
    layer = QuantLinear(6, 4, bias=bias, weight_format="binary", granularity="per_tensor")
    layer.weight_scale = torch.tensor(0.25)
    parameters = tuple(layer.parameters())
    return Block("layer", parameters, (), GROUP, 4, 6 + bias, "flips", site=layer)


def proposal(flips, centre=None):
    return Proposal(flips, torch.arange(4), torch.ones(4), torch.empty(0, 2, flips.dim), 1, 1.0, centre=centre)


def draw(step=0):
    return generator(0, step, "basis/layer")


def test_either_vertex_gives_its_sign_whatever_the_latent_weight_is():
    flips = block()
    weight = flips.parameters[0]
    with torch.no_grad():
        weight.mul_(100)
        SUBSPACE.settle(proposal(flips), weight.clone())
    steps = SUBSPACE.basis(flips, 7, GROUP, None, draw()).float()
    for column in range(6):
        moved = SUBSPACE.probe_radius(GROUP) * steps[:6, column]
        assert bool(((weight + moved)[:, column] > 0).all())
        assert bool(((weight - moved)[:, column] < 0).all())


def test_latent_weights_stay_within_the_scale_and_biases_are_free():
    flips = block()
    weight, bias = flips.parameters
    with torch.no_grad():
        weight[0, :2] = torch.tensor([3.0, -0.1])
        bias.fill_(9.0)
        SUBSPACE.settle(proposal(flips), weight.clone())
    assert weight[0, :2].tolist() == pytest.approx([0.25, -0.1])
    assert bool((bias == 9).all())


def test_the_starts_are_biases_whose_root_mean_square_is_the_radius():
    starts = torch.cat([SUBSPACE.starts(block(), GROUP, draw(step)) for step in range(50)])
    assert bool((starts[:, :-1] == 0).all())
    assert float(starts[:, -1].square().mean().sqrt()) == pytest.approx(0.3, rel=0.1)
    assert abs(float(starts[:, -1].mean())) < 0.02
    one = SUBSPACE.starts(block(), GROUP, draw())[:, -1]
    assert bool((one.diff() > 0).all())


@pytest.mark.parametrize("scale", [0.25, 1.0, 28.0])
@pytest.mark.parametrize("size", [1.0, 0.1])
def test_the_radius_is_in_units_of_the_pre_activation(scale, size):
    flips = block()
    flips.site.weight_scale = torch.full_like(flips.site.weight_scale, scale)
    rows = size * (torch.rand(200, flips.dim - 1).round() * 2 - 1)
    rows = torch.cat([rows, torch.ones(200, 1)], 1).double()
    starts = SUBSPACE.starts(flips, GROUP, draw(), update_statistics(None, rows.T @ rows / 200))
    expected = SUBSPACE.starts(flips, GROUP, draw()) * scale * size * (flips.dim - 1) ** 0.5
    torch.testing.assert_close(starts, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("factor", [1 / 16, 8.0, 64.0])
def test_a_network_of_another_weight_scale_learns_the_same(factor):
    def trained(scale):
        torch.manual_seed(0)
        network = BinaryMLP((16, 8, 3))
        network[2].weight_scale *= scale
        with torch.no_grad():
            network[2].weight *= scale
        x = torch.rand(64, 16)
        y = x[:, :3].argmax(1)
        engine = Engine(network, PolyStep(network.parameters(), seed=0, subspace="flips"), announce=None)
        for _ in range(8):
            engine.step(lambda: cross_entropy(network(x), y))
        return network[2].weight.detach() / scale, network[4].weight.detach()

    for one, other in zip(trained(1.0), trained(factor), strict=True):
        assert torch.equal(one, other)


def test_without_a_bias_a_row_is_scored_where_it_is():
    assert SUBSPACE.starts(block(bias=False), GROUP, draw()) is None


def test_where_a_weight_flips_the_bias_moves_along():
    flips, inputs = block(), (torch.rand(50, 6) < 0.8) * 2.0 - 1
    weight, bias = flips.parameters
    rows = torch.cat([inputs, torch.ones(50, 1)], 1).double()
    centre = SUBSPACE.centre(flips, update_statistics(None, rows.T @ rows / 50)).float()
    assert float((centre - inputs.mean(0)).abs().max()) <= 0.125
    before, kept, mean = weight.detach().clone(), bias.detach().clone(), flips.site(centre).detach()
    with torch.no_grad():
        weight[1:, 2].neg_()
        weight[2, 5] *= 0.1
        SUBSPACE.settle(proposal(flips, centre), before)
    torch.testing.assert_close(flips.site(centre).detach(), mean)
    assert (bias == kept).tolist() == [True, False, False, False]


def test_without_a_bias_or_inputs_nothing_is_centred():
    moment = torch.eye(6, dtype=torch.float64)
    assert SUBSPACE.centre(block(bias=False), update_statistics(None, moment)) is None
    assert SUBSPACE.centre(block(), None) is None


def test_each_weight_is_a_particle():
    assert SUBSPACES["flips"].name == "flips"
    assert particle_dim(block(), 7) == 1
