"""Every flip costs what running the network with that weight flipped costs, on the mean over the starts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_polystep import Engine, PolyStep
from lightning_polystep.layers import Heaviside, QuantLinear, Sign, Staircase
from lightning_polystep.scoring.assignment import score_by
from lightning_polystep.scoring.flips import FlipTier, HiddenFlipTier, ScoreFlipTier
from lightning_polystep.scoring.loop import LoopTier
from lightning_polystep.scoring.stack import NotAStackError
from lightning_polystep.sites import update_statistics
from lightning_polystep.step import propose
from tests.helpers.parity import Case, Stacked, losses_of, prepare

# Loss changes are rounded to 2^-30.
CLOSE = {"rtol": 1e-8, "atol": 1e-8}


def binary(features_in, features_out, bias=True, granularity="per_channel"):
    return QuantLinear(features_in, features_out, bias, weight_format="binary", granularity=granularity)


def signs(samples, features):
    return torch.randint(2, (samples, features)) * 2.0 - 1


def prepared_case(sizes, samples, criterion=None, **options):
    layers = [Sign()]
    for before, after in zip(sizes, [*sizes[1:], 3], strict=True):
        layers += [binary(before, after, **options), Sign()]
    module = Stacked(*layers[:-1], criterion=criterion) if criterion else Stacked(*layers[:-1], label_smoothing=0.1)
    targets = torch.randn(samples, 3) if isinstance(criterion, nn.MSELoss) else torch.randint(3, (samples,))
    batch = signs(samples, sizes[0]), targets
    return prepare(Case("flips", lambda: module, lambda: batch, {}), subspace="flips")


def all_flips(prepared, name, most_rows=None, centred=False):
    block = prepared.proposals[name].block
    reach = torch.tensor([1.0, 2.0, 0.5]).repeat(block.rows)[: block.rows]
    mean = torch.rand(block.dim, dtype=torch.float64) * 2 - 1
    statistics = update_statistics(None, mean.expand(block.dim, block.dim).T) if centred else None
    return propose(block, statistics, reach, seed=0, step=0, rank=block.dim, most_rows=most_rows)


@settings(max_examples=12)
@given(
    sizes=st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=3),
    samples=st.integers(1, 6),
    mse=st.booleans(),
    bias=st.booleans(),
    granularity=st.sampled_from(["per_channel", "per_tensor"]),
    centred=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_flips_and_the_loop_agree(sizes, samples, mse, bias, granularity, centred, seed):
    torch.manual_seed(seed)
    criterion = nn.MSELoss() if mse else None
    prepared = prepared_case(sizes, samples, criterion, bias=bias, granularity=granularity)
    for name in prepared.proposals:
        proposal = all_flips(prepared, name, most_rows=2, centred=centred)
        with prepared.probe.isolated():
            expected = score_by(LoopTier(), proposal, prepared.probe, 0, proposal.candidates)
        tier = prepared.stack_tier(name)
        assert isinstance(tier, FlipTier)
        torch.testing.assert_close(losses_of(tier, prepared, proposal), expected, **CLOSE)


def test_neither_the_rows_of_a_call_nor_threads_change_a_bit():
    prepared = prepared_case([50, 20, 20], 300)
    for name in prepared.proposals:
        proposal, tier = all_flips(prepared, name, centred=True), prepared.stack_tier(name)
        torch.set_num_threads(1)
        losses = losses_of(tier, prepared, proposal)
        torch.set_num_threads(2)
        cut = proposal.vertices_per_row + 5
        parts = losses_of(tier, prepared, proposal, 0, cut), losses_of(tier, prepared, proposal, cut)
        assert torch.equal(torch.cat(parts), losses)


def test_a_flip_takes_the_bias_along_so_that_an_input_that_never_changes_costs_nothing():
    prepared = prepared_case([6, 8], 50)
    name = next(iter(prepared.proposals))
    proposal, tier = all_flips(prepared, name), prepared.stack_tier(name)
    inputs = prepared.capture.inputs[0]
    inputs[:, 0] = -1
    proposal.centre = inputs.mean(0)
    costs = losses_of(tier, prepared, proposal).reshape(len(proposal.rows), -1, 2)
    assert torch.equal(costs[:, 0, 0], costs[:, 0, 1])
    assert not torch.equal(costs[:, 1, 0], costs[:, 1, 1])


def test_each_layer_has_its_tier():
    prepared = prepared_case([4, 5], 6)
    tiers = [type(prepared.stack_tier(name)) for name in prepared.proposals]
    assert tiers == [HiddenFlipTier, ScoreFlipTier]


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ((binary(4, 5), Staircase(3), binary(5, 3)), "two levels, not 4"),
        ((nn.ReLU(), binary(4, 5), Sign(), binary(5, 3)), "all inputs are -1 or 1"),
    ],
    ids=["levels", "inputs"],
)
def test_what_flips_are_not_scored_for_is_said(layers, reason):
    module = Stacked(*layers)
    prepared = prepare(Case("", lambda: module, lambda: (signs(8, 4), torch.randint(3, (8,))), {}), subspace="flips")
    name = next(iter(prepared.proposals))
    with pytest.raises(NotAStackError, match=reason):
        losses_of(prepared.stack_tier(name), prepared, prepared.proposals[name])


def test_a_network_outside_the_fast_tier_trains_all_the_same():
    module = Stacked(binary(4, 5), Heaviside(), binary(5, 3))
    x, y = signs(16, 4), torch.randint(3, (16,))
    engine = Engine(module, PolyStep(module.parameters(), subspace="flips", rank=2, seed=0), announce=None)
    engine.step(lambda: module.criterion(module.network(x), y))
    first, last = engine.plan.assignments
    assert isinstance(first.tier, HiddenFlipTier)
    assert "all inputs are -1 or 1" in last.reason


def test_a_binary_network_learns():
    torch.manual_seed(0)
    module = Stacked(binary(9, 32), Sign(), binary(32, 32), Sign(), binary(32, 2))
    x = signs(512, 9)
    y = (x[:, :3].sum(1) > 0).long()
    engine = Engine(module, PolyStep(module.parameters(), lr=0.2, subspace="flips", seed=0), announce=None)
    losses = [float(engine.step(lambda: module.criterion(module.network(x), y))) for _ in range(30)]
    assert [type(assignment.tier) for assignment in engine.plan.assignments] == [HiddenFlipTier] * 2 + [ScoreFlipTier]
    assert losses[-1] < 0.5 * losses[0]
