"""Tiers on a grid of responses come to what the tiers cost that follow each candidate, as the grid becomes finer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_polystep import Engine, PolyStep
from lightning_polystep.kernels.route_outcome_costs.reference import routes
from lightning_polystep.layers import HardMoE, QuantActivation, QuantLinear, SlotArgmaxAttention, Staircase
from lightning_polystep.scoring import feedforward_tiers
from lightning_polystep.scoring.feedforward_tiers import FineStepTier, ReLUTier, ResponseTier, StepOutcomeTier
from lightning_polystep.scoring.loop import LoopTier
from lightning_polystep.scoring.routed_tiers import BeforeChoiceResponseTier, BeforeChoiceTier, chosen_between
from lightning_polystep.scoring.slot_tiers import ValueResponseTier, ValueTier
from tests.helpers.parity import Case, Stacked, losses_of, prepare

CLASSES = 3
FINE = 4_000


def batch():
    return torch.randn(24, 4), torch.randint(CLASSES, (24,))


def relu_network():
    return Stacked(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, CLASSES))


def requantised_network():
    return Stacked(QuantLinear(4, 6), nn.ReLU(), QuantLinear(6, 5), nn.ReLU(), nn.Linear(5, CLASSES))


def integer_network():
    def layer(features_in, features_out, scale):
        quantiser = QuantActivation(8, scale=scale)
        return QuantLinear(features_in, features_out, input_quant=quantiser, integer=True).double()

    return Stacked(layer(4, 6, 0.011), nn.ReLU(), layer(6, 5, 0.013), nn.ReLU(), layer(5, CLASSES, 0.007))


def mixture():
    experts = [nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)) for _ in range(3)]
    return Stacked(nn.Linear(4, 6), nn.ReLU(), HardMoE(experts, router=6), nn.Linear(4, CLASSES))


def slots():
    return Stacked(nn.Linear(4, 6), nn.ReLU(), SlotArgmaxAttention(6, 4), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


NETWORKS = {
    "relu": (relu_network, {"network.0", "network.2", "network.3"}),
    "requantised": (requantised_network, {"network.0", "network.2"}),
    "mixture": (mixture, {"network.0", *(f"network.2.experts.{e}.{place}" for e in range(3) for place in (0, 2))}),
    "slots": (slots, {"network.0", "network.2.value", "network.3"}),
}


@pytest.mark.parametrize("polytope", ["simplex", "orthoplex"])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_fine_grid_costs_what_the_loop_costs(name, polytope):
    build, on_grid = NETWORKS[name]
    prepared = prepare(Case(name, build, batch, {}), polytope=polytope, response_grid=FINE)
    moved = set()
    for block in on_grid:
        tier, proposal = prepared.stack_tier(block), prepared.proposals[block]
        assert tier.name == "grid"
        losses, exact = (losses_of(each, prepared, proposal) for each in (tier, LoopTier()))
        moved |= {block} if (exact != prepared.commit_loss).any() else set()
        torch.testing.assert_close(losses, exact, rtol=0, atol=2e-4 * float(exact.std()) + 1e-12)
    unreached = on_grid - moved
    assert all("experts" in block for block in unreached)
    assert len(unreached) <= 4  # layers of two of three experts
    others = {prepared.stack_tier(name).name for name in prepared.proposals.keys() - on_grid}
    assert others <= {"outcome", "incremental"}


def test_units_of_many_levels_are_close():
    """Behind them the loss steps, so that no grid makes it exact; most candidates lie on no step."""
    prepared = prepare(Case("integer", integer_network, batch, {}), response_grid=FINE)
    for block in ("network.0", "network.2"):
        tier, proposal = prepared.stack_tier(block), prepared.proposals[block]
        assert isinstance(tier, ResponseTier)
        losses, exact = (losses_of(each, prepared, proposal) for each in (tier, LoopTier()))
        assert (losses - exact).abs().median() < 0.01 * exact.std()


def test_units_of_many_levels_are_taken_a_few_at_a_time(monkeypatch):
    prepared = prepare(Case("integer", integer_network, batch, {}), response_grid=9)
    tier, proposal = prepared.stack_tier("network.0"), prepared.proposals["network.0"]
    losses = losses_of(tier, prepared, proposal)
    monkeypatch.setattr(feedforward_tiers, "SHIFT_BYTES", 1)
    assert torch.equal(losses_of(tier, prepared, proposal), losses)


@pytest.mark.parametrize("name", [*NETWORKS, "integer"])
def test_some_candidates_cost_what_they_cost_among_all(name):
    """To the bit, as processes divide them by rows."""
    build, on_grid = NETWORKS.get(name, (integer_network, {"network.0", "network.2"}))
    dtype = torch.float64 if name == "integer" else torch.float32
    prepared = prepare(Case(name, build, batch, {}), dtype, response_grid=9)
    for block in on_grid:
        tier, proposal = prepared.stack_tier(block), prepared.proposals[block]
        whole, per_row = losses_of(tier, prepared, proposal), proposal.vertices_per_row
        for start, stop in ((0, per_row), (per_row, proposal.candidates)):
            assert torch.equal(losses_of(tier, prepared, proposal, start, stop), whole[start:stop])


def test_few_levels_are_tabulated_all_the_same():
    network = Stacked(nn.Linear(4, 6), Staircase(), nn.Linear(6, CLASSES))
    prepared = prepare(Case("steps", lambda: network, batch, {}), response_grid=9)
    assert type(prepared.stack_tier("network.0")) is StepOutcomeTier


def test_each_tier_knows_what_it_approximates():
    exact = {
        "relu": ("network.0", ResponseTier, ReLUTier),
        "mixture": ("network.0", BeforeChoiceResponseTier, BeforeChoiceTier),
        "slots": ("network.2.value", ValueResponseTier, ValueTier),
    }
    for name, (block, on_grid, followed) in exact.items():
        prepared = prepare(Case(name, NETWORKS[name][0], batch, {}), response_grid=9)
        tier = prepared.stack_tier(block)
        assert (type(tier), type(tier.exact())) == (on_grid, followed)
        assert (tier.approximation(), tier.exact().approximation()) == ("interpolated between 9 responses", "")
    fine = prepare(Case("integer", integer_network, batch, {}), response_grid=9).stack_tier("network.0")
    assert type(fine.exact()) is FineStepTier


def test_a_mixture_behind_units_of_many_levels_follows_each_change_of_route():
    """Such a unit's change does not grow with its shift, so it is not known between which shifts an expert has it."""
    network = Stacked(nn.Linear(4, 6), QuantActivation(8, scale=0.02), *mixture().network[2:])
    prepared = prepare(Case("fine", lambda: network, batch, {}), response_grid=FINE)
    tier, proposal = prepared.stack_tier("network.0"), prepared.proposals["network.0"]
    assert type(tier) is BeforeChoiceTier
    assert tier.approximation()
    losses, exact = (losses_of(each, prepared, proposal) for each in (tier, tier.exact()))
    torch.testing.assert_close(losses, exact, rtol=0, atol=1e-3 * float(exact.std()))


