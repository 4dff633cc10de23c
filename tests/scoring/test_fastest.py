"""Which tier takes which layer of a stack, and the reason where none does."""

import pytest
import torch
from torch import nn

from lightning_polystep.layers import LIF, QuantLinear, Sign, SpikeCount, Staircase
from lightning_polystep.scoring.incremental import IncrementalTier
from lightning_polystep.scoring.outcome import HiddenOutcomeTier, ReadoutOutcomeTier
from lightning_polystep.scoring.stack import NotAStackError
from tests.helpers.parity import Case, Stacked, losses_of, prepare, sites


def tiers_of(module, shape=(24, 4)):
    batch = torch.randn(shape), torch.randint(3, (24,))
    prepared = prepare(Case("", lambda: module, lambda: batch, {}))
    return lambda name: type(prepared.stack_tier(name))


def test_outcomes_take_a_hidden_layer_on_a_constant_current_and_the_last_one():
    first = LIF(0.9, num_steps=8, learn_beta=True)
    tier = tiers_of(Stacked(nn.Linear(4, 6), first, nn.Linear(6, 3), LIF(0.9, 0.5), SpikeCount()))
    assert tier("network.0") is HiddenOutcomeTier
    assert tier("network.2") is ReadoutOutcomeTier
    with pytest.raises(NotAStackError, match="it is no Linear weight of the recognised network"):
        tier("network.1.beta")


def _deep(first, second):
    return Stacked(nn.Linear(4, 6), first, nn.Linear(6, 6), second, nn.Linear(6, 3), LIF(0.9, 0.5), SpikeCount())


@pytest.mark.parametrize(("steps", "shape"), [(8, (24, 4)), (None, (8, 24, 4))])
def test_changes_are_followed_through_any_number_of_layers(steps, shape):
    tier = tiers_of(_deep(LIF(num_steps=steps), LIF(0.3)), shape)
    assert tier("network.0") is IncrementalTier
    assert tier("network.2") is IncrementalTier
    assert tier("network.4") is ReadoutOutcomeTier


def test_hidden_layers_of_two_kinds_are_refused():
    tier = tiers_of(_deep(LIF(num_steps=8), LIF(0.9, reset_mechanism="subtract")))
    with pytest.raises(NotAStackError, match="the hidden layers behind it reset in other ways or fire on other terms"):
        tier("network.0")
    assert tier("network.2") is IncrementalTier


def test_a_shared_weight_is_refused():
    module = Stacked(nn.Linear(4, 4), LIF(num_steps=5), nn.Linear(4, 4), LIF(), SpikeCount())
    module.network[2].weight = module.network[0].weight
    with pytest.raises(NotAStackError, match="its weight belongs to several layers"):
        tiers_of(module)("network.0")


@pytest.mark.parametrize(
    "build",
    [
        lambda: Stacked(nn.Linear(9, 11), LIF(num_steps=8), nn.Linear(11, 3), LIF(0.9, 0.5), SpikeCount()),
        lambda: _deep(LIF(num_steps=8), LIF(0.3)),
        lambda: Stacked(nn.Linear(9, 11), Staircase(5), nn.Linear(11, 3)),
        lambda: Stacked(nn.Linear(9, 11), nn.ReLU(), nn.Linear(11, 3)),
        lambda: Stacked(QuantLinear(9, 11), Sign(), QuantLinear(11, 3)),
    ],
    ids=["outcome", "incremental", "staircase", "relu", "quantised"],
)
def test_a_row_costs_the_same_whichever_rows_are_scored_beside_it(build):
    """So that processes may divide the rows as they like."""
    features = build().network[0].in_features
    batch = torch.randn(96, features), torch.randint(3, (96,))
    prepared = prepare(Case("", build, lambda: batch, {}), torch.float32, polytope="orthoplex")
    for name, proposal in sites(prepared).items():
        tier, count = prepared.stack_tier(name), proposal.vertices_per_row
        whole = losses_of(tier, prepared, proposal)
        for width in (1, 2):
            for start in range(0, len(proposal.rows) - width + 1):
                some = losses_of(tier, prepared, proposal, start * count, (start + width) * count)
                assert torch.equal(some, whole[start * count : (start + width) * count])
