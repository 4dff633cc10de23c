"""Reading a spiking network; which networks are one is shown in ``test_recognise.py``."""

import pytest
import torch
from torch import nn

from lightning_polystep.layers import LIF, LastMembrane, SpikeCount, SpikeRate
from lightning_polystep.scoring.spiking import SpikingStack, read_spiking
from lightning_polystep.scoring.stack import NotAStackError


@pytest.mark.parametrize(
    ("readout", "criterion", "loss"),
    [
        (SpikeCount(), nn.CrossEntropyLoss(), "cross_entropy_count"),
        (LastMembrane(), nn.CrossEntropyLoss(), "cross_entropy_membrane"),
        (SpikeRate(), nn.MSELoss(), "mse_rate"),
    ],
)
def test_readout_and_criterion_name_the_loss(readout, criterion, loss):
    layers = [nn.Linear(4, 3), LIF(num_steps=2), readout]
    stack = read_spiking(nn.Sequential(*layers), layers, criterion)
    assert isinstance(stack, SpikingStack)
    assert stack.loss == loss
    assert stack.linears == (layers[0],)


def test_rates_of_a_cross_entropy_are_refused():
    layers = [nn.Linear(4, 3), LIF(num_steps=2), SpikeRate()]
    with pytest.raises(NotAStackError, match="CrossEntropyLoss of SpikeRate is not among the known losses"):
        read_spiking(nn.Sequential(*layers), layers, nn.CrossEntropyLoss())


def test_the_loss_is_the_criterion_in_double_precision():
    layers = [nn.Linear(4, 3), LIF(num_steps=2), SpikeCount()]
    criterion = nn.CrossEntropyLoss(label_smoothing=0.2)
    stack = read_spiking(nn.Sequential(*layers), layers, criterion)
    scores, targets = torch.randn(5, 3), torch.randint(3, (5,))
    assert torch.equal(stack.loss_of(scores, targets), criterion(scores.double(), targets))
