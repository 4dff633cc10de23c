"""What is special about outcomes; that they agree with every other tier is shown in ``test_stack_tier.py``."""

from dataclasses import replace

import torch
from torch import nn

from lightning_polystep.layers import LIF, SpikeCount
from lightning_polystep.scoring.loop import LoopTier
from tests.helpers.parity import Case, Stacked, losses_of, prepare, reference_losses, sites

EXACT = {"rtol": 1e-11, "atol": 1e-12}


def spiking(hidden=6, **options):
    first = LIF(options.pop("beta", 0.9), options.pop("threshold", 1.0), num_steps=8, **options)
    return Stacked(nn.Linear(4, hidden), first, nn.Linear(hidden, 3), LIF(0.9, 0.5), SpikeCount())


def batch():
    return torch.randn(24, 4), torch.randint(3, (24,))


def prepared_spiking(**options):
    return prepare(Case("spiking", lambda: spiking(**options), batch, {}))


def test_a_silent_layer_costs_exactly_the_same_wherever_it_is_moved():
    prepared = prepared_spiking(threshold=1e3)
    losses = losses_of(prepared.stack_tier("network.0"), prepared, prepared.proposals["network.0"])
    assert losses.unique().numel() == 1
    assert torch.equal(losses[0], prepared.commit_loss.double())


def test_directions_of_length_zero_cost_nothing():
    prepared = prepared_spiking()
    for name, proposal in sites(prepared).items():
        proposal.directions = torch.zeros_like(proposal.directions)
        losses = losses_of(prepared.stack_tier(name), prepared, proposal)
        torch.testing.assert_close(losses, prepared.commit_loss.expand_as(losses), **EXACT)


def test_a_frozen_bias_stays_out_of_the_candidates():
    module = spiking()
    module.network[0].bias.requires_grad_(False)
    module.network[2].bias.requires_grad_(False)
    prepared = prepare(Case("frozen", lambda: module, batch, {}))
    assert not any(proposal.block.has_bias for proposal in prepared.proposals.values())
    for name, proposal in prepared.proposals.items():
        losses = losses_of(prepared.stack_tier(name), prepared, proposal)
        torch.testing.assert_close(losses, reference_losses(prepared, proposal), **EXACT)


def test_a_moved_leak_threshold_or_option_is_followed():
    """The table of outcomes is kept between steps, and must not outlive what it was made of."""
    prepared = prepared_spiking()
    tier, first = prepared.stack_tier("network.0"), prepared.module.network[1]
    proposal, tables = prepared.proposals["network.0"], []

    def check():
        again = prepare(Case("moved", lambda: prepared.module, batch, {}))
        tier.capture = again.capture
        expected = losses_of(LoopTier(), again, replace(proposal, block=again.proposals["network.0"].block))
        torch.testing.assert_close(losses_of(tier, again, proposal), expected, **EXACT)
        if not tables or tier._dictionary[0] is not tables[-1]:
            tables.append(tier._dictionary[0])

    for change in (
        lambda: None,
        lambda: first.beta.fill_(0.4),
        lambda: first.threshold.fill_(0.7),
        lambda: setattr(first, "reset_mechanism", "subtract"),
        lambda: setattr(first, "reset_delay", True),
        lambda: setattr(first, "num_steps", 3),
    ):
        change()
        check()
        count = len(tables)
        check()
        assert len(tables) == count, "and is made once"
    assert len(tables) == 6
