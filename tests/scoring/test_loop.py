"""The loop writes every candidate into the parameters and puts them back bit for bit."""

import pytest
import torch
from torch import nn

from lightning_polystep.scoring.loop import LoopTier
from tests.helpers.parity import CASES, Case, prepare, reference_losses, vectors


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_networks_built_by_hand_bit_for_bit(case):
    prepared = prepare(case, torch.float32)
    for proposal in prepared.proposals.values():
        with prepared.probe.isolated():
            losses = LoopTier().score(proposal, prepared.probe, 0, proposal.candidates)
        assert torch.equal(losses, reference_losses(prepared, proposal))


def test_takes_any_part_of_the_candidates():
    prepared = prepare(CASES[0])
    proposal = prepared.proposals["0"]
    with prepared.probe.isolated():
        part = LoopTier().score(proposal, prepared.probe, 4, 9)
    assert torch.equal(part, reference_losses(prepared, proposal)[4:9])


def test_parameters_come_back_bit_for_bit():
    prepared = prepare(Case("linear", lambda: nn.Linear(4, 3), vectors, {}), torch.float32)
    module, proposal = prepared.module, next(iter(prepared.proposals.values()))
    with torch.no_grad():
        # Moving there and back again by subtraction would lose each of these.
        module.weight[0] = torch.tensor([-0.0, 1e-30, 1e30, float("nan")])
    before = [(parameter, parameter.detach().clone().view(torch.int32)) for parameter in module.parameters()]
    with prepared.probe.isolated():
        LoopTier().score(proposal, prepared.probe, 0, proposal.candidates)
    for (parameter, bits), now in zip(before, module.parameters(), strict=True):
        assert now is parameter
        assert torch.equal(now.detach().view(torch.int32), bits)


def test_parameters_come_back_when_the_step_fails():
    prepared = prepare(Case("linear", lambda: nn.Linear(4, 3), vectors, {}))
    module, proposal = prepared.module, next(iter(prepared.proposals.values()))
    before = [parameter.detach().clone() for parameter in module.parameters()]

    def fail():
        raise ArithmeticError("user code")

    prepared.probe.evaluate = fail
    with pytest.raises(ArithmeticError, match="user code"), prepared.probe.isolated():
        LoopTier().score(proposal, prepared.probe, 0, proposal.candidates)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
