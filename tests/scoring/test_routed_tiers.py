"""Tiers of networks with a choice give every candidate the loss of running the network again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_polystep import Engine, PolyStep
from lightning_polystep.layers import HardMoE
from lightning_polystep.scoring import routed_tiers
from lightning_polystep.scoring.feedforward_tiers import LinearTier, ReLUTier, ScoreTier
from lightning_polystep.scoring.loop import LoopTier
from lightning_polystep.scoring.routed_tiers import BeforeChoiceTier, RouterTier
from lightning_polystep.scoring.stack import NotAStackError
from tests.helpers.parity import Case, Stacked, losses_of, prepare
from tests.scoring.routed_cases import EXACT, OPTIONS, assert_parity, mixtures, prepare_dyadic


@settings(max_examples=40)
@given(case=mixtures(), **OPTIONS)
def test_mixtures_and_the_loop_agree(case, probe_radius, polytope, cut):
    assert_parity(case, probe_radius, polytope, cut)


@given(experts=st.sampled_from([1, 2, 5]), features=st.sampled_from([1, 3]), seed=st.integers(0, 2**32))
def test_mixtures_and_the_loop_are_equal_bit_for_bit_where_nothing_rounds(experts, features, seed):
    torch.manual_seed(seed)
    hidden = (nn.Sequential(nn.Linear(features, 4), nn.ReLU(), nn.Linear(4, 3)) for _ in range(experts))
    prepared = prepare_dyadic(HardMoE(hidden, router=features), [nn.Linear(3, 2)], features)
    for name, proposal in prepared.proposals.items():
        losses = losses_of(prepared.stack_tier(name), prepared, proposal)
        assert torch.equal(losses, losses_of(LoopTier(), prepared, proposal)), name


def network():
    experts = [nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)) for _ in range(3)]
    return Stacked(nn.Linear(4, 6), nn.ReLU(), HardMoE(experts, router=6), nn.Linear(4, 3))


def batch():
    return torch.randn(24, 4), torch.randint(3, (24,))


def test_each_layer_has_its_tier():
    prepared = prepare(Case("mixture", network, batch, {}))
    tiers = {name.removeprefix("network."): type(prepared.stack_tier(name)) for name in prepared.proposals}
    inside = {f"2.experts.{e}.{place}": tier for e in range(3) for place, tier in ((0, ReLUTier), (2, LinearTier))}
    assert tiers == {"0": BeforeChoiceTier, "2.router": RouterTier, "3": ScoreTier, **inside}


def test_only_the_layer_right_before_the_choice_has_a_tier():
    deep = Stacked(nn.Linear(4, 4), nn.ReLU(), *network().network)
    prepared = prepare(Case("deep", lambda: deep, batch, {}))
    with pytest.raises(NotAStackError, match="another layer lies between it and the choice of an expert or a slot"):
        prepared.stack_tier("network.0")


def test_units_are_taken_a_few_at_a_time(monkeypatch):
    prepared = prepare(Case("mixture", network, batch, {}))
    tier, proposal = prepared.stack_tier("network.0"), prepared.proposals["network.0"]
    losses = losses_of(tier, prepared, proposal)
    monkeypatch.setattr(routed_tiers, "SHIFT_BYTES", 1)
    assert torch.equal(losses_of(tier, prepared, proposal), losses)


def test_an_expert_without_samples_costs_nothing():
    module = network()
    with torch.no_grad():
        module.network[2].router.bias[1] = -100
    prepared = prepare(Case("dead", lambda: module, batch, {}))
    proposal = prepared.proposals["network.2.experts.1.0"]
    losses = losses_of(prepared.stack_tier("network.2.experts.1.0"), prepared, proposal)
    torch.testing.assert_close(losses, prepared.commit_loss.expand_as(losses), **EXACT)
    # Its row of the router is what may give it some.
    proposal = prepared.proposals["network.2.router"]
    losses = losses_of(prepared.stack_tier("network.2.router"), prepared, proposal)
    torch.testing.assert_close(losses, losses_of(LoopTier(), prepared, proposal), **EXACT)


def test_the_number_of_threads_changes_no_bit():
    prepared = prepare(Case("mixture", network, batch, {}), torch.float32)
    for name, proposal in prepared.proposals.items():
        tier = prepared.stack_tier(name)
        one = losses_of(tier, prepared, proposal)
        torch.set_num_threads(2)
        assert torch.equal(losses_of(tier, prepared, proposal), one)
        torch.set_num_threads(1)


@pytest.mark.filterwarnings("ignore:At pass .* experts have no sample")
def test_a_mixture_learns_with_an_expert_that_nothing_reaches():
    module = network()
    with torch.no_grad():
        module.network[2].router.bias[1] = -100
    x = torch.randn(256, 4)
    y = (x[:, 0] * x[:, 1] > 0).long()
    engine = Engine(module, PolyStep(module.parameters(), lr=0.3, seed=0), announce=None)
    losses = [float(engine.step(lambda: module.criterion(module.network(x), y))) for _ in range(25)]
    assert all(assignment.tier.name in {"outcome", "incremental"} for assignment in engine.plan.assignments)
    assert losses[-1] < 0.6 * losses[0]
