"""Silent layers are found by name, whatever library they come from, and nothing else is called silent."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from lightning_polystep.layers import LIF, RLIF, Heaviside, QuantActivation, Sign, SpikeCount, Staircase, TimeFirst
from lightning_polystep.silence import first_tensor, listening, silent
from lightning_polystep.sites import not_recording
from lightning_polystep.tape import Recorder

X = torch.rand(64, 8)


def said(network, x=X):
    with torch.no_grad(), listening(network) as heard:
        network(x)
    return silent(heard)


def behind(layer, bias=0.0, gain=1.0):
    """A Linear layer with pre-activations of about ``gain`` around ``bias``, and a layer behind it."""
    torch.manual_seed(0)
    linear = nn.Linear(8, 16)
    with torch.no_grad():
        linear.weight.mul_(gain)
        linear.bias.fill_(bias)
    return nn.Sequential(linear, layer, nn.Linear(16, 3))


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        (behind(LIF(0.5, 50.0, num_steps=5)), "'1' (LIF) never fires"),
        (behind(LIF(0.5, -50.0, num_steps=5)), "'1' (LIF) fires always"),
        (behind(Sign(), bias=50.0), "'1' (Sign) gives 1 whatever its inputs are"),
        (behind(Heaviside(), bias=-50.0), "'1' (Heaviside) gives 0 whatever its inputs are"),
        (behind(Staircase(), gain=1e-3, bias=0.1), "'1' (Staircase) gives 0.4 whatever its inputs are"),
        (behind(QuantActivation(4, scale=100.0)), "'1' (QuantActivation) gives 0 whatever its inputs are"),
        (behind(nn.ReLU(), bias=-50.0), "'1' (ReLU) gives 0 whatever its inputs are"),
        (behind(nn.Sigmoid(), bias=500.0), "'1' (Sigmoid) gives 1 whatever its inputs are"),
    ],
)
def test_a_layer_that_says_nothing_is_named(network, problem):
    assert said(network) == [problem]


def test_signs_that_differ_but_never_change_are_silent():
    network = behind(Sign())
    with torch.no_grad():
        network[0].bias[::2] = 50
        network[0].bias[1::2] = -50
        assert said(network) == ["'1' (Sign) reacts to its inputs in 0 of 16 units"]
        network[0].bias[:4] = 0
    assert said(network) == []


def test_recurrent_neurons_and_inputs_with_a_time_axis():
    x = X[:, None].expand(-1, 6, -1)
    network = nn.Sequential(
        TimeFirst(), nn.Linear(8, 16), RLIF(16, beta=0.5, threshold=50.0), nn.Linear(16, 3), LIF(0.9)
    )
    assert said(network, x)[0] == "'2' (RLIF) never fires"
    assert len(said(network, x)) == 1, "what has the same inputs for all samples has no part in it"


def test_the_innermost_module_is_named_and_neurons_as_a_whole():
    class Neuron(nn.Module):
        def __init__(self):
            super().__init__()
            self.surrogate = Heaviside()

        def forward(self, x):
            return self.surrogate(x - 50)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.neuron = nn.Linear(8, 16), Neuron()

        def forward(self, x):
            return self.neuron(self.fc(x))

    assert said(nn.Sequential(Block(), nn.Linear(16, 3))) == ["'0.neuron' (Neuron) gives 0 whatever its inputs are"]


def test_calls_in_a_loop_are_one_observation():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.step = nn.Linear(8, 16), Heaviside()

        def forward(self, x):
            membrane, out = 0, 0
            for _ in range(4):
                membrane = membrane + self.fc(x).abs()
                out = out + self.step(membrane - 0.7)
            return out

    torch.manual_seed(0)
    network = Loop()
    with torch.no_grad(), listening(network) as heard:
        network(X)
    assert heard["step"].outputs.rows == 4 * 64
    assert 0 < heard["step"].rate < 1
    assert silent(heard) == []


HEALTHY = {
    "spiking": nn.Sequential(behind(LIF(0.9, num_steps=10), gain=4.0)[:2], SpikeCount()),
    "identity on silent inputs": nn.Sequential(behind(nn.Identity())),
    "sign": behind(Sign()),
    "relu": behind(nn.ReLU()),
    "sizes": nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 4)), nn.Flatten()),
}


@pytest.mark.parametrize("case", HEALTHY)
def test_what_works_is_left_alone(case):
    assert said(HEALTHY[case]) == []


def test_what_starts_at_zero_on_purpose_is_left_alone():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)
            nn.init.zeros_(self.fc.weight)
            nn.init.zeros_(self.fc.bias)
            self.gain = nn.Parameter(torch.zeros(8))

        def forward(self, x):
            return self.gain * self.fc(x)

    norm = nn.BatchNorm1d(8)
    nn.init.zeros_(norm.weight)
    assert said(nn.Sequential(Branch(), norm)) == []


@pytest.mark.parametrize("x", [torch.rand(4, 8), torch.ones(64, 8)])
def test_too_little_to_tell(x):
    assert said(behind(LIF(0.5, 50.0, num_steps=5))[:1] + behind(Sign(), bias=50.0)[1:2], x) == []


def test_truth_values_are_numbers():
    class Above(nn.Module):
        def forward(self, x):
            return x > self.threshold

    for threshold, problem in ((-1.0, "gives 1"), (0.5, ""), (2.0, "gives 0")):
        layer = Above()
        layer.threshold = threshold
        network = nn.Sequential(nn.Identity(), layer)
        expected = [f"'1' (Above) {problem} whatever its inputs are"] if problem else []
        assert said(network) == expected


def test_probes_are_not_heard():
    network = behind(Sign(), bias=50.0)
    with torch.no_grad(), listening(network) as heard, not_recording():
        network(X)
    assert heard == {}
    assert not network[1]._forward_hooks


def test_the_first_tensor_of_an_output():
    spikes = torch.ones(2, 3)
    for output in (spikes, (spikes, torch.zeros(1)), [None, spikes], {"spikes": spikes}, (spikes, {"v": 1})):
        assert first_tensor(output) is spikes
    for nothing in (None, 3, "text", torch.tensor(1.0), torch.zeros(0, 3), torch.arange(3), ()):
        assert first_tensor(nothing) is None


def test_other_libraries():
    snn = pytest.importorskip("snntorch")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(8, 16), snn.Leaky(0.5, threshold=50.0)

        def forward(self, x):
            membrane = self.lif.reset_mem()
            for _ in range(4):
                spikes, membrane = self.lif(self.fc(x), membrane)
            return spikes

    assert said(Net()) == ["'lif' (Leaky) never fires"]


def test_norse():
    norse = pytest.importorskip("norse.torch")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(8, 16), norse.LIFCell()

        def forward(self, x):
            state = None
            for _ in range(4):
                spikes, state = self.lif(self.fc(x), state)
            return spikes

    assert said(Net()) == ["'lif' (LIFCell) never fires"]


def test_spikingjelly():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    assert said(behind(neuron.LIFNode(v_threshold=50.0))) == ["'1' (LIFNode) never fires"]


def test_who_listens_is_not_on_the_tape():
    """Or the tape of the first steps would be another than that of all others, and be read a second time."""
    network = behind(nn.ReLU())

    def tape(listens):
        with torch.no_grad(), Recorder() as recorder, listening(network) if listens else nullcontext():
            network(X)
        return recorder.tape.key

    assert tape(True) == tape(False)
