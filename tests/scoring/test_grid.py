"""Costs that are interpolated between a few replays: exact where losses are straight, near where the grid is fine."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lightning_polystep import Engine, PolyStep
from lightning_polystep.scoring.grid import GridTier, lay_nodes, offer_from_tape, places_of
from lightning_polystep.scoring.taped import TapeTier
from tests.helpers.tapes import LATE, blocks_of, record, trial

EXACT = {"rtol": 1e-9, "atol": 1e-11}


class Net(nn.Module):
    """A network whose author has written its step by hand."""

    def __init__(self, activation=torch.tanh, norm=None):
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3)
        self.norm, self.activation, self.hidden = norm or nn.Identity(), activation, None

    def forward(self, x):
        self.hidden = self.activation(self.norm(self.first(x)))
        return self.second(self.hidden)


def spikes(current):
    """Spikes of a leaky neuron over four steps, with the reset that its author likes."""
    membrane, count = torch.zeros_like(current), torch.zeros_like(current)
    for _ in range(4):
        membrane = 0.8 * membrane + current
        fired = (membrane > 0.5).to(current)
        membrane = membrane * (1 - fired)
        count = count + fired
    return count


def setting(net, loss=None, samples=16, **group):
    """Return the tier of the first layer, its proposal and the probe."""
    torch.manual_seed(0)
    net = net.double()
    x, y = torch.randn(samples, 6).double(), torch.randint(3, (samples,))
    loss = loss or (lambda net, out, y: F.cross_entropy(out, y))
    recording, probe, _ = record(net, lambda: loss(net, net(x), y))
    block = next(block for block in blocks_of(net, **{"response_grid": 3, **group}) if block.name == "first")
    tier = offer_from_tape(recording, block)
    tier.chunking(2**28)
    return tier, trial(block, rows=5, vertices=6), probe


def scored(tier, proposal, probe):
    return tier.score(proposal, probe, 0, proposal.candidates)


@given(st.integers(3, 40), st.integers(1, 6), st.integers(1, 9), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_what_is_linear_in_the_shift_is_found_exactly(nodes, samples, directions, seed):
    shifts = torch.randn(directions, samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    laid, weights = lay_nodes(shifts, nodes)
    assert laid.shape == (2 * ((nodes - 1) // 2), samples)
    assert weights.shape == (directions, *laid.shape)
    assert (weights >= 0).all()
    torch.testing.assert_close((weights * laid).sum(1), shifts)


@pytest.mark.parametrize("nodes", [3, 5, 9])
def test_a_node_counts_for_itself_alone(nodes):
    places = torch.tensor(places_of(nodes), dtype=torch.float64)
    both = torch.cat([places, -places]) if places[-1] == 1 else torch.cat([places, -places, 2 * places])
    _, weights = lay_nodes(both[:, None], nodes)
    torch.testing.assert_close(weights[: len(places) * 2, :, 0], torch.eye(len(places) * 2, dtype=torch.float64))


def test_directions_that_shift_nothing_cost_what_the_step_did():
    nodes, weights = lay_nodes(torch.zeros(3, 2), 3)
    assert not nodes.any()
    assert weights.isfinite().all()


@pytest.mark.parametrize("step", [(5, 0, 0), LATE])
@pytest.mark.parametrize(
    "loss",
    [
        lambda net, out, y: out.mean(),
        lambda net, out, y: out.sum(1).mean() + 0.1 * net.hidden.mean(),
        lambda net, out, y: (out.sum() + net.hidden.sum()).exp().log1p() / 7,
    ],
    ids=["mean", "energy", "curved behind the sum"],
)
def test_straight_responses_are_exact(loss, step):
    """Whatever is made of sums over samples afterwards."""
    tier, proposal, probe = setting(Net(activation=lambda x: 2 * x), loss)
    probe.noise_key = step
    assert isinstance(tier, GridTier)
    costs = scored(tier, proposal, probe)
    assert costs.std() > 1e-3
    torch.testing.assert_close(costs, scored(tier.exact(), proposal, probe), **EXACT)


@pytest.mark.parametrize("activation", [torch.tanh, torch.relu, spikes], ids=["tanh", "relu", "spikes"])
@pytest.mark.parametrize(
    "loss",
    [
        lambda net, out, y: F.cross_entropy(out, y),
        lambda net, out, y: F.cross_entropy(out, y) + 0.3 * net.hidden.square().mean(),
        lambda net, out, y: F.mse_loss(out, F.one_hot(y, 3).double()).sqrt(),
    ],
    ids=["cross entropy", "energy", "root of a mean"],
)
def test_the_finer_the_grid_the_nearer(activation, loss):
    errors = []
    for nodes in (5, 1001):
        tier, proposal, probe = setting(Net(activation), loss, response_grid=nodes)
        exact = scored(tier.exact(), proposal, probe)
        errors.append(float((scored(tier, proposal, probe) - exact).std() / exact.std()))
    coarse, fine = errors
    assert fine < 0.03
    assert fine < coarse or coarse < 1e-6


def test_a_start_moves_all_candidates():
    tier, proposal, probe = setting(Net(activation=lambda x: 2 * x), lambda net, out, y: out.mean())
    proposal.starts = torch.randn(1, proposal.block.dim).double()
    torch.testing.assert_close(scored(tier, proposal, probe), scored(tier.exact(), proposal, probe), **EXACT)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_pieces_of_the_candidates_have_the_bits_of_the_whole(rows):
    """So that no bit depends on how many processes score."""
    tier, proposal, probe = setting(Net(spikes))
    tier._rows_at_once = rows
    whole, piece = scored(tier, proposal, probe), tier.piece(proposal, 1)
    assert piece == rows * proposal.vertices_per_row
    cuts = [tier.score(proposal, probe, c, min(c + piece, len(whole))) for c in range(0, len(whole), piece)]
    assert torch.equal(torch.cat(cuts), whole)
    odd = [tier.score(proposal, probe, c, min(c + 5, len(whole))) for c in range(0, len(whole), 5)]
    assert torch.equal(torch.cat(odd), whole)


class Recurrent(Net):
    """Its first layer is used at two times, on different inputs."""

    def forward(self, x):
        self.hidden = torch.tanh(self.first(x)) + torch.tanh(self.first(x.flip(1)))
        return self.second(self.hidden)


class Penalised(Net):
    def forward(self, x):
        return super().forward(x) + self.first.weight.square().mean()


@pytest.mark.parametrize(
    ("net", "loss", "group"),
    [
        (Net(), None, {"response_grid": 0}),
        (Recurrent(), None, {}),
        (Penalised(), None, {}),
        (Net(norm=nn.BatchNorm1d(5)), None, {}),
        (Net(), lambda net, out, y: F.cross_entropy(out, y) + net.hidden.max(), {}),
        (Net(), lambda net, out, y: F.cross_entropy(out, y) + net.hidden.mean(0).square().sum(), {}),
    ],
    ids=["refused", "two inputs", "penalty on weights", "samples mixed", "largest of all", "sum of each unit"],
)
def test_where_more_than_one_number_decides_each_candidate_is_replayed(net, loss, group):
    tier, proposal, probe = setting(net, loss, **group)
    assert type(tier) is TapeTier
    assert tier.approximation() == ""
    assert scored(tier, proposal, probe).isfinite().all()


def test_the_plan_says_so():
    torch.manual_seed(0)
    net = Net(spikes)
    engine = Engine(net, PolyStep(net.parameters(), seed=0, response_grid=3), announce=None)
    x, y = torch.randn(64, 6), torch.randint(3, (64,))
    engine.step(lambda: F.cross_entropy(net(x), y))
    first = engine.plan.assignments[0]
    assert isinstance(first.tier, GridTier)
    assert "interpolated between 3 responses" in first.note
    assert first.error > 0
    assert first.most_rows is None


def test_what_can_be_afforded_is_not_approximated():
    """Unless it is asked for."""
    tier, _, _ = setting(Net(), response_grid=None)
    assert type(tier) is TapeTier
    wide, _, _ = setting(Net(), response_grid=None, rank=7, rotations=200)
    assert isinstance(wide, GridTier)


def test_rows_that_cannot_be_afforded_take_turns():
    tier, _, _ = setting(Net())
    work = tier.work()
    tier.work = lambda: work._replace(candidate=work.forward * 10)
    assert tier.affordable_rows() == 1
    tier.work = lambda: work._replace(candidate=work.forward / 100)
    assert tier.affordable_rows() == math.floor(6 * 100 / 2)


def test_training_follows_the_grid():
    """Beside the same network with each candidate replayed, and as many directions."""
    torch.manual_seed(0)
    x = torch.randn(256, 6)
    y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 0.5).long()
    losses = {}
    for nodes in (3, 0):
        torch.manual_seed(1)
        net = Net(torch.relu)
        optimizer = PolyStep(net.parameters(), seed=0, lr=0.1, rank=7, response_grid=nodes)
        engine = Engine(net, optimizer, announce=None)
        for _ in range(40):
            loss = engine.step(lambda net=net: F.cross_entropy(net(x), y))
        losses[nodes] = float(loss)
    assert losses[3] < 0.8
    assert losses[3] < 1.15 * losses[0]
