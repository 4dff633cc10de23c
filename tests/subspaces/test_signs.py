"""Numbers that act by their signs: both are reached from wherever a number is."""

import pytest
import torch
from torch import nn

from lightning_polystep import Engine, PolyStep
from lightning_polystep.particles import Block, Proposal
from lightning_polystep.randomness import generator
from lightning_polystep.subspaces import SignSubspace

SUBSPACE = SignSubspace()


def block(values):
    return Block("values", (nn.Parameter(values),), ("values",), {"probe_radius": 0.3}, len(values), 1, "signs")


def test_either_vertex_gives_its_sign_and_numbers_stay_within_one():
    signs = block(torch.tensor([-7.0, 0.2, 3.0]))
    with torch.no_grad():
        SUBSPACE.settle(Proposal(signs, torch.arange(3), torch.ones(3), torch.empty(1, 2, 1), 1, 1.0), torch.empty(0))
    (values,) = signs.parameters
    assert values.tolist() == [-1.0, torch.tensor(0.2).item(), 1.0]
    reach = SUBSPACE.probe_radius(signs.group) * SUBSPACE.basis(signs, 1, signs.group, None, generator(0, 0, "x"))
    assert bool((values + reach.float()[0] > 0).all())
    assert bool((values - reach.float()[0] < 0).all())


@pytest.mark.parametrize(
    ("largest", "unit"), [(0.875, 1.0), (1.0, 1.0), (1.125, 2.0), (0.02734375, 0.03125), (0.0, 1.0)]
)
def test_weights_are_kept_within_the_power_of_two_that_bounds_them(largest, unit):
    weight = nn.Parameter(torch.tensor([[0.0, -largest], [0.5 * largest, 0.0]]))
    signs = Block("weight", (weight,), ("weight",), {}, 2, 2, "signs", by_signs=True)
    assert SUBSPACE.basis(signs, 2, {}, None, generator(0, 0, "x")).diagonal().tolist() == [2 * unit] * 2
    before = weight.detach().clone()
    with torch.no_grad():
        weight += torch.tensor([[3 * unit, 0.0], [0.0, -3 * unit]])
        SUBSPACE.settle(Proposal(signs, torch.arange(2), torch.ones(2), torch.empty(2, 2, 2), 1, 1.0), before)
    assert weight.tolist() == [[unit, -largest], [0.5 * largest, -unit]]


def test_numbers_without_a_signal_are_not_probed_wider():
    class Signs(nn.Module):
        own_subspaces = {"values": "signs"}  # noqa: RUF012 - as a module of the user's would write it

        def __init__(self):
            super().__init__()
            self.values = nn.Parameter(torch.tensor([-0.5, 0.5, -0.5]))

        def forward(self):
            return (self.values[:2] < 0).double().sum()  # the third does not count

    module = Signs()
    optimizer = PolyStep(module.parameters(), seed=0, lr=0.4, epsilon=0.5, momentum=0.0)
    engine = Engine(module, optimizer, announce=None)
    for _ in range(4):
        engine.step(module)
    (assignment,) = engine.plan.assignments
    assert (assignment.block.subspace, assignment.block.remark) == ("signs", "as its module asks")
    assert optimizer.reach(assignment.block).tolist() == [1.0, 1.0, 1.0]
    assert module.values[:2].min() > 0
    assert module.values[2] == -0.5
