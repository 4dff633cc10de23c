"""What candidates of rows are, and what slopes say of them: directions in test_slopes.py, flips here."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep import PolyStep
from lightning_polystep.blocks import flipped_one_by_one
from lightning_polystep.scoring.row_moves import Directions, Flips, moves_of
from lightning_polystep.scoring.slopes import Reaches, add_slopes
from lightning_polystep.scoring.taped import TapeTier
from tests.helpers.tapes import blocks_of, record, trial
from tests.scoring.test_slopes import Given


class Binary(nn.Module):
    """A layer, or filters, that multiply with the signs of some of their weights."""

    def __init__(self, shape):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(shape[0]))
        self.register_buffer("mask", (torch.rand(shape) > 0.5).double())

    def forward(self, x):
        multiply = F.linear if self.weight.ndim == 2 else F.conv2d
        return multiply(x, torch.where(self.weight >= 0, 1.0, -1.0).double() * self.mask, self.bias)


SHAPES = {"rows": ((5, 6), (7, 6)), "filters": ((5, 2, 2, 3), (7, 2, 4, 5))}


def setting(kind, **options):
    torch.manual_seed(0)
    shape, given = SHAPES[kind]
    net, x = nn.Sequential(Binary(shape)).double(), torch.randn(given).double()
    with torch.no_grad():
        worth = torch.randn(net(x).shape).double()
    recording, probe, loss = record(net, lambda: (net(x) * worth).flatten(1).sum(1).mean())
    block = flipped_one_by_one(max(blocks_of(net), key=lambda each: each.dim))[0]
    block.group.update(options)
    proposal = PolyStep(net.parameters(), seed=0).propose(
        block, rank=5, most_rows=4, rotations=options.get("rotations", 1)
    )
    tier = Given(block, recording)
    (entry,) = tier.entered[0].products
    tier.given = {}
    slopes = (worth / 7).movedim(1, 0).flatten(2) if worth.ndim > 2 else (worth / 7).T[:, :, None]
    add_slopes(tier.given, recording.taken(), entry, slopes)
    return tier, proposal, probe, loss, entry


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("options", [{}, {"rotations": 2}, {"polytope": "simplex"}, {"polytope": "cube"}])
def test_a_flip_costs_the_product_of_slopes_with_what_it_changes_and_no_flip_nothing(kind, options):
    tier, proposal, probe, loss, _ = setting(kind, **options)
    costs = torch.cat([*tier.losses_of_rows(proposal, probe, torch.arange(4).split(3))])
    expected = tier.exact().score(proposal, probe, 0, proposal.candidates).reshape(costs.shape)
    torch.testing.assert_close(costs, expected, rtol=1e-9, atol=1e-11)
    stay = (costs == loss).reshape(4, 5, -1).sum(2)
    assert bool((2 * stay >= proposal.directions.shape[1]).all()), "of two vertices one is where the weight is"
    assert not bool((costs == loss).all())


@pytest.mark.parametrize("kind", SHAPES)
def test_units_are_shifted_as_far_as_biases_would_be_spread(kind):
    tier, proposal, _, _, entry = setting(kind)
    (far,) = (typical for _, typical in Reaches.of(tier, tier.entered[0], proposal).values())
    made = tier.recording.taken().values[entry.made].tensor
    torch.testing.assert_close(far, (3**0.5 * 0.3 * made.square().mean().sqrt()).expand_as(made[:, 0]))


def test_flips_are_no_work():
    tier, *_ = setting("rows")
    moves = moves_of(tier)
    assert isinstance(moves, Flips)
    assert moves.most_directions() is None
    assert moves.rows_at_once == 5
    assert moves.least_cosine(32) == -0.25


def test_other_rows_move_along_directions():
    net = nn.Sequential(nn.Linear(4, 3))
    recording, _, _ = record(net, lambda: net(torch.randn(6, 4)).square().sum(1).mean())
    moves = moves_of(TapeTier(blocks_of(net)[0], recording))
    assert isinstance(moves, Directions)
    assert moves.least_cosine(32) == 0.0
    shared = moves.shared(trial(moves.tier.block), moves.tier.recording.entries(moves.tier.block)[0])
    assert all(scale is None for _, scale in shared.values())
