"""What is special about following changes; agreement with other tiers is shown in ``test_stack_tier.py``."""

import torch
from torch import nn

from lightning_polystep import Engine, PolyStep
from lightning_polystep.layers import LIF, SpikeCount
from tests.helpers.parity import Case, Stacked, losses_of, prepare


def deep(threshold=1.0):
    return Stacked(
        nn.Linear(4, 6),
        LIF(0.9, threshold, num_steps=8),
        nn.Linear(6, 5),
        LIF(0.9),
        nn.Linear(5, 3),
        LIF(),
        SpikeCount(),
    )


def batch():
    return torch.randn(24, 4), torch.randint(3, (24,))


def test_a_silent_layer_costs_exactly_the_same_wherever_it_is_moved():
    prepared = prepare(Case("silent", lambda: deep(1e3), batch, {}))
    losses = losses_of(prepared.stack_tier("network.0"), prepared, prepared.proposals["network.0"])
    assert losses.unique().numel() == 1
    assert torch.equal(losses[0], prepared.commit_loss.double())


def test_a_deep_spiking_network_learns():
    torch.manual_seed(0)
    module = Stacked(
        nn.Linear(4, 16), LIF(num_steps=8), nn.Linear(16, 16), LIF(0.9), nn.Linear(16, 2), LIF(0.9), SpikeCount()
    )
    x = torch.randn(256, 4)
    y = (x[:, 0] * x[:, 1] > 0).long()
    engine = Engine(module, PolyStep(module.parameters(), lr=0.3, seed=0), announce=None)
    losses = [float(engine.step(lambda: module.criterion(module.network(x), y))) for _ in range(30)]
    tiers = [assignment.tier.name for assignment in engine.plan.assignments]
    assert tiers == ["incremental", "incremental", "outcome"]
    assert losses[-1] < 0.5 * losses[0]
