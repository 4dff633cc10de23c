"""Weights go into a user's own modules of other libraries, which then compute what the network does."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_polystep.exports import state_dict_for
from lightning_polystep.interop import ConversionError
from lightning_polystep.layers import LIF, HardMoE, QuantActivation, QuantLinear, Sign, SpikeCount
from tests.exports.networks import dyadic, make_dyadic

STEPS, LEAKS = 7, (0.75, 0.5)
SEEDS = st.integers(0, 2**31)


def spiking(seed=1, **neuron):
    """Random weights that add up without rounding, and leaks with which Norse and SpikingJelly do not round either."""
    draw = torch.Generator().manual_seed(seed)
    layers = [
        nn.Linear(4, 6),
        LIF(LEAKS[0], num_steps=STEPS, **neuron),
        nn.Linear(6, 3),
        LIF(LEAKS[1], **neuron),
        SpikeCount(),
    ]
    return make_dyadic(nn.Sequential(*layers), draw), dyadic((9, 4), draw, 1 / 4, 12)


class Theirs(nn.Module):
    """A user's module, with names and a forward of its own."""

    def __init__(self, neurons):
        super().__init__()
        self.input_layer = nn.Linear(4, 6)
        self.first = neurons(LEAKS[0])
        self.readout_layer = nn.Linear(6, 3)
        self.second = neurons(LEAKS[1])

    def forward(self, x):
        return self.second(self.readout_layer(self.first(self.input_layer(x))))


def counted(target, inputs):
    with torch.no_grad():
        return sum(target(inputs) for _ in range(STEPS))


def assert_equal(ours, theirs):
    assume(0 < ours.mean() < STEPS)
    assert torch.equal(ours, theirs)


@given(SEEDS, st.sampled_from(["zero", "subtract"]))
@settings(max_examples=20)
def test_snntorch(seed, reset):
    snntorch = pytest.importorskip("snntorch")
    network, inputs = spiking(seed, spike_on="gt", reset_mechanism=reset)
    target = Theirs(lambda _: snntorch.Leaky(0.1, reset_mechanism=reset, reset_delay=False, init_hidden=True))
    target.load_state_dict(state_dict_for(network, target))
    assert_equal(network(inputs), counted(target, inputs))


@given(SEEDS)
@settings(max_examples=20)
def test_spikingjelly(seed):
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    network, inputs = spiking(seed, spike_on="ge")
    target = Theirs(lambda leak: neuron.LIFNode(tau=1 / (1 - leak), decay_input=False))
    target.load_state_dict(state_dict_for(network, target))
    assert_equal(network(inputs), counted(target, inputs))


def test_subtractions_that_two_libraries_make_up_for_differently_are_refused():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    network, _ = spiking(spike_on="ge", reset_mechanism="subtract")
    target = Theirs(lambda leak: neuron.LIFNode(tau=1 / (1 - leak), decay_input=False, v_reset=None))
    with pytest.raises(ConversionError, match="lowered once more at the next step here"):
        state_dict_for(network, target)


@given(SEEDS)
@settings(max_examples=20)
def test_norse(seed):
    norse = pytest.importorskip("norse.torch")

    def neurons(leak):
        return norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=torch.tensor((1 - leak) * 1024)), dt=2**-10)

    network, inputs = spiking(seed, spike_on="gt")
    target = Theirs(neurons)
    target.load_state_dict(state_dict_for(network, target))
    total, states = 0, (None, None)
    with torch.no_grad():
        for _ in range(STEPS):
            hidden, first = target.first(target.input_layer(inputs), states[0])
            output, second = target.second(target.readout_layer(hidden), states[1])
            total, states = total + output, (first, second)
    assert_equal(network(inputs), total)


@given(SEEDS)
@settings(max_examples=20)
def test_brevitas(seed):
    qnn = pytest.importorskip("brevitas.nn")
    torch.manual_seed(seed)
    network = nn.Sequential(
        QuantActivation(8, signed=True, scale=0.013),
        QuantLinear(4, 6, granularity="per_tensor", weight_format="int4"),
        QuantActivation(4, scale=0.0371),
        QuantLinear(6, 3, granularity="per_tensor"),
        QuantActivation(5, signed=True, scale=0.02),
    )

    class Theirs(nn.Module):
        def __init__(self):
            super().__init__()
            self.inputs = qnn.QuantIdentity(bit_width=8, narrow_range=True)
            self.a = qnn.QuantLinear(4, 6, bias=True, weight_bit_width=4)
            self.relu = qnn.QuantReLU(bit_width=4)
            self.b = qnn.QuantLinear(6, 3, bias=True)
            self.outputs = qnn.QuantIdentity(bit_width=5, narrow_range=True)

        def forward(self, x):
            return self.outputs(self.b(self.relu(self.a(self.inputs(x)))))

    target = Theirs().eval()
    target.load_state_dict(state_dict_for(network, target))
    for mine, its in (("0", "inputs"), ("2", "relu"), ("4", "outputs")):
        scale = getattr(target, its).act_quant.scale()
        assert torch.equal(scale.reshape(()), network.get_submodule(mine).scale)
    inputs = torch.randn(64, 4)
    with torch.no_grad():
        assert torch.equal(target(inputs), network(inputs))


