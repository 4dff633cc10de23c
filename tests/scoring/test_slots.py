"""Reading a network with argmax attention over slots, and the reason where one cannot be read."""

import pytest
import torch
from torch import nn

from lightning_polystep.layers import QuantLinear, SlotArgmaxAttention
from lightning_polystep.scoring.recognise import recognise
from lightning_polystep.scoring.slots import GatedValue, SlotStack
from lightning_polystep.scoring.stack import NotAStackError
from tests.helpers.parity import Stacked


@pytest.mark.parametrize("bias", [True, False])
def test_a_gated_value_is_a_linear_layer_that_follows_the_attention(bias):
    attention, x = SlotArgmaxAttention(5, 3), torch.randn(7, 5)
    attention.value = nn.Linear(5, 5, bias)
    layer = GatedValue(attention, 2)
    for _ in range(2):
        with torch.no_grad():
            attention.keys.mul_(2)
        expected = attention.value(x) * torch.sigmoid(attention.keys[2])
        assert torch.equal(layer(x), expected)
        torch.testing.assert_close(nn.functional.linear(x, layer.weight, layer.bias), expected)
    assert "in_features=5, out_features=5" in repr(layer)
    assert list(layer.parameters()) == []


def test_every_slot_makes_a_feedforward_network():
    layers = [nn.Linear(4, 6), nn.ReLU(), SlotArgmaxAttention(6, 3), nn.ReLU(), nn.Linear(6, 3)]
    stack = recognise(Stacked(*layers))
    assert isinstance(stack, SlotStack)
    assert stack.linears == (layers[0], layers[2].value, layers[4])
    assert len(stack.experts) == 3
    assert [type(layer.linear) for layer in stack.experts[2].layers] == [nn.Linear, GatedValue, nn.Linear]
    assert [type(layer.activation) for layer in stack.experts[2].layers] == [nn.ReLU, nn.ReLU, type(None)]


def _quantised():
    attention = SlotArgmaxAttention(6)
    attention.value = QuantLinear(6, 6)
    return attention


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([_quantised()], "the attention's values come from a QuantLinear, not a Linear layer"),
        ([SlotArgmaxAttention(6, return_indices=True)], "the attention returns its indices as well"),
        (
            [SlotArgmaxAttention(6), nn.ReLU()],
            "the network does not end in a Linear layer, whose outputs are the scores",
        ),
    ],
)
def test_refusals_name_the_reason(layers, reason):
    with pytest.raises(NotAStackError) as refusal:
        recognise(Stacked(*layers))
    assert str(refusal.value) == reason
