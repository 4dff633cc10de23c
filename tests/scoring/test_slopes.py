"""Costs of candidates from slopes at places, against products written out."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.scoring.slopes import (
    SlopeTier,
    add_slopes,
    check_slopes,
    cosine_of_rows,
    odd_parts,
    of_samples,
)
from lightning_polystep.scoring.tier import NotOfferedError
from tests.helpers.tapes import blocks_of, record, trial


class Given(SlopeTier):
    """Slopes that somebody gives."""

    def slopes_of_rows(self, proposal, probe, places):
        return {index: slope[proposal.rows[places]] for index, slope in self.given.items()}


class Masked(nn.Module):
    """A layer whose weights are masked on the way."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(5))
        self.register_buffer("mask", (torch.rand(5, 6) > 0.5).double())

    def forward(self, x):
        return F.linear(x, self.weight * self.mask, self.bias)


class Scaled(Masked):
    """Another whose weights are turned, scaled and shifted as well, and whose bias is a negative."""

    def forward(self, x):
        weight = (self.weight.t() / torch.arange(1, 6)).t() * 3 + 0.5
        return F.linear(x, weight.masked_fill(self.mask == 0, 0.25), 1 - self.bias)


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 5), Masked, Scaled])
def test_costs_are_the_product_of_slopes_with_what_changes(make):
    torch.manual_seed(0)
    net, x = nn.Sequential(make()).double(), torch.randn(7, 6).double()
    worth = torch.randn(7, 5).double()
    recording, probe, loss = record(net, lambda: (net(x) * worth).sum(1).mean())
    block = max(blocks_of(net), key=lambda each: each.dim)
    tier, proposal = Given(block, recording), trial(block, rows=5, vertices=6)
    entries, _ = tier.entered
    tier.given = {}
    for entry in entries.products:
        add_slopes(tier.given, recording.taken(), entry, (worth / 7).T[:, :, None])
    costs = torch.cat([*tier.losses_of_rows(proposal, probe, [torch.arange(len(proposal.rows))])]).flatten()
    expected = tier.exact().score(proposal, probe, 0, proposal.candidates)
    torch.testing.assert_close(costs, expected, rtol=1e-9, atol=1e-11)
    assert (costs - loss).abs().max() > 1e-3
    assert tier.most_directions() is None
    few = tier.moves.changes_of_rows(proposal, entries)
    for index, (_, scale) in tier.moves.shared(proposal, entries).items():
        assert (scale is None) == (make is not Masked and make is not Scaled) or few[index].shape[1] == 1


class Turned(Masked):
    """Another whose rows are squares that are turned over."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3, 2))

    def forward(self, x):
        return F.linear(x, self.weight.transpose(1, 2).reshape(5, 6) * self.mask, self.bias)


def test_rows_whose_numbers_change_places_are_made_out_one_by_one():
    torch.manual_seed(0)
    net, x, worth = nn.Sequential(Turned()).double(), torch.randn(7, 6).double(), torch.randn(7, 5).double()
    recording, probe, _ = record(net, lambda: (net(x) * worth).sum(1).mean())
    block = max(blocks_of(net), key=lambda each: each.dim)
    tier, proposal = Given(block, recording), trial(block, rows=5, vertices=6)
    entries, _ = tier.entered
    assert entries.scales(recording.taken()) is None
    tier.given = {}
    for entry in entries.products:
        add_slopes(tier.given, recording.taken(), entry, (worth / 7).T[:, :, None])
    costs = torch.cat([*tier.losses_of_rows(proposal, probe, [torch.arange(len(proposal.rows))])]).flatten()
    torch.testing.assert_close(costs, tier.exact().score(proposal, probe, 0, proposal.candidates))


def test_rows_that_a_threshold_lies_behind_are_no_multiples():
    torch.manual_seed(0)
    weight, x = nn.Parameter(torch.randn(5, 6).double()), torch.randn(7, 6).double()
    net = nn.ParameterList([weight])
    recording, _, _ = record(net, lambda: F.linear(x, weight * (weight.abs() > 0.5)).square().sum(1).mean())
    tier = Given(blocks_of(net)[0], recording)
    assert tier.entered[0].scales(recording.taken()) is None
    assert tier.most_directions() == 32


def test_a_batch_without_slopes_is_scored_exactly_and_said_once(recwarn):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 5)).double(), torch.randn(7, 6).double()
    recording, probe, _ = record(net, lambda: net(x).square().sum(1).mean())
    block = blocks_of(net)[0]
    tier, proposal = Given(block, recording), trial(block, rows=5, vertices=6)
    tier.obstacle = lambda: "it has one sample"
    costs = [tier.score(proposal, probe, 0, proposal.candidates) for _ in range(2)]
    expected = tier.exact().score(proposal, probe, 0, proposal.candidates)
    assert torch.equal(costs[0], expected)
    assert torch.equal(costs[1], expected)
    (message,) = [str(each.message) for each in recwarn]
    assert "unlike the first (it has one sample)" in message


def test_numbers_of_samples_are_spread_over_tokens():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 5)), torch.randn(7, 3, 6)
    recording, _, _ = record(net, lambda: net(x).square().flatten(1).sum(1).mean())
    entries, script = recording.entries(blocks_of(net)[0])
    spread = of_samples(script.program, entries.products[0].made, torch.arange(14.0).reshape(2, 7))
    assert torch.equal(spread, torch.arange(14.0).reshape(2, 7).repeat_interleave(3, 1))


class ScaledLayer(nn.Linear):
    """Its bias is added behind a scale of each unit."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight) * torch.linspace(0.2, 2.0, self.out_features) + self.bias


