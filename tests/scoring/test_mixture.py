"""Reading a network with a mixture of experts, and the reason where one cannot be read."""

import pytest
from torch import nn

from lightning_polystep.layers import HardMoE, SlotArgmaxAttention, Staircase
from lightning_polystep.scoring.mixture import MixtureStack
from lightning_polystep.scoring.recognise import recognise
from lightning_polystep.scoring.stack import NotAStackError
from tests.helpers.parity import Stacked


def mixture(**options):
    return HardMoE(
        [nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), nn.Linear(6, 4)], **{"router": 6, **options}
    )


def test_every_expert_makes_a_feedforward_network():
    layers = [nn.Flatten(), Staircase(), nn.Linear(4, 6), Staircase(), mixture(), nn.ReLU(), nn.Linear(4, 3)]
    stack = recognise(Stacked(*layers))
    assert isinstance(stack, MixtureStack)
    first, second = layers[4].experts
    assert stack.linears == (layers[2], layers[4].router, layers[6])
    assert [expert.linears for expert in stack.experts] == [
        (layers[2], first[0], first[2], layers[6]),
        (layers[2], second, layers[6]),
    ]
    # What comes right behind the mixture belongs to the last layer of each expert.
    assert [type(layer.activation) for layer in stack.experts[1].layers] == [Staircase, nn.ReLU, type(None)]
    assert stack.behind.linears == (layers[6],)


def test_experts_may_give_the_scores():
    stack = recognise(Stacked(mixture()))
    assert (stack.place, stack.behind) == (0, None)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([mixture(router=nn.Sequential(nn.Linear(6, 2)))], "the mixture's router is a Sequential, not a Linear layer"),
        ([mixture(return_routing=True)], "the mixture returns its routing as well"),
        ([mixture(), nn.ReLU()], "the network does not end in a Linear layer, whose outputs are the scores"),
        ([mixture(), nn.Dropout()], "Dropout behind a Linear is neither a StepFunction nor ReLU"),
        ([nn.Linear(6, 6), nn.Tanh(), mixture()], "Tanh behind a Linear is neither a StepFunction nor ReLU"),
        ([HardMoE([nn.ReLU()], router=6)], "ReLU is no Linear or QuantLinear where one should be"),
        (
            [mixture(), nn.Linear(4, 6), SlotArgmaxAttention(6), nn.Linear(6, 3)],
            "the network makes more than one choice of an expert or a slot",
        ),
    ],
)
def test_refusals_name_the_reason(layers, reason):
    with pytest.raises(NotAStackError) as refusal:
        recognise(Stacked(*layers))
    assert str(refusal.value) == reason
