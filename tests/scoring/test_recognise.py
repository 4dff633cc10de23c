"""What is recognised as a network that can be scored as a stack, and the reason where something is not."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.layers import (
    LIF,
    LastMembrane,
    QuantLinear,
    Sign,
    Sliced,
    SpikeCount,
    SpikeRate,
    Staircase,
    TimeFirst,
)
from lightning_polystep.scoring.feedforward import FeedforwardStack
from lightning_polystep.scoring.recognise import recognise
from lightning_polystep.scoring.stack import NotAStackError
from models import Classifier, SpikingMLP
from tests.helpers.parity import Stacked


def layers(**neurons):
    return [nn.Linear(4, 6), LIF(0.9, num_steps=5, **neurons), nn.Linear(6, 3), LIF(0.9), SpikeCount()]


class OwnForward(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


class OwnSlices(Sliced):
    def forward(self, x):
        return 2 * super().forward(x)


class OwnNeurons(LIF):
    pass


class HalfCount(SpikeCount):
    def forward(self, spikes):
        return 0.5 * super().forward(spikes)


class Renamed(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def with_network(network, criterion=None):
    return Renamed(network=network, criterion=criterion or nn.CrossEntropyLoss())


# What is recognised.


def test_a_stack_is_read_from_network_and_criterion():
    module = Stacked(nn.Flatten(), *layers(), label_smoothing=0.2)
    stack = recognise(module)
    assert stack.network is module.network
    assert stack.criterion is module.criterion
    assert stack.readout is module.network[-1]
    assert [(pair.linear, pair.neurons) for pair in stack.layers] == [
        (module.network[1], module.network[2]),
        (module.network[3], module.network[4]),
    ]


def test_nested_sequentials_are_read_in_order():
    first, rest = layers()[:2], layers()[2:]
    nested = nn.Sequential(nn.Identity(), nn.Sequential(nn.Flatten(), *first), nn.Sequential(nn.Sequential(*rest)))
    assert [pair.linear for pair in recognise(with_network(nested)).layers] == [first[0], rest[0]]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_layers_is_a_stack(count):
    network = SpikingMLP([4] * (count + 1), 5)
    assert len(recognise(Classifier(network, 4)).layers) == count


def test_last_membranes_are_a_readout():
    membranes = [nn.Linear(4, 3), LIF(num_steps=3, return_membrane=True), LastMembrane()]
    assert recognise(Stacked(*membranes)).loss == "cross_entropy_membrane"


def test_rates_with_a_squared_error_are_a_readout():
    rates = Stacked(nn.Linear(4, 3), LIF(num_steps=3), SpikeRate(), criterion=nn.MSELoss())
    assert recognise(rates).loss == "mse_rate"


def test_feedforward_networks_are_a_stack():
    layers = [nn.Linear(4, 6), Staircase(), nn.Sequential(QuantLinear(6, 5), nn.ReLU()), nn.Linear(5, 3)]
    stack = recognise(Stacked(nn.Flatten(), *layers))
    assert isinstance(stack, FeedforwardStack)
    assert [type(layer.activation) for layer in stack.layers] == [Staircase, nn.ReLU, type(None)]
    assert stack.linears == (layers[0], layers[2][0], layers[3])
    assert stack.loss == "cross_entropy"


def test_linear_layers_may_follow_each_other():
    stack = recognise(Stacked(nn.Linear(4, 6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
    assert [stack.is_linear(place) for place in (0, 1)] == [True, False]


def test_what_acts_on_the_data_is_passed_over():
    stack = recognise(Stacked(nn.Flatten(), Sign(), nn.Linear(4, 3), criterion=nn.MSELoss()))
    assert len(stack.layers) == 1
    assert stack.loss == "mse"


def test_a_sliced_network_is_read_as_its_layers():
    parts = layers()
    assert [pair.linear for pair in recognise(with_network(Sliced(*parts, samples=2))).layers] == [parts[0], parts[2]]


def test_bringing_time_to_the_front_is_passed_over():
    linear, *rest = nn.Linear(4, 3), LIF(), SpikeCount()
    (layer,) = recognise(Stacked(TimeFirst(), linear, *rest)).layers
    assert layer.linear is linear


def test_a_network_that_takes_events_is_a_stack():
    assert len(recognise(Classifier(SpikingMLP((4, 5, 3), num_steps=None), 3)).layers) == 2


# What is not, and why.

_NO_ATTRIBUTES = "the module has no attributes network and criterion"
_NO_READOUT = "the network does not end in SpikeCount, SpikeRate or LastMembrane"
_NO_SEQUENCE = "the network is not a sequence of Linear and LIF layers"
_NO_PLAIN_LOSS = "CrossEntropyLoss with class weights or ignore_index"
_NO_MEAN = "the criterion has another reduction than the mean"


# What is not, and why.

_NO_ATTRIBUTES = "the module has no attributes network and criterion"
_NO_READOUT = "the network does not end in SpikeCount, SpikeRate or LastMembrane"
_NO_SCORES = "the network does not end in a Linear layer, whose outputs are the scores"
_NO_SEQUENCE = "the network is not a sequence of Linear and LIF layers"
_NO_PLAIN_LOSS = "CrossEntropyLoss with class weights or ignore_index"
_NO_MEAN = "the criterion has another reduction than the mean"


def _normed():
    return nn.utils.parametrizations.weight_norm(nn.Linear(4, 6))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: nn.Sequential(*layers()), _NO_ATTRIBUTES),
        (lambda: Renamed(network=nn.Sequential(*layers())), _NO_ATTRIBUTES),
        (lambda: Renamed(network=nn.Sequential(*layers()), criterion=F.cross_entropy), _NO_ATTRIBUTES),
        (lambda: with_network(OwnForward(*layers())), "OwnForward has a forward of its own"),
        (lambda: with_network(nn.Sequential(OwnForward(*layers()))), "OwnForward has a forward of its own"),
        (lambda: with_network(OwnSlices(*layers())), "OwnSlices has a forward of its own"),
        (
            lambda: with_network(nn.Sequential(Sliced(*layers()[:4], samples=2), SpikeCount())),
            "a part of the network is Sliced, not the whole of it",
        ),
        (
            lambda: with_network(Sliced(nn.Linear(4, 3), LIF(), SpikeCount(), samples=2)),
            "the network is Sliced, but what drives its first LIF layer changes over time",
        ),
        (
            lambda: with_network(nn.Sequential(nn.Linear(4, 3), TimeFirst(), LIF(), SpikeCount())),
            "Linear followed by TimeFirst is not Linear followed by LIF",
        ),
        (lambda: with_network(nn.Sequential()), _NO_SCORES),
        (lambda: with_network(nn.Sequential(*layers()[:-1])), _NO_READOUT),
        (lambda: with_network(nn.Sequential(*layers()[:-1], HalfCount())), _NO_READOUT),
        (lambda: with_network(nn.Sequential(nn.Linear(4, 3), Staircase())), _NO_SCORES),
        (
            lambda: with_network(nn.Sequential(nn.Linear(4, 3), nn.Dropout(), nn.Linear(3, 3))),
            "Dropout behind a Linear is neither a StepFunction nor ReLU",
        ),
        (
            lambda: with_network(nn.Sequential(nn.Conv2d(4, 3, 1), nn.ReLU(), nn.Linear(3, 3))),
            "Conv2d is no Linear or QuantLinear where one should be",
        ),
        (lambda: with_network(nn.Sequential(SpikeCount())), _NO_SEQUENCE),
        (lambda: with_network(nn.Sequential(*layers()[:-2], SpikeCount())), _NO_SEQUENCE),
        (
            lambda: with_network(nn.Sequential(*layers()[:2], nn.Dropout(), *layers()[2:])),
            "Dropout followed by Linear is not Linear followed by LIF",
        ),
        (
            lambda: with_network(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), *layers()[2:])),
            "Linear followed by ReLU is not Linear followed by LIF",
        ),
        (
            lambda: with_network(nn.Sequential(nn.Linear(4, 6), OwnNeurons(num_steps=5), *layers()[2:])),
            "Linear followed by OwnNeurons is not Linear followed by LIF",
        ),
        (
            lambda: with_network(nn.Sequential(_normed(), *layers()[1:])),
            "ParametrizedLinear followed by LIF is not Linear followed by LIF",
        ),
        (
            lambda: with_network(nn.Sequential(*layers()), nn.MSELoss()),
            "MSELoss of SpikeCount is not among the known losses",
        ),
        (lambda: with_network(nn.Sequential(*layers()), nn.L1Loss()), "L1Loss is neither CrossEntropyLoss nor MSELoss"),
        (lambda: with_network(nn.Sequential(*layers()), nn.CrossEntropyLoss(torch.ones(3))), _NO_PLAIN_LOSS),
        (lambda: with_network(nn.Sequential(*layers()), nn.CrossEntropyLoss(reduction="sum")), _NO_MEAN),
        (lambda: with_network(nn.Sequential(*layers()), nn.CrossEntropyLoss(ignore_index=0)), _NO_PLAIN_LOSS),
    ],
)
def test_refusals_name_the_reason(build, reason):
    with pytest.raises(NotAStackError) as refusal:
        recognise(build())
    assert str(refusal.value) == reason
