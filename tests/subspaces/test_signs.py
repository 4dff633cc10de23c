"""Numbers that act by their signs: both are reached from wherever a number is."""

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
