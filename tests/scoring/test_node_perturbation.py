"""Costs that are estimated from random shifts of a unit: right on the mean, and used only where they tell more."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep import Engine, PolyStep
from lightning_polystep.scoring.node_perturbation import NodePerturbationTier
from lightning_polystep.scoring.taped import TapeTier
from tests.helpers.tapes import blocks_of, record, trial

EXACT = {"rtol": 1e-9, "atol": 1e-11}


class Rounded(nn.Module):
    """A layer whose weights are rounded and masked on the way to its product."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(5))
        self.register_buffer("mask", (torch.rand(5, 6) > 0.5).double())

    def forward(self, x):
        return F.linear(x, (self.weight * 8).round() / 8 * self.mask, self.bias)


class Recurrent(nn.Module):
    """The same product at each of three times, every time of other inputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x):
        return sum((t + 1) * self.layer(x.roll(t, 1)) for t in range(3))


LAYERS = {
    "linear": lambda: nn.Linear(6, 5),
    "rounded and masked": Rounded,
    "tokens": lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Linear(3, 5)),
    "times": Recurrent,
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 5, 2, stride=(1, 2), padding=1)),
    "convolution of rows": lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 5, 2, dilation=2, padding=1)),
}
ONE_PLACE = {"linear", "rounded and masked"}


def setting(layer, loss=None, samples=7, **group):
    """Return the tier of a layer's weight, its candidates and the probe."""
    torch.manual_seed(0)
    net = nn.Sequential(layer).double()
    x = torch.randn(samples, 6).double()
    worth = torch.randn(net(x).shape[1:]).double()
    loss = loss or (lambda out: (out * worth).flatten(1).sum(1).mean())
    recording, probe, _ = record(net, lambda: loss(net(x)))
    block = max(blocks_of(net, **group), key=lambda block: block.dim)
    assert recording.entries(block) is not None
    tier = NodePerturbationTier(block, recording)
    tier.chunking(2**28)
    return tier, trial(block, rows=block.rows, vertices=8), probe


def scored(tier, proposal, probe):
    return tier.score(proposal, probe, 0, proposal.candidates)


@pytest.mark.parametrize("kind", sorted(ONE_PLACE))
def test_straight_responses_at_one_place_are_exact(kind):
    tier, proposal, probe = setting(LAYERS[kind]())
    costs = scored(tier, proposal, probe)
    assert costs.std() > 1e-3
    torch.testing.assert_close(costs, scored(tier.exact(), proposal, probe), **EXACT)


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_estimates_are_right_on_the_mean(kind):
    tier, proposal, probe = setting(LAYERS[kind]())
    exact = scored(tier.exact(), proposal, probe)
    tier.patterns = 8
    seed, _, _ = probe.noise_key
    drawn = []
    for step in range(60):
        probe.noise_key = (seed, step, 0)
        drawn.append(scored(tier, proposal, probe))
    every = torch.stack(drawn)
    error = every.std(0) / len(drawn) ** 0.5
    assert ((every.mean(0) - exact).abs() <= 5 * error + 1e-9).all()
    assert (kind in ONE_PLACE) == bool((error < 1e-9).all()), "several places are told apart by chance only"


def test_more_patterns_are_less_noisy():
    tier, proposal, probe = setting(LAYERS["convolution"](), samples=16)
    exact = scored(tier.exact(), proposal, probe)
    errors = []
    for patterns in (1, 64):
        tier.patterns = patterns
        errors.append(float((scored(tier, proposal, probe) - exact).std() / exact.std()))
    assert errors[1] < 0.4 * errors[0]


def test_reach_widens_shifts_and_candidates_alike():
    tier, proposal, probe = setting(LAYERS["tokens"]())
    costs, loss = scored(tier, proposal, probe), tier.known_loss()
    proposal.reach.mul_(2)
    torch.testing.assert_close(scored(tier, proposal, probe) - loss, 2 * (costs - loss), **EXACT)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_pieces_of_the_candidates_have_the_bits_of_the_whole(rows):
    """So that no bit depends on how many processes score."""
    tier, proposal, probe = setting(LAYERS["convolution"](), lambda out: out.tanh().flatten(1).sum(1).mean())
    tier._rows_at_once = rows
    whole, piece = scored(tier, proposal, probe), tier.piece(proposal, 1)
    cuts = [tier.score(proposal, probe, c, min(c + piece, len(whole))) for c in range(0, len(whole), piece)]
    assert torch.equal(torch.cat(cuts), whole)


def test_of_a_parameter_that_acts_elsewhere_too_nothing_is_estimated():
    net = nn.Sequential(nn.Linear(6, 5))
    x = torch.randn(7, 6)
    recording, _, _ = record(net, lambda: net(x).square().mean() + 0.1 * net[0].weight.square().sum())
    assert recording.entries(blocks_of(net)[0]) is None


class Pooled(nn.Module):
    """Convolutions whose loss is no function of scores that a last product makes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 16, 3)

    def forward(self, x):
        return F.relu(self.second(F.relu(self.first(x)))).mean((2, 3))


def planned(**options):
    torch.manual_seed(0)
    net = Pooled()
    x, y = torch.rand(64, 1, 9, 9), torch.arange(64) % 10
    engine = Engine(net, PolyStep(net.parameters(), seed=0, **options), announce=None)
    engine.step(lambda: F.cross_entropy(net(x), y))
    return {assignment.block.name: assignment for assignment in engine.plan.assignments}, net


def test_the_plan_takes_estimates_where_directions_are_many():
    plan, _ = planned()
    assert plan["second"].tier.name == "nodes"
    assert "random shifts" in plan["second"].note


@pytest.mark.parametrize("options", [{"response_grid": 0}, {"rank": 4}])
def test_exact_costs_are_given_to_whoever_asks_for_them(options):
    plan, _ = planned(**options)
    assert {type(assignment.tier) for assignment in plan.values()} == {TapeTier}


def test_rows_that_are_each_rounded_by_themselves_have_fewer_directions():
    of_their_own, shared = (setting(LAYERS[kind]())[0] for kind in ("rounded and masked", "linear"))
    assert of_their_own.most_directions() == 32
    assert shared.most_directions() is None


def test_a_noisy_estimate_is_not_taken():
    tier, proposal, _ = setting(nn.Sequential(nn.Unflatten(1, (6, 1)), nn.Conv1d(6, 5, 3, padding=1)))
    exact = torch.randn(proposal.candidates, generator=torch.Generator().manual_seed(0)).double()
    assert tier.verdict(proposal, exact, exact) == ""
    assert "noise" in tier.verdict(proposal, 100 * exact, exact)


def test_steps_are_the_same_bits():
    first, second = (planned()[1] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
