"""Parameters that are operands by themselves, against exact costs, and as a plan uses them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep import Engine, PolyStep
from lightning_polystep.particles import Proposal
from lightning_polystep.scoring import alike as alike_module
from lightning_polystep.scoring import scores as scores_module
from lightning_polystep.scoring.operands import OperandTier, offer_operands
from lightning_polystep.scoring.taped import TapeTier
from lightning_polystep.scoring.tier import NotOfferedError
from tests.helpers.tapes import blocks_of, record, trial


class Tokens(nn.Module):
    """Tokens with positions, a norm, biases beside a product, and a gain."""

    def __init__(self):
        super().__init__()
        self.table, self.places = nn.Embedding(7, 6), nn.Parameter(torch.randn(4, 6))
        self.norm, self.mix = nn.LayerNorm(6), nn.Linear(6, 6)
        self.weight, self.bias = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6))
        self.gain, self.head = nn.Parameter(torch.ones(1, 1, 6)), nn.Linear(6, 3)

    def forward(self, x):
        x = self.table(x) + self.places
        x = x + self.mix(self.norm(x)).tanh()
        x = F.linear(x, self.weight, self.bias).tanh() * self.gain
        return self.head(x.mean(1))


class Images(nn.Module):
    """Convolutions with norms of the batch."""

    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.two, self.again = nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.norm(self.one(x)).tanh()
        return self.head(self.again(self.two(x)).tanh().mean((2, 3)))


def setting(make, x, name):
    torch.manual_seed(0)
    net = make().double()
    recording, probe, _ = record(net, lambda: F.cross_entropy(net(x), torch.arange(len(x)) % 3))
    block = next(each for each in blocks_of(net) if name in each.parameter_names)
    return OperandTier(block, recording), trial(block, 1e-4, rows=min(4, block.rows), vertices=6), probe


CASES = [(Tokens, name) for name in ("table.weight", "places", "norm.weight", "norm.bias", "bias", "gain")]
CASES += [(Images, name) for name in ("norm.weight", "norm.bias", "again.weight", "again.bias")]


@pytest.mark.parametrize(("make", "name"), CASES)
def test_small_moves_cost_what_they_cost_exactly(make, name, monkeypatch):
    monkeypatch.setattr(scores_module, "_RADII", (1e-3,))
    monkeypatch.setattr(alike_module, "_USUAL_SHIFT", 1e-3)
    torch.manual_seed(1)
    x = torch.randint(0, 7, (12, 4)) if make is Tokens else torch.randn(12, 1, 8, 8).double()
    tier, proposal, probe = setting(make, x, name)
    for step in range(40):
        probe.noise_key = (0, step, 0)
        tier.look(proposal, probe)
    costs = tier.score(proposal, probe, 0, proposal.candidates) - tier.known_loss()
    exact = tier.exact().score(proposal, probe, 0, proposal.candidates) - tier.known_loss()
    assert exact.std() > 0
    assert F.cosine_similarity(costs, exact, dim=0) > 0.99


def test_a_plan_takes_it_where_exact_costs_are_dear():
    torch.manual_seed(0)
    width = 32
    body = [nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU()]
    for _ in range(2):
        body += [nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.ReLU()]
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))
    x, y = torch.randn(32, 1, 12, 12), torch.arange(32) % 3
    engine = Engine(net, PolyStep(net.parameters(), seed=0), announce=None)
    losses = [float(engine.step(lambda: F.cross_entropy(net(x), y))) for _ in range(10)]
    plan = {each.block.name: each for each in engine.plan.assignments}
    assert plan["1.weight"].tier.name == "operands"
    assert "operand" in plan["1.weight"].note
    assert plan["1.weight"].most_rows is None
    assert losses[-1] < 0.8 * losses[0]


def test_where_it_is_not_offered():
    x = torch.randint(0, 7, (12, 4))
    tier, _, _ = setting(Tokens, x, "norm.bias")
    for options, reason in (({"response_grid": 0}, "asks for exact costs"), ({"rank": 2}, "asked for")):
        before = dict(tier.block.group)
        tier.block.group.update(options)
        with pytest.raises(NotOfferedError, match=reason):
            offer_operands(tier.recording, tier.block)
        tier.block.group.update(before)
    assert type(tier.exact()) is TapeTier


def test_an_estimate_that_hardly_agrees_is_not_taken():
    tier, proposal, _ = setting(Tokens, torch.randint(0, 7, (12, 4)), "norm.bias")
    exact, noise = torch.randn(2, proposal.candidates, generator=torch.Generator().manual_seed(0)).double()
    assert tier.verdict(proposal, exact, exact) == ""
    assert "is asked for" in tier.verdict(proposal, noise, exact)


@pytest.mark.parametrize(("cosine", "accepted"), [(0.9, True), (0.0, True), (-0.4, True), (-0.6, False)])
def test_where_exact_costs_are_dear_estimates_must_point_away_by_more_than_chance(cosine, accepted, monkeypatch):
    """Of four rows of one number."""
    torch.manual_seed(0)
    tier, _, _ = setting(Images, torch.randn(12, 1, 8, 8).double(), "norm.bias")
    monkeypatch.setattr(TapeTier, "affords_all", lambda _: False)
    proposal = Proposal(tier.block, torch.arange(4), torch.ones(4), torch.tensor([[[1.0], [-1.0]]]), 1, 0.3, True)
    exact, across = torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    found = cosine * exact + (1 - cosine**2) ** 0.5 * across
    both = [torch.stack([each, -each], 1).flatten().double() for each in (found, exact)]
    assert (tier.verdict(proposal, *both) == "") == accepted


def test_a_batch_of_one_sample_among_others_changes_no_tier():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 4))
    engine = Engine(net, PolyStep(net.parameters(), seed=0), announce=None)

    def step(samples):
        x, y = torch.randn(samples, 5, 8), torch.arange(samples) % 4
        engine.step(lambda: F.cross_entropy(net(x).mean(1), y))
        return {each.block.name: each.tier.name for each in engine.plan.assignments}

    before = step(64)
    assert before["1.weight"] == "operands"
    with pytest.warns(UserWarning, match="on a batch that is unlike the first") as told:
        assert [step(1), step(1)] == [before, before]
    assert sorted(str(each.message).split(":")[0] for each in told) == ["0", "1.bias", "1.weight", "3"]
    assert step(33) == before