@settings(max_examples=60)
@given(
    experts=st.sampled_from([1, 2, 5]),
    dyadic=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**32),
)
def test_every_change_has_the_expert_that_it_is_sent_to(experts, dyadic, dtype, seed):
    """Small whole numbers make ties; a change that is one of them may round, so it is none."""
    torch.manual_seed(seed)
    samples, units, candidates = 5, 4, 7
    shape = (samples, experts), (experts, units)
    logits, weight = (torch.randint(-2, 3, s).to(dtype) if dyadic else torch.randn(s, dtype=dtype) for s in shape)
    changes = torch.randn(units, samples, candidates, dtype=dtype)
    changes[..., 0] = 0
    route = routes(logits, changes, weight)
    for expert in range(experts):
        lower, upper = (limit.T[..., None] for limit in chosen_between(logits, weight, expert))
        assert torch.equal((changes >= lower) & (changes <= upper), route == expert)


def test_the_plan_says_how_far_off_it_is():
    module = relu_network()
    optimizer = PolyStep(module.parameters(), seed=0, lr=0.3, response_grid=9)
    engine = Engine(module, optimizer, announce=None)
    x, y = batch()
    losses = [float(engine.step(lambda: module.criterion(module.network(x), y))) for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]
    tiers = {assignment.block.name: assignment.tier.name for assignment in engine.plan.assignments}
    assert tiers == {"network.0": "grid", "network.2": "grid", "network.3": "grid", "network.5": "outcome"}
    text = " ".join(str(engine.plan).split())
    assert "interpolated between 9 responses, costs off by" in text


def test_a_grid_without_effect_says_so_once():
    module = Stacked(nn.Linear(4, 6), Staircase(), nn.Linear(6, CLASSES))
    optimizer = PolyStep(module.parameters(), seed=0, response_grid=9)
    engine = Engine(module, optimizer, announce=None)
    x, y = batch()
    with pytest.warns(UserWarning, match="response_grid has no effect"):
        engine.step(lambda: module.criterion(module.network(x), y))
    engine.step(lambda: module.criterion(module.network(x), y))  # a second warning would be an error


def test_a_grid_of_less_than_three_nodes_is_refused():
    with pytest.raises(ValueError, match=r"response_grid=2\): a grid has at least 3 nodes, and 0 is none"):
        PolyStep(nn.Linear(2, 2).parameters(), response_grid=2)
