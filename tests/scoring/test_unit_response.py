"""Candidates scored by the answers of their units: against exact costs, and as a plan uses them."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep import Engine, PolyStep
from lightning_polystep.scoring.taped import TapeTier
from lightning_polystep.scoring.tier import NotOfferedError
from lightning_polystep.scoring.unit_response import UnitResponseTier, offer_units
from tests.helpers.estimated import Convolutional
from tests.helpers.tapes import blocks_of, record, trial

EXACT = {"rtol": 1e-9, "atol": 1e-11}


def planned(**options):
    torch.manual_seed(0)
    net = Convolutional()
    x, y = torch.rand(64, 3, 9, 9), torch.arange(64) % 10
    engine = Engine(net, PolyStep(net.parameters(), seed=0, **options), announce=None)
    engine.step(lambda: F.cross_entropy(net(x), y))
    for _ in range(2):
        engine.step(lambda: F.cross_entropy(net(x), y))
    return {assignment.block.name: assignment for assignment in engine.plan.assignments}, net


def test_the_plan_takes_estimates_where_directions_are_many():
    plan, _ = planned()
    assert plan["second"].tier.name == "units"
    assert "unit's answer and what takes it in" in plan["second"].note
    assert "unit's answer and mirrors that are learned" in plan["first"].note
    assert plan["second"].most_rows is None


@pytest.mark.parametrize("options", [{"response_grid": 0}, {"rank": 4}])
def test_exact_costs_are_given_to_whoever_asks_for_them(options):
    plan, _ = planned(**options)
    assert {type(assignment.tier) for assignment in plan.values()} == {TapeTier}


def setting(net, shape, loss, name, **group):
    torch.manual_seed(0)
    net, x = net.double(), torch.randn(shape).double()
    recording, probe, _ = record(net, lambda: loss(net(x)))
    block = next(each for each in blocks_of(net, **group) if each.name == name)
    tier = UnitResponseTier(block, recording)
    tier.chunking(2**28)
    return tier, trial(block, rows=block.rows, vertices=8), probe


def scored(tier, proposal, probe):
    return tier.score(proposal, probe, 0, proposal.candidates)


def weighted(out):
    draw = torch.Generator().manual_seed(3)
    return (out * torch.randn(out.shape[1:], generator=draw).double()).flatten(1).sum(1).mean()


class ScaledLayer(nn.Linear):
    """A product that is scaled, unit by unit and as a whole, before its bias is added: as layers of few bits do."""

    def __init__(self, features_in, features_out):
        super().__init__(features_in, features_out)
        self.register_buffer("scale", torch.linspace(0.2, 2.0, features_out))

    def forward(self, x):
        return F.linear(x, self.weight.round(decimals=1)) * self.scale / 1.5 + self.bias


class ScaledFilters(nn.Conv2d):
    """Likewise for images."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("scale", torch.linspace(0.2, 2.0, self.out_channels))

    def forward(self, x):
        made = F.conv2d(x, self.weight, None)
        return made.mul(self.scale.view(1, -1, 1, 1)) + self.bias.view(1, -1, 1, 1)


LINEAR = {
    "filters of one channel each": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 2, groups=4), nn.Flatten(), nn.Linear(48, 3)),
        (7, 4, 5, 4),
        "0.weight",
    ),
    "filters of one row of one channel each": (
        lambda: nn.Sequential(nn.Conv1d(4, 4, 3, stride=2, padding=1, groups=4), nn.Flatten(), nn.Linear(12, 3)),
        (7, 4, 6),
        "0.weight",
    ),
    "a bias behind a scale": (lambda: nn.Sequential(ScaledLayer(6, 5), nn.Linear(5, 3)), (7, 6), "0"),
    "scores with a bias behind a scale": (lambda: nn.Sequential(ScaledLayer(6, 5)), (7, 6), "0"),
    "filters with a bias behind a scale": (
        lambda: nn.Sequential(ScaledFilters(1, 5, 2), nn.Flatten(), nn.Linear(60, 3)),
        (7, 1, 5, 4),
        "0",
    ),
    "the scores": (lambda: nn.Sequential(nn.Linear(6, 5)), (7, 6), "0"),
    "a layer before the readout": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), (7, 6), "0"),
    "tokens": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Flatten(), nn.Linear(20, 3)), (7, 4, 6), "0"),
    "filters": (lambda: nn.Sequential(nn.Conv2d(1, 5, 2), nn.Flatten(), nn.Linear(60, 3)), (7, 1, 5, 4), "0"),
}


@pytest.mark.parametrize("kind", sorted(LINEAR))
def test_where_everything_behind_is_linear_costs_are_exact(kind):
    make, shape, name = LINEAR[kind]
    torch.manual_seed(0)
    tier, proposal, probe = setting(make(), shape, weighted, name)
    costs = scored(tier, proposal, probe)
    assert costs.std() > 1e-3
    torch.testing.assert_close(costs, scored(tier.exact(), proposal, probe), **EXACT)


class Mixing(nn.Module):
    """Mixes units by no product, so that nothing but feedback can be learned."""

    def forward(self, x):
        return x.cumsum(-1)


