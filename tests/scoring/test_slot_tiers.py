"""Tiers of networks with slots give every candidate the loss of running the network again."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_polystep import Engine, PolyStep
from lightning_polystep.layers import SlotArgmaxAttention
from lightning_polystep.scoring import slot_tiers
from lightning_polystep.scoring.feedforward_tiers import ScoreTier
from lightning_polystep.scoring.loop import LoopTier
from lightning_polystep.scoring.routed_tiers import BeforeChoiceTier
from lightning_polystep.scoring.slot_tiers import KeyTier, ValueTier
from tests.helpers.parity import Case, Stacked, losses_of, prepare
from tests.scoring.routed_cases import EXACT, OPTIONS, assert_parity, prepare_dyadic, slot_networks


@settings(max_examples=40)
@given(case=slot_networks(), **OPTIONS)
def test_slots_and_the_loop_agree(case, probe_radius, polytope, cut):
    assert_parity(case, probe_radius, polytope, cut)


@given(slots=st.sampled_from([2, 5]), features=st.sampled_from([1, 3]), seed=st.integers(0, 2**32))
def test_ties_are_broken_as_the_layer_does(slots, features, seed):
    torch.manual_seed(seed)
    attention = SlotArgmaxAttention(features, slots)
    attention.keys.data[-1] = attention.keys[0]
    prepared = prepare_dyadic(attention, [nn.Linear(features, 2)], features)
    for name, proposal in prepared.proposals.items():
        losses = losses_of(prepared.stack_tier(name), prepared, proposal)
        torch.testing.assert_close(losses, losses_of(LoopTier(), prepared, proposal), **EXACT)


def network():
    return Stacked(nn.Linear(4, 6), nn.ReLU(), SlotArgmaxAttention(6, 3), nn.Linear(6, 3))


def prepared(dtype=torch.float64):
    return prepare(Case("slots", network, lambda: (torch.randn(24, 4), torch.randint(3, (24,))), {}), dtype)


def test_each_block_has_its_tier():
    slots = prepared()
    tiers = {name.removeprefix("network."): type(slots.stack_tier(name)) for name in slots.proposals}
    assert tiers == {"0": BeforeChoiceTier, "2.keys": KeyTier, "2.value": ValueTier, "3": ScoreTier}


def test_candidates_and_units_are_taken_a_few_at_a_time(monkeypatch):
    slots = prepared()
    expected = {name: losses_of(slots.stack_tier(name), slots, p) for name, p in slots.proposals.items()}
    monkeypatch.setattr(slot_tiers, "SHIFT_BYTES", 1)
    for name, proposal in slots.proposals.items():
        torch.testing.assert_close(losses_of(slots.stack_tier(name), slots, proposal), expected[name], **EXACT)


def test_the_number_of_threads_changes_no_bit():
    slots = prepared(torch.float32)
    for name, proposal in slots.proposals.items():
        one = losses_of(slots.stack_tier(name), slots, proposal)
        torch.set_num_threads(2)
        assert torch.equal(losses_of(slots.stack_tier(name), slots, proposal), one)
        torch.set_num_threads(1)


def test_a_network_of_slots_learns():
    module = network()
    x = torch.randn(256, 4)
    y = (x[:, 0] + x[:, 1] > 0).long()
    engine = Engine(module, PolyStep(module.parameters(), lr=0.3, seed=0), announce=None)
    losses = [float(engine.step(lambda: module.criterion(module.network(x), y))) for _ in range(25)]
    assert all(assignment.tier.name in {"outcome", "incremental"} for assignment in engine.plan.assignments)
    assert losses[-1] < 0.6 * losses[0]
