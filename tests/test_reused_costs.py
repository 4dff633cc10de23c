"""Costs that serve several steps: what is scored, what moves, and what a checkpoint keeps."""

import copy
import itertools

import pytest
import torch
from torch import nn

from lightning_polystep import Engine, PolyStep
from lightning_polystep.hosted import Pending
from lightning_polystep.reused_costs import ReusedCosts

X, Y = torch.randn(32, 4, generator=torch.Generator().manual_seed(3)), torch.arange(32) % 3


def start(seed=0, **options):
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = PolyStep(network.parameters(), rank=4, seed=seed, **options)
    return network, optimizer, Engine(network, optimizer, announce=None)


def step(network, engine):
    engine.step(lambda: nn.functional.cross_entropy(network(X), Y))


def weights(network):
    return torch.cat([parameter.detach().flatten().clone() for parameter in network.parameters()])


def test_candidates_are_scored_at_every_third_step_and_all_steps_move():
    network, optimizer, engine = start(reuse_costs=3)
    scored, reported, places = [], [], [weights(network)]
    for _ in range(7):
        step(network, engine)
        scored.append(optimizer.progress.candidates)
        reported.append(optimizer.binding.report["candidates"])
        places.append(weights(network))
    once = scored[0]
    assert scored == [once, once, once, 2 * once, 2 * once, 2 * once, 3 * once]
    assert [figure > 0 for figure in reported] == [True, False, False, True, False, False, True]
    assert all(not torch.equal(*pair) for pair in itertools.pairwise(places))


def test_without_momentum_the_same_move_is_made_again():
    network, _, engine = start(reuse_costs=2, momentum=0.0)
    places = [weights(network)]
    for _ in range(2):
        step(network, engine)
        places.append(weights(network))
    torch.testing.assert_close(places[2] - places[1], places[1] - places[0], atol=1e-6, rtol=1e-4)


def test_one_is_what_it_was():
    runs = []
    for options in ({}, {"reuse_costs": 1}):
        network, _, engine = start(**options)
        for _ in range(3):
            step(network, engine)
        runs.append(weights(network))
    assert torch.equal(*runs)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_run_has_the_same_bits(stop):
    runs = []
    for stopped in (False, True):
        network, optimizer, engine = start(reuse_costs=3, anchor_every=2, rotation_bias=0.5)
        for number in range(5):
            if stopped and number == stop:
                state, values = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(network.state_dict())
                network, optimizer, engine = start(seed=9, reuse_costs=3, anchor_every=2, rotation_bias=0.5)
                network.load_state_dict(values)
                optimizer.load_state_dict(state)
            step(network, engine)
        runs.append(weights(network))
    assert torch.equal(*runs)


def test_blocks_take_turns_by_the_steps_that_score():
    network, optimizer, engine = start(reuse_costs=2)
    step(network, engine)
    for assignment in engine.plan.assignments:
        assignment.period, assignment.place = 2, engine.plan.assignments.index(assignment)
    moved = set()
    for _ in range(4):
        step(network, engine)
        moved |= {proposal.block.name for proposal in optimizer._reused.pending.proposals}
    assert moved == {"0", "2"}


def test_costs_of_other_blocks_are_dropped():
    network, optimizer, engine = start(reuse_costs=3)
    step(network, engine)
    network[0].weight.requires_grad_(False)
    before = network[0].weight.clone()
    step(network, engine)
    assert torch.equal(network[0].weight, before)
    assert optimizer._reused.pending is None


def test_what_does_not_fit_the_blocks_is_not_restored():
    reused, empty = ReusedCosts(loaded={"blocks": {"gone": {}}, "weight": 1.0}), Pending([], [])
    assert reused.of(empty) is empty
    assert reused.state_dict() is None
