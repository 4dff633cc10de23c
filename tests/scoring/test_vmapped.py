"""The batched tiers give every candidate the loss of a network that was built for it alone."""

import pytest
import torch
from torch import nn

from lightning_polystep import Engine, PolyStep
from lightning_polystep.layers import LIF, SpikeCount
from lightning_polystep.scoring.loop import LoopTier
from lightning_polystep.scoring.vmapped import ParameterTier, ShiftTier
from tests.helpers.parity import CASES, INCREMENTAL, LOOP, OUTCOME, SHIFT, Case, prepare, reference_losses

TOLERANCE = {"rtol": 1e-12, "atol": 1e-14}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_tier_agrees_with_networks_built_by_hand(case):
    prepared = prepare(case)
    assert set(prepared.proposals) == set(case.tiers)
    for name, proposal in prepared.proposals.items():
        expected = reference_losses(prepared, proposal)
        assert expected.std() > 1e-6, f"{name}: candidates that all cost the same test nothing"
        tiers = [LoopTier()]
        tiers += [ParameterTier()] if case.tiers[name] != LOOP else []
        tiers += [ShiftTier()] if proposal.block.site and case.tiers[name] in {SHIFT, OUTCOME, INCREMENTAL} else []
        tiers += [prepared.stack_tier(name)] if case.tiers[name] in {OUTCOME, INCREMENTAL} else []
        for tier in tiers:
            with prepared.probe.isolated():
                losses = tier.score(proposal, prepared.probe, 0, proposal.candidates)
            assert losses.dtype == torch.float64
            torch.testing.assert_close(
                losses, expected, **TOLERANCE, msg=lambda m, n=name, t=tier: f"{n}, {t.name}: {m}"
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiers_agree_bit_for_bit_where_rounding_has_no_part(dtype):
    def spiking():
        return nn.Sequential(nn.Linear(4, 5), LIF(0.5, 1.0, num_steps=4), nn.Linear(5, 3), LIF(0.5, 1.0), SpikeCount())

    def batch():
        return torch.randint(-2, 3, (32, 4)).float(), torch.randint(5, (32, 3)).float()

    def squared_error(counts, target):
        return (counts - target).square().sum()

    prepared = prepare(Case("dyadic", spiking, batch, {}, loss=squared_error), dtype, probe_radius=0.5)
    with torch.no_grad():
        for parameter in prepared.module.parameters():
            parameter.copy_(torch.randint(-8, 9, parameter.shape) / 8)
    for proposal in prepared.proposals.values():
        proposal.directions = (torch.randint(-8, 9, proposal.directions.shape) / 8).to(dtype)
        expected = reference_losses(prepared, proposal)
        assert expected.std() > 0
        for tier in (ShiftTier(), ParameterTier(), LoopTier()):
            with prepared.probe.isolated():
                assert torch.equal(tier.score(proposal, prepared.probe, 0, proposal.candidates), expected), tier.name


@pytest.mark.parametrize("tier", [ShiftTier(), ParameterTier()], ids=lambda tier: tier.name)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_chunk_size_does_not_matter(tier, size):
    prepared = prepare(CASES[0])
    proposal = prepared.proposals["0"]
    with prepared.probe.isolated():
        starts = range(0, proposal.candidates, size)
        parts = [tier.score(proposal, prepared.probe, s, min(s + size, proposal.candidates)) for s in starts]
    torch.testing.assert_close(torch.cat(parts), reference_losses(prepared, proposal), **TOLERANCE)


def test_one_dropout_mask_serves_all_candidates_of_a_batch_and_the_commit_pass():
    case = Case("dropout", lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 3)), CASES[0].batch, {})
    prepared = prepare(case)
    proposal = prepared.proposals["0"]
    proposal.directions = torch.zeros_like(proposal.directions)
    for tier in (ShiftTier(), ParameterTier()):
        with prepared.probe.isolated():
            losses = tier.score(proposal, prepared.probe, 0, proposal.candidates)
        torch.testing.assert_close(losses, prepared.commit_loss.expand_as(losses), **TOLERANCE)


def test_a_silent_unit_costs_exactly_the_same_wherever_it_is_moved():
    """Rounding that differed between candidates would be taken for a preference, in a layer that has none."""

    def silent():
        return nn.Sequential(nn.Linear(4, 6), LIF(0.9, 1e3, num_steps=5), nn.Linear(6, 3), LIF(0.9), SpikeCount())

    prepared = prepare(Case("silent", silent, CASES[0].batch, {}), torch.float32)
    proposal = prepared.proposals["0"]
    for tier in (ShiftTier(), ParameterTier()):
        with prepared.probe.isolated():
            losses = tier.score(proposal, prepared.probe, 0, proposal.candidates)
        assert losses.unique().numel() == 1, tier.name


def test_a_block_without_a_site_has_no_shift():
    prepared = prepare(CASES[0])
    with prepared.probe.isolated(), pytest.raises(ValueError, match=r"1\.bias is not a site"):
        ShiftTier().score(prepared.proposals["1.bias"], prepared.probe, 0, 1)


@pytest.mark.parametrize("tier", [ShiftTier(), ParameterTier()], ids=lambda tier: tier.name)
def test_nothing_is_left_behind(tier):
    prepared = prepare(CASES[0])
    module, proposal = prepared.module, prepared.proposals["0"]
    before = {name: (tensor, tensor.clone()) for name, tensor in module.state_dict(keep_vars=True).items()}
    hooks = [len(m._forward_hooks) for m in module.modules()]
    with prepared.probe.isolated():
        tier.score(proposal, prepared.probe, 0, proposal.candidates)
    after = module.state_dict(keep_vars=True)
    for name, (tensor, value) in before.items():
        assert after[name] is tensor
        assert torch.equal(tensor, value)
    assert [len(m._forward_hooks) for m in module.modules()] == hooks


class Shared(nn.Module):
    """A layer and a norm under two names each, and a weight in two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.again, self.parts = self.first, nn.ModuleList([self.norm])
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.norm(self.again(torch.relu(self.first(x)))))


def test_parameters_of_shared_modules_stay_in_their_places():
    module, x, y = Shared(), torch.randn(8, 4), torch.randint(4, (8,))
    before = dict(module.named_parameters(remove_duplicate=False))
    engine = Engine(module, PolyStep(module.parameters(), seed=0), evaluation="vmap", announce=None)
    engine.step(lambda: nn.functional.cross_entropy(module(x), y))
    after = dict(module.named_parameters(remove_duplicate=False))
    assert all(after[name] is parameter for name, parameter in before.items())