@pytest.mark.parametrize(
    ("make", "shape"), [(lambda: ScaledLayer(6, 5), (7, 6)), (lambda: nn.Conv2d(5, 5, 2, groups=5), (7, 5, 4, 3))]
)
def test_slopes_of_some_rows_are_those_among_all(make, shape):
    layer, x = make(), torch.randn(shape)
    recording, _, _ = record(layer, lambda: layer(x).square().mean())
    tape = recording.taken()
    entries, _ = recording.entries(blocks_of(layer)[0])
    (entry,) = entries.products
    places = tape.values[entry.made].tensor.flatten(2).shape[2:] if x.ndim > 2 else (1,)
    answer, rows = torch.randn(5, 7, *places), torch.tensor([3, 0, 4])
    everyone, some = {}, {}
    add_slopes(everyone, tape, entry, answer)
    add_slopes(some, tape, entry, answer[rows], rows)
    for index, slopes in everyone.items():
        torch.testing.assert_close(some[index], slopes[rows])


def test_odd_parts_are_half_the_differences_of_opposite_vertices():
    proposal = trial(blocks_of(nn.Linear(6, 5))[0], rows=3, vertices=4)
    costs = torch.tensor([3.0, 5.0, 1.0, 1.0] * len(proposal.rows))
    assert torch.equal(odd_parts(proposal, costs), torch.tensor([[1.0, 2.0]] * len(proposal.rows)))


def test_a_cosine_is_the_mean_over_rows_of_what_odd_parts_agree():
    proposal = trial(blocks_of(nn.Linear(6, 5))[0], rows=2, vertices=4)
    proposal.mirrored = True
    exact = torch.tensor([1.0, 0.0, -1.0, 0.0, 0.0, 2.0, 0.0, -2.0])
    assert len(proposal.rows) == 2
    assert cosine_of_rows(proposal, exact, exact) == 1.0
    assert cosine_of_rows(proposal, exact + 3.0, exact) == 1.0
    turned = torch.tensor([0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0])
    assert cosine_of_rows(proposal, turned, exact) == -0.5
    assert cosine_of_rows(proposal, turned, 0 * exact) == 1.0


def test_rows_of_one_direction_are_one_vector():
    proposal = trial(blocks_of(nn.Linear(6, 5))[0], rows=4, vertices=2, seed=3)
    proposal.mirrored = True
    assert len(proposal.rows) == 3
    exact = torch.tensor([4.0, -4.0, 3.0, -3.0, 1e-9, -1e-9])
    turned = exact * torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, -1.0])
    assert cosine_of_rows(proposal, turned, exact) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("group", "reason"),
    [({"response_grid": 0}, "exact"), ({"rank": 4}, "rank"), ({"subspace": "full"}, "directions")],
)
def test_exact_costs_can_be_asked_for(group, reason):
    with pytest.raises(NotOfferedError, match=reason):
        check_slopes(blocks_of(nn.Linear(6, 5), **group)[0])
