"""Learned feedback at the products of rows whose units cannot be followed: recurrence and attention."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep import Engine, PolyStep
from lightning_polystep.scoring.product_feedback import ProductFeedbackTier, offer_feedback
from lightning_polystep.scoring.tier import NotOfferedError
from tests.helpers.tapes import blocks_of, record, trial


class Recurrent(nn.Module):
    """A linear recurrence over four steps of time, and a readout of its last state."""

    def __init__(self, hidden=5):
        super().__init__()
        self.enter, self.again = nn.Linear(6, hidden), nn.Linear(hidden, hidden, bias=False)
        self.head = nn.Linear(hidden, 3)

    def forward(self, x):
        state = self.enter(x)
        for time in range(1, 4):
            state = 0.5 * self.again(state) + self.enter(x.roll(time, 1))
        return self.head(state)


def setting(net, shape=(64, 6), name="again", radius=1e-4):
    torch.manual_seed(0)
    net, x = net.double(), torch.randn(shape).double()
    worth = torch.randn(3).double()
    recording, probe, _ = record(net, lambda: (net(x) * worth).sum(1).mean())
    block = next(each for each in blocks_of(net) if each.name == name)
    tier = ProductFeedbackTier(block, recording)
    tier.chunking(2**28)
    return tier, trial(block, radius, rows=block.rows, vertices=8), probe


def scored(tier, proposal, probe):
    return tier.score(proposal, probe, 0, proposal.candidates)


def test_a_recurrence_is_learned_with_all_that_follows_from_it():
    torch.manual_seed(0)
    tier, proposal, probe = setting(Recurrent())
    assert len(tier.subject.entries.products) == 3
    exact = scored(tier.exact(), proposal, probe)
    for step in range(100):
        probe.noise_key = (0, step, 0)
        tier.look(proposal, probe)
    error = (scored(tier, proposal, probe) - exact).std() / exact.std()
    assert error < 0.1


def test_a_trial_keeps_nothing_and_is_what_a_first_look_learns():
    torch.manual_seed(0)
    tier, proposal, probe = setting(Recurrent())
    tried = scored(tier, proposal, probe)
    assert tier.feedback.is_new
    tier.look(proposal, probe)
    tier.recording.taken().arrays.clear()
    assert torch.equal(scored(tier, proposal, probe), tried)
    assert tried.std() > 0


class Spiking(nn.Module):
    """Neurons that spike at one another for six steps of time, and a readout of their rates."""

    def __init__(self):
        super().__init__()
        self.enter, self.again = nn.Linear(20, 40), nn.Linear(40, 40, bias=False)
        self.head = nn.Linear(40, 10)

    def forward(self, x):
        membrane, spikes, total = 0.0, torch.zeros(len(x), 40), 0.0
        for _ in range(6):
            membrane = 0.8 * membrane + self.enter(x) + self.again(spikes)
            spikes = (membrane > 0.5).to(x)
            membrane, total = membrane - 0.5 * spikes, total + self.head(spikes)
        return total / 6


def planned(make, *shape):
    torch.manual_seed(0)
    net, x, y = make(), torch.randn(*shape), torch.arange(shape[0]) % 10
    engine = Engine(net, PolyStep(net.parameters(), lr=0.05, seed=0), announce=None)
    losses = [float(engine.step(lambda: F.cross_entropy(net(x), y))) for _ in range(15)]
    return {each.block.name: each for each in engine.plan.assignments}, losses, net


class Sorted(Spiking):
    """The same, but what their spikes meet goes through something of which nothing is known."""

    def again(self, spikes):
        return self.weights(spikes).cumsum(-1) / 40

    def __init__(self):
        super().__init__()
        del self.again
        self.weights = nn.Linear(40, 40, bias=False)


@pytest.mark.parametrize(("make", "name", "tier"), [(Spiking, "again", "units"), (Sorted, "weights", "feedback")])
def test_neurons_that_spike_at_one_another_learn_by_feedback_where_nothing_better_is_known(make, name, tier):
    plan, losses, net = planned(make, 60, 20)
    assert plan[name].tier.name == tier
    if tier == "feedback":
        assert "estimated from learned feedback" in plan[name].note
    assert losses[-1] < 0.8 * losses[0]
    _, _, again = planned(make, 60, 20)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_it_is_left_where_it_hardly_agrees_with_exact_costs(monkeypatch):
    torch.manual_seed(0)
    tier, proposal, _ = setting(Recurrent(20))
    monkeypatch.setattr(type(tier.exact()), "affordable", lambda _tier: 10)
    draw = torch.Generator().manual_seed(0)
    exact, noise = torch.randn(2, proposal.candidates, generator=draw).double()
    assert tier.verdict(proposal, exact, exact) == ""
    assert "0.2 is asked for" in tier.verdict(proposal, noise, exact)
    monkeypatch.setattr(type(tier.exact()), "affordable", lambda _tier: 10_000)
    assert "not needed" in tier.verdict(proposal, exact, exact)


class WithPenalty(Recurrent):
    """The same, whose loss reads the weights of the recurrence as well."""

    def forward(self, x):
        return super().forward(x) + self.again.weight.sum()


@pytest.mark.parametrize(
    ("make", "reason"),
    [(lambda: WithPenalty(20), "by products alone"), (lambda: Recurrent(5), "so few candidates")],
)
def test_where_it_is_not_offered(make, reason):
    torch.manual_seed(0)
    net, x = make(), torch.randn(16, 6)
    recording, _, _ = record(net, lambda: F.cross_entropy(net(x), torch.arange(16) % 3))
    block = next(each for each in blocks_of(net) if each.name == "again")
    with pytest.raises(NotOfferedError, match=reason):
        offer_feedback(recording, block)


def test_processes_that_divide_a_batch_learn_none():
    torch.manual_seed(0)
    net, x = Recurrent(20), torch.randn(16, 6)
    recording, _, _ = record(net, lambda: F.cross_entropy(net(x), torch.arange(16) % 3))
    block = next(each for each in blocks_of(net) if each.name == "again")
    assert offer_feedback(recording, block).name == "feedback"
    recording.divides_batches = True
    with pytest.raises(NotOfferedError, match="divide a batch"):
        offer_feedback(recording, block)