@pytest.mark.parametrize("between", [(), (Mixing(),)])
def test_what_is_learned_comes_near_exact_costs(between):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), *between, nn.Linear(5, 4), nn.Linear(4, 3))
    tier, proposal, probe = setting(net, (64, 6), weighted, "0")
    exact = scored(tier.exact(), proposal, probe)
    for step in range(60):
        probe.noise_key = (0, step, 0)
        tier.look(proposal, probe)
    error = (scored(tier, proposal, probe) - exact).std() / exact.std()
    assert error < 0.1


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_pieces_of_the_candidates_have_the_bits_of_the_whole(rows):
    """So that no bit depends on how many processes score."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(60, 3))
    tier, proposal, probe = setting(net, (7, 1, 5, 4), lambda out: out.tanh().sum(1).mean(), "0")
    tier._rows_at_once = rows
    whole, piece = scored(tier, proposal, probe), tier.piece(proposal, 1)
    cuts = [tier.score(proposal, probe, c, min(c + piece, len(whole))) for c in range(0, len(whole), piece)]
    assert torch.equal(torch.cat(cuts), whole)


def wide(between=nn.ReLU, **group):
    net = nn.Sequential(nn.Linear(64, 40), between(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 4))
    x = torch.randn(32, 64)
    recording, _, _ = record(net, lambda: F.cross_entropy(net(x), torch.arange(32) % 4))
    return recording, {each.name: each for each in blocks_of(net, **group)}


def test_a_grid_that_is_asked_for_is_used():
    recording, blocks = wide(response_grid=5)
    with pytest.raises(NotOfferedError, match="grid"):
        offer_units(recording, blocks["0"])


def test_processes_that_divide_a_batch_learn_no_feedback():
    recording, blocks = wide(Mixing)
    assert offer_units(recording, blocks["0"]).needs_samples
    recording.divides_batches = True
    with pytest.raises(NotOfferedError, match="divide a batch"):
        offer_units(recording, blocks["0"])
    assert not offer_units(recording, blocks["2"]).learns


def test_processes_that_divide_a_batch_learn_the_same_mirrors():
    recording, blocks = wide()
    recording.divides_batches = True
    tier = offer_units(recording, blocks["0"])
    assert tier.learns
    assert not tier.needs_samples


def test_few_candidates_are_scored_exactly():
    net, x = nn.Linear(4, 3), torch.randn(9, 4)
    recording, _, _ = record(net, lambda: F.cross_entropy(net(x), torch.arange(9) % 3))
    with pytest.raises(NotOfferedError, match="exactly"):
        offer_units(recording, blocks_of(net)[0])


def test_an_estimate_that_points_away_is_not_taken():
    recording, blocks = wide()
    tier = offer_units(recording, blocks["2"])
    proposal = trial(blocks["2"], rows=3, vertices=8)
    exact = torch.randn(proposal.candidates, generator=torch.Generator().manual_seed(0)).double()
    assert tier.verdict(proposal, exact, exact) == ""
    assert "cosine of -1.00" in tier.verdict(proposal, -exact, exact)


def test_flips_have_to_point_away_by_more_than_chance():
    recording, blocks = wide()
    flipped = dataclasses.replace(blocks["2"], by_signs=True)
    proposal = trial(flipped, rows=1, vertices=8)
    exact, across = torch.eye(8).double()[:2].repeat(1, len(proposal.rows))
    chance = proposal.candidates / 2
    for times, block, accepted in [(0.9, flipped, True), (1.1, flipped, False), (0.9, blocks["2"], False)]:
        cosine = -times * chance**-0.5
        costs = cosine * exact + (1 - cosine**2) ** 0.5 * across
        assert (UnitResponseTier(block, recording).verdict(proposal, costs, exact) == "") == accepted


def test_a_batch_of_one_sample_among_others_changes_no_tier():
    torch.manual_seed(0)
    net = Convolutional()
    engine = Engine(net, PolyStep(net.parameters(), seed=0), announce=None)

    def step(samples):
        x, y = torch.rand(samples, 3, 9, 9), torch.arange(samples) % 10
        engine.step(lambda: F.cross_entropy(net(x), y))
        return {each.block.name: each.tier.name for each in engine.plan.assignments}

    before = step(64)
    assert "units" in before.values()
    with pytest.warns(UserWarning, match="unlike the first"):
        assert step(1) == before
    assert step(33) == before


def test_what_was_learned_is_in_a_checkpoint_and_goes_on_to_the_bit():
    torch.manual_seed(0)
    x, y = torch.rand(64, 3, 9, 9), torch.arange(64) % 10

    def engine(net):
        optimizer = PolyStep(net.parameters(), seed=0)
        return Engine(net, optimizer, announce=None), optimizer

    def steps(net, own, count):
        for _ in range(count):
            own.step(lambda: F.cross_entropy(net(x), y))

    straight = Convolutional()
    stopped = copy.deepcopy(straight)
    first, _ = engine(straight)
    steps(straight, first, 4)
    before, optimizer = engine(stopped)
    steps(stopped, before, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    assert saved["polystep"]["learned"]["mirrors of second.weight, 16 by 24 by 3 by 3"]
    resumed = copy.deepcopy(stopped)
    after, fresh = engine(resumed)
    fresh.load_state_dict(saved)
    steps(resumed, after, 2)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_a_state_that_is_loaded_in_mid_run_replaces_what_tiers_have_learned():
    torch.manual_seed(0)
    net, x, y = Convolutional(), torch.rand(64, 3, 9, 9), torch.arange(64) % 10
    optimizer = PolyStep(net.parameters(), seed=0)
    engine = Engine(net, optimizer, announce=None)

    def two_steps():
        for _ in range(2):
            engine.step(lambda: F.cross_entropy(net(x), y))
        return [parameter.clone() for parameter in net.parameters()]

    two_steps()
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(net.state_dict())
    once = two_steps()
    net.load_state_dict(weights)
    optimizer.load_state_dict(saved)
    assert all(torch.equal(a, b) for a, b in zip(once, two_steps(), strict=True))


def test_steps_are_the_same_bits():
    first, second = (planned()[1] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
