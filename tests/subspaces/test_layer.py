"""A whole layer moves along Gaussian directions, in units of its pre-activations."""

import torch
from torch import nn

from lightning_polystep import Engine, PolyStep
from lightning_polystep.blocks import find_blocks
from lightning_polystep.layers import LIF
from lightning_polystep.randomness import generator
from lightning_polystep.subspaces import LayerSubspace


def blocks_of(module, subspace="layer"):
    return find_blocks(module, PolyStep(module.parameters(), subspace=subspace).param_groups)


def test_every_layer_is_one_row_of_its_own():
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3, bias=False))
    first, last = blocks_of(network)
    assert [(b.name, b.rows, b.dim, b.subspace) for b in (first, last)] == [
        ("0", 1, 40, "layer"),
        ("2", 1, 24, "layer"),
    ]
    assert first.parameters == (network[0].weight, network[0].bias)
    assert (first.scales, last.scales) == ((1 / 5**0.5, 1 / 5**0.5), (1 / 8**0.5,))


def test_constants_of_neurons_and_tables_stay_apart():
    network = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), LIF(beta=nn.Parameter(torch.tensor(0.9))))
    table, layer, constant = blocks_of(network)
    assert (layer.subspace, table.rows, constant.constant) == ("layer", 5, True)
    assert "apart from the layer particle" in table.remark


def test_a_unit_of_radius_moves_every_units_preactivation_by_about_one():
    (block,) = blocks_of(nn.Linear(14, 20))
    moves = torch.cat([LayerSubspace().basis(block, 4, {}, None, generator(seed, 0, "basis")).T for seed in range(75)])
    rows = torch.cat([moves[:, :280].reshape(300, 20, 14), moves[:, 280:, None]], dim=2)
    assert abs(float(rows.square().sum(-1).mean()) - 1) < 0.05  # mean square for inputs of mean square 1


def test_the_papers_particles_learn():
    x = torch.randn(64, 4)
    y = (x[:, 0] * x[:, 1] > 0).long()
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = PolyStep(
        network.parameters(),
        subspace="layer",
        polytope="simplex",
        rank=16,
        particle_dim=8,
        anchor_every=5,
        rotation_bias=0.5,
        lr=0.2,
        seed=0,
    )
    engine = Engine(network, optimizer, announce=None)
    losses = [float(engine.step(lambda: nn.functional.cross_entropy(network(x), y))) for _ in range(60)]
    assert engine.plan.last_candidates == {"0": 18, "2": 18}
    assert losses[-1] < 0.8 * losses[0]