def test_normalisations_go_along_and_the_target_is_not_touched():
    network = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.BatchNorm1d(3))
    network(torch.randn(9, 4))
    target = nn.Sequential(nn.Linear(4, 3), nn.Dropout(), nn.LayerNorm(3), nn.BatchNorm1d(3))
    before = target[0].weight.clone()
    state = state_dict_for(network, target)
    assert torch.equal(target[0].weight, before)
    target.load_state_dict(state)
    inputs = torch.randn(5, 4)
    assert torch.equal(target.eval()(inputs), network.eval()(inputs))


@pytest.mark.parametrize(
    ("network", "target", "reason"),
    [
        (nn.Sequential(nn.Linear(4, 3)), nn.ReLU(), r"has the layers \[weights\] and the module \[\]"),
        (nn.Sequential(nn.Linear(4, 3)), nn.Linear(4, 2), "shapes, and whether there is a bias"),
        (nn.Sequential(nn.Linear(4, 3)), nn.Linear(4, 3, bias=False), "shapes, and whether there is a bias"),
        (nn.Sequential(nn.Conv2d(1, 2, 3)), nn.Conv2d(1, 2, 3, padding=1), r"has padding=\(0, 0\), and .* \(1, 1\)"),
        (nn.Sequential(QuantLinear(4, 3)), nn.Linear(4, 3), "has quantised weights, and .* has not"),
        (
            nn.Sequential(HardMoE([nn.Linear(4, 4), nn.Linear(4, 4)], 4)),
            nn.Linear(4, 4),
            "HardMoE is not matched",
        ),
    ],
)
def test_layers_that_do_not_match_are_refused(network, target, reason):
    with pytest.raises(ConversionError, match=reason):
        state_dict_for(network, target)


@pytest.mark.parametrize(
    ("neuron", "leaky", "reason"),
    [
        ({"spike_on": "ge"}, {"reset_mechanism": "zero", "reset_delay": False}, 'have spike_on="gt", and the network'),
        ({"spike_on": "gt"}, {"reset_mechanism": "zero"}, "reset_delay=True, the network"),
        ({"spike_on": "gt"}, {"reset_delay": False}, 'has reset_mechanism="subtract"'),
    ],
)
def test_other_neurons_of_snntorch_are_refused(neuron, leaky, reason):
    snntorch = pytest.importorskip("snntorch")
    network, _ = spiking(**neuron)
    with pytest.raises(ConversionError, match=reason):
        state_dict_for(network, Theirs(lambda _: snntorch.Leaky(0.1, init_hidden=True, **leaky)))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tau": 3.0, "decay_input": False}, "the leak is not in the module's state_dict, and it has 0.666667 where"),
        ({"tau": 4.0, "decay_input": True}, r"IFNode and LIFNode\(decay_input=False\)"),
        ({"tau": 4.0, "decay_input": False, "v_threshold": 2.0}, "the threshold is not in the module's state_dict"),
        ({"tau": 4.0, "decay_input": False, "v_reset": None}, 'the module resets by "subtract"'),
        ({"tau": 4.0, "decay_input": False, "v_reset": 0.5}, "the module resets to 0.5"),
    ],
)
def test_constants_outside_the_state_dict_have_to_agree(options, reason):
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    network, _ = spiking(spike_on="ge")
    with pytest.raises(ConversionError, match=reason):
        state_dict_for(network, Theirs(lambda _: neuron.LIFNode(**options)))


def test_quantisers_of_brevitas_have_to_agree():
    qnn = pytest.importorskip("brevitas.nn")
    with pytest.raises(ConversionError, match="bits, sign and range have to match"):
        state_dict_for(nn.Sequential(QuantActivation(4, scale=0.1)), nn.Sequential(qnn.QuantReLU(bit_width=3)))
    with pytest.raises(ConversionError, match="take the module for signs from"):
        state_dict_for(nn.Sequential(Sign()), nn.Sequential(qnn.QuantIdentity(bit_width=8)))
    outgrown = nn.Sequential(QuantActivation(8, scale=0.1), QuantLinear(4, 3, granularity="per_tensor"))
    outgrown[1].weight_scale *= 0.5
    with pytest.raises(ConversionError, match="takes another scale from the same weights"):
        state_dict_for(outgrown, nn.Sequential(qnn.QuantReLU(bit_width=8), qnn.QuantLinear(4, 3, bias=True)))
