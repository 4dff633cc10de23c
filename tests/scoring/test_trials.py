"""Tiers of a block are tried on a few candidates, which the loop scores too."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.engine import Engine
from lightning_polystep.optimizer import PolyStep
from lightning_polystep.scoring.chunks import Chunking
from lightning_polystep.scoring.loop import LoopTier
from lightning_polystep.scoring.tier import Provider
from lightning_polystep.scoring.trials import Trials
from lightning_polystep.step import propose
from tests.helpers.parity import CASES, LOOP, TAPE, prepare, vectors


def tiers_of(module, closure):
    engine = Engine(module, PolyStep(module.parameters(), seed=0, rank=2, lr=0.0), announce=None)
    engine.step(closure)
    return {assignment.block.name: assignment.tier.name for assignment in engine.plan.assignments}


@pytest.mark.parametrize("strength", [1.0, 1e-2, 1e-3])
def test_a_penalty_on_the_weights_is_not_lost_in_the_tolerance(strength):
    """It depends on the weights beside what their layer computes, however small it is beside the loss."""
    network, (inputs, targets) = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)), vectors()

    def step():
        penalty = sum(layer.weight.abs().sum() for layer in (network[0], network[2]))
        return F.cross_entropy(network(inputs), targets) + strength * penalty

    assert set(tiers_of(network, step).values()) == {TAPE}


def test_hard_thresholds_do_not_send_a_network_to_the_loop():
    """Rounding may push a sample over a threshold in one way of scoring and not in the other."""
    (case,) = (case for case in CASES if case.name == "hard LIF with learned leak and threshold")
    for seed in range(3):
        torch.manual_seed(seed)
        module, (inputs, targets) = case.build().train(), case.batch()
        assert tiers_of(module, partial(case.loss_of, module, inputs, targets)) == case.tiers


# Numbers of few digits.


@pytest.mark.parametrize("precision", ["autocast", "all of it", "half"])
@pytest.mark.parametrize("seed", range(3))
def test_numbers_of_few_digits_do_not_send_a_network_to_the_loop(precision, seed):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    inputs, targets = torch.randn(32, 8), torch.randint(3, (32,))
    if precision == "all of it":
        network, inputs = network.bfloat16(), inputs.bfloat16()
    kind = torch.float16 if precision == "half" else torch.bfloat16

    def step():
        with torch.autocast("cpu", dtype=kind, enabled=precision != "all of it"):
            return F.cross_entropy(network(inputs), targets)

    assert set(tiers_of(network, step).values()) == {TAPE}


def test_in_numbers_of_few_digits_what_a_tier_overlooks_is_noticed_all_the_same():
    network, (inputs, targets) = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)), vectors()

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(network(inputs), targets)
        return loss + 0.1 * float(network[0].weight.abs().sum())

    assert tiers_of(network, step) == {"0": LOOP, "2": TAPE}


class Estimate(LoopTier):
    """Scores as the loop does and says that it approximates; affords so many candidates, a few of them at once."""

    name = "estimate"

    def __init__(self, affords, at_once):
        self.affords, self.at_once, self.scored = affords, at_once, []

    def affordable(self):
        return self.affords

    def chunking(self, memory_budget):
        return Chunking(self.at_once(memory_budget))

    def approximation(self):
        return "estimated"

    def score(self, proposal, probe, start, stop):
        self.scored.append((proposal.candidates, stop - start))
        return super().score(proposal, probe, start, stop)


def tried(affords, at_once=lambda budget: budget):
    """Let a tier be tried on a layer; return how many candidates it was given in all, and how many at once."""
    case = next(case for case in CASES if case.name == "hard LIF with learned leak and threshold")
    prepared = prepare(case, polytope="orthoplex")
    block, tier = next(iter(prepared.proposals.values())).block, Estimate(affords, at_once)

    def propose_trial(block, rank, rows):
        reach, known = torch.ones(block.rows), prepared.statistics.get(block.name)
        return propose(block, known, reach, seed=0, step=0, rank=rank, most_rows=rows)

    with prepared.probe.isolated():
        trials = Trials(prepared.probe, propose_trial, [Provider("estimate", lambda _: tier)], 5)
        choice = trials.choose(block, None)
    assert choice.tier is tier
    assert choice.error == 0
    return tier.scored


@pytest.mark.parametrize(("affords", "numbers"), [(1, {2, 16}), (17, {4, 32}), (None, {4, 60})])
def test_the_dearer_candidates_are_the_fewer_are_tried(affords, numbers):
    """Of six rows of five directions, a trial of cheap candidates takes all."""
    assert {of for of, _ in tried(affords)} == numbers


def test_no_more_candidates_are_tried_at_once_than_memory_allows():
    """A plan that replayed them all at once waited for the kernel to hand out memory."""
    scored = tried(None)
    assert max(count for _, count in scored) == 5
    assert sum(count for of, count in scored if of == 4) == 2 * 4
    assert {count for _, count in tried(None, lambda budget: budget - 2)} == {3, 1}
