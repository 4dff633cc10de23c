"""What docs/extending.md says needs no file of this package: a neuron of one's own, and the rule of an operation."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_polystep import Engine, PolyStep
from lightning_polystep.scoring.loop import LoopTier
from lightning_polystep.tape import Region
from lightning_polystep.tape.flow import FLOWS, Flow, flows
from tests.helpers.tapes import blocks_of, record


class Adaptive(nn.Module):
    """A leaky neuron whose threshold rises with each spike, as nobody but its author knows it."""

    def forward(self, current, state):
        membrane, threshold = state
        membrane = 0.9 * membrane + current
        spikes = (membrane > threshold).float()
        return spikes, (membrane - spikes * threshold, 0.95 * threshold + 0.05 + 0.2 * spikes)


class Net(nn.Module):
    def __init__(self, steps=6):
        super().__init__()
        torch.manual_seed(0)
        self.steps, self.neuron = steps, Adaptive()
        self.first, self.last = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x):
        hidden = out = (torch.zeros(1), torch.ones(1))
        counts = torch.zeros(len(x), 3)
        for _ in range(self.steps):
            spikes, hidden = self.neuron(2 * self.first(x), hidden)
            spikes, out = self.neuron(2 * self.last(spikes), out)
            counts += spikes
        return counts


def batch():
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(24, 8, generator=draw)
    return x, (x[:, :3]).argmax(1)


def test_a_neuron_of_ones_own_is_scored_from_the_tape_and_learns():
    net, (x, y) = Net(), batch()
    engine = Engine(net, PolyStep(net.parameters(), seed=0, lr=0.1, rank=4), announce=None)
    losses = [float(engine.step(lambda: functional.cross_entropy(net(x), y))) for _ in range(25)]
    assert {a.tier.name for a in engine.plan.assignments} == {"tape"}
    assert min(losses[-5:]) < 0.7 * losses[0]


def test_it_becomes_one_loop_and_every_candidate_costs_what_the_loop_says(monkeypatch):
    net, (x, y) = Net(), batch()
    engine = Engine(net, PolyStep(net.parameters(), seed=0, rank=4), announce=None)
    with engine.observing():
        loss = functional.cross_entropy(net(x), y)
    engine.ends_in(loss)
    compared = []

    def both(tier, proposal, probe, start, stop, score=LoopTier.score):
        losses = score(tier, proposal, probe, start, stop)
        compared.append(losses)
        return losses

    monkeypatch.setattr(LoopTier, "score", both)
    engine.probe(lambda: functional.cross_entropy(net(x), y), loss)
    recording, _, _ = record(net, lambda: functional.cross_entropy(net(x), y))
    scripts = [recording.script(block) for block in blocks_of(net)]
    regions = [s.work for script in scripts for s in script.fused if isinstance(s.work, Region)]
    assert len(compared) >= 2 * 2, "each block was compared near and far"
    longest = max(len(region.steps) for region in regions)
    assert longest >= 6 * 5, "the neurons of all time steps are one loop"


@torch.library.custom_op("polystep_test::centred", mutates_args=())
def centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(-1, keepdim=True)


@centred.register_fake
def _(x):
    return torch.empty_like(x)


@centred.register_vmap
def _(info, in_dims, x):
    return centred(x.movedim(in_dims[0], 0)), 0


@pytest.mark.parametrize("with_rule", [False, True])
def test_an_operation_works_without_a_rule_and_stays_apart_with_one(with_rule):
    packet = torch.ops.polystep_test.centred
    if with_rule:

        @flows(packet)  # mixes the last axis, which keeps its length
        def centred_flow(site):
            axes = site.operands[0]
            last = site.labels.fresh(site.shapes[0][-1])
            return Flow(((*axes[:-1], last),), (frozenset({len(axes) - 1}),))

    try:
        net, (x, y) = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)), batch()
        engine = Engine(net, PolyStep(net.parameters(), seed=0, rank=4), announce=None)
        engine.step(lambda: functional.cross_entropy(centred(net(x)), y))
        assert {a.tier.name for a in engine.plan.assignments} == {"tape"}
        recording, _, _ = record(net, lambda: functional.cross_entropy(centred(net(x)), y))
        programs = [recording.script(block).program for block in blocks_of(net)]
        assert [program.sample is not None for program in programs] == [with_rule] * len(programs)
    finally:
        FLOWS.pop(packet, None)
