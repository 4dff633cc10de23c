"""Replayed candidates cost what they cost by the loop, in networks of every make."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lightning_polystep.scoring.taped import TapeTier
from lightning_polystep.tape import NotOnTapeError
from lightning_polystep.tape.fuse import cpu
from tests.helpers.programs import PIECES, Network
from tests.helpers.tape_cases import CASES, REFUSED
from tests.helpers.tapes import assert_parity, blocks_of, interpreted, record, score, trial


@pytest.fixture(autouse=True)
def plain_loops():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "compiled", interpreted)
        yield


@pytest.mark.parametrize("radius", [0.3, 20.0])
@pytest.mark.parametrize("name", sorted(set(CASES) - set(REFUSED)))
def test_candidates_cost_what_they_cost_by_the_loop(name, radius):
    step = CASES[name]()
    found = assert_parity(step, step, radius=radius)
    assert any(each.looped.std() > 1e-6 for each in found.values()), "candidates that all cost the same test nothing"


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_the_tape_cannot_carry_is_refused_with_the_reason(name):
    step = CASES[name]()
    refusals = [str(each) for each in score(step, step).values() if isinstance(each, NotOnTapeError)]
    assert refusals
    assert all(REFUSED[name] in refusal for refusal in refusals)


@settings(max_examples=150)
@given(seed=st.integers(0, 2**31 - 1), depth=st.integers(1, 6))
def test_random_networks_cost_what_they_cost_by_the_loop(seed, depth):
    torch.manual_seed(seed)
    network = Network(seed, depth)
    with torch.no_grad():
        loss = network()
    if torch.isfinite(loss):
        assert_parity(network, network, unread=True, context=" | ".join(network.names), radius=0.4, seed=seed)


@pytest.mark.parametrize("piece", sorted(PIECES))
def test_each_kind_of_operation_alone_costs_what_it_costs_by_the_loop(piece):
    for seed in range(6):
        torch.manual_seed(seed)
        network = Network(seed, 2, [piece, "linear", "smooth"])
        assert_parity(network, network, unread=True, context=" | ".join(network.names), seed=seed)


@pytest.mark.parametrize("particle_dim", [None, 2])
def test_rows_of_any_cut_through_a_parameter_are_replayed(particle_dim):
    """In the full space a particle may be a part of a row, or of several."""
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    assert_parity(network, lambda: F.cross_entropy(network(x), y), subspace="full", particle_dim=particle_dim)


def test_losses_are_equal_to_the_bit_where_rounding_has_no_part():
    network = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randint(-8, 9, parameter.shape) / 8)
    x, y = torch.randint(-2, 3, (16, 4)).float(), torch.randint(-5, 5, (16, 3)).float()

    def step():
        spikes = (network[0](x) > 0.5).float()
        return (network[1](spikes) - y).square().sum()

    for each in score(network, step, directions=lambda d: (8 * d).round() / 8).values():
        assert torch.equal(each.taped, each.looped)


def test_a_candidate_that_changes_nothing_costs_exactly_the_incumbent():
    """Rounding that differed between candidates would be taken for a preference."""
    network = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    x, y = torch.randn(12, 4), torch.randint(3, (12,))

    def step():
        return F.cross_entropy(network[1]((network[0](x) > 1e3).float()), y)

    found = score(network, step)
    assert torch.equal(found["0"].taped, found["0"].incumbent.expand_as(found["0"].taped))


def test_dropout_is_common_to_all_candidates_and_the_step():
    network = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    x, y = torch.randn(12, 4, dtype=torch.float64), torch.randint(3, (12,))
    found = score(network, lambda: F.cross_entropy(network(x), y), radius=0.0)
    for each in found.values():
        torch.testing.assert_close(each.taped, each.incumbent.expand_as(each.taped), rtol=1e-12, atol=0)


def test_no_candidate_writes_into_the_tape():
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)).double()
    x, y = torch.randn(12, 4, dtype=torch.float64), torch.randint(3, (12,))
    recording, probe, _ = record(network, lambda: F.cross_entropy(network(x), y))
    before = [value.tensor.clone() for value in recording.taken().values]
    for block in blocks_of(network):
        TapeTier(block, recording).score(trial(block), probe, 0, 4)
    assert all(torch.equal(value.tensor, was) for value, was in zip(recording.taken().values, before, strict=True))
