"""Converted spiking networks spike as the originals do, and what cannot be expressed is refused by name."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_polystep import Engine, PolyStep
from lightning_polystep.interop import ConversionError, from_snntorch, to_snntorch
from lightning_polystep.layers import LIF, RLIF, LastMembrane, Sign, SpikeCount, SpikeRate

snn = pytest.importorskip("snntorch", reason="snntorch is not installed (extra snntorch)")

STEPS = 12


def network(init_hidden=True, output=True, **options):
    options = {"beta": 0.8, "init_hidden": init_hidden, **options}
    return nn.Sequential(nn.Linear(5, 8), snn.Leaky(**options), nn.Linear(8, 3), snn.Leaky(output=output, **options))


def spikes_of(net, currents):
    """Run an snnTorch network step by step from rest, with or without states of its own."""
    for part in net.modules():
        if isinstance(part, snn.Leaky):
            part.reset_mem()
    states, record = {}, []
    for current in currents:
        output = current
        for place, part in enumerate(net):
            if isinstance(part, snn.Leaky) and not part.init_hidden:
                output, states[place] = part(output, states.get(place))
            else:
                output = part(output)
        record.append(output if isinstance(output, torch.Tensor) else output[0])
    return torch.stack(record), next(part for part in reversed(net) if isinstance(part, snn.Leaky)).mem


@given(
    reset=st.sampled_from(["subtract", "zero", "none"]),
    delay=st.booleans(),
    hidden=st.booleans(),
    threshold=st.sampled_from([1.0, 0.3, 0.0]),
    beta=st.sampled_from([0.0, 0.5, 0.95, 1.0, 1.5]),
    seed=st.integers(0, 100),
)
def test_spikes_are_equal_both_ways(reset, delay, hidden, threshold, beta, seed):
    torch.manual_seed(seed)
    original = network(hidden, beta=beta, threshold=threshold, reset_mechanism=reset, reset_delay=delay)
    # Of numbers with few digits a product is exact, whether of one step or of all of them at once.
    currents = (16 * torch.randn(STEPS, 4, 5)).round() / 8
    with torch.no_grad():
        for parameter in (p for part in original if isinstance(part, nn.Linear) for p in part.parameters()):
            parameter.copy_((16 * parameter).round() / 16)
        spikes, membrane = spikes_of(original, currents)
        converted = from_snntorch(original, readout="membrane")
        assert torch.equal(converted[:-1](currents).spikes, spikes)
        assert torch.equal(converted(currents), membrane)
        there_and_back = to_snntorch(converted)
        assert torch.equal(spikes_of(there_and_back, currents)[0], spikes)


@pytest.mark.parametrize(
    ("readout", "of_spikes"), [("count", lambda s: s.sum(0)), ("rate", lambda s: s.mean(0)), ("none", lambda s: s)]
)
def test_readouts_of_a_constant_input(readout, of_spikes):
    original, x = network(), 2 * torch.randn(4, 5)
    with torch.no_grad():
        spikes, _ = spikes_of(original, x.expand(STEPS, 4, 5))
        converted = from_snntorch(nn.Sequential(nn.Flatten(), *original), num_steps=STEPS, readout=readout)
        assert torch.equal(converted(x), of_spikes(spikes))


def test_learned_constants_stay_learned():
    original = network(beta=torch.full((8,), 0.7), threshold=0.5, learn_beta=True, learn_threshold=True)[:2]
    converted = from_snntorch(original)
    assert isinstance(converted[1].beta, nn.Parameter)
    assert isinstance(converted[1].threshold, nn.Parameter)
    back = to_snntorch(converted)
    assert torch.equal(back[1].beta, original[1].beta)
    assert isinstance(back[1].threshold, nn.Parameter)
    with torch.no_grad():
        converted[1].beta.zero_()
    assert bool((original[1].beta == 0.7).all()), "constants are copied"


@pytest.mark.parametrize("copy", [True, False])
def test_weights_are_shared_on_request(copy):
    original = network()
    converted = from_snntorch(original, copy=copy)
    assert (converted[0].weight is original[0].weight) is not copy
    assert (to_snntorch(converted, copy=copy)[0].weight is converted[0].weight) is not copy


class Tutorial(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(5, 3), snn.Leaky(0.9)

    def forward(self, x):
        return self.lif(self.fc(x))


class Own(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


def one(**options):
    return nn.Sequential(nn.Linear(5, 3), snn.Leaky(0.9, init_hidden=True, **options))


REFUSED = {
    "a class": (Tutorial, "Tutorial has a forward of its own"),
    "a Sequential of its own": (lambda: nn.Sequential(Own(nn.Linear(5, 3), snn.Leaky(0.9))), "Own has a forward"),
    "state_quant": (lambda: one(state_quant=torch.round), "state_quant"),
    "graded spikes": (lambda: one(graded_spikes_factor=2.0), "graded_spikes_factor"),
    "learned graded spikes": (lambda: one(learn_graded_spikes_factor=True), "learn_graded_spikes_factor"),
    "a spike function of the user": (lambda: one(spike_grad=torch.sign), "spike_grad"),
    "another neuron": (
        lambda: nn.Sequential(nn.Linear(5, 3), snn.Synaptic(alpha=0.9, beta=0.8, init_hidden=True)),
        "Synaptic is not snntorch.Leaky",
    ),
    "an immediate reset below 0": (
        lambda: one(reset_mechanism="zero", reset_delay=False, threshold=-0.5),
        "threshold below 0",
    ),
    "a norm": (lambda: nn.Sequential(nn.BatchNorm1d(5), *one()), "BatchNorm1d"),
    "no neuron": (lambda: nn.Sequential(nn.Linear(5, 3)), "no snntorch.Leaky"),
    "no neuron at the end": (lambda: nn.Sequential(*one(), nn.Linear(3, 3)), 'readout="none"'),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_expressed_is_refused(case):
    make, message = REFUSED[case]
    with pytest.raises(ConversionError, match=message):
        from_snntorch(make())


def test_inhibition_is_refused():
    with pytest.warns(UserWarning, match="Inhibition"):
        net = one(inhibition=True)
    with pytest.raises(ConversionError, match="inhibition"):
        from_snntorch(net)


def test_a_misspelt_readout_is_refused():
    with pytest.raises(ConversionError, match="readout"):
        from_snntorch(network(), readout="counts")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([LIF(0.9)], "ge"),
        ([LIF(0.9, -1.0, spike_on="gt")], "threshold below 0"),
        ([RLIF(3, 0.9)], "no counterpart"),
        ([Sign(), SpikeCount()], "no counterpart"),
        ([SpikeRate(), LIF(0.9, spike_on="gt"), LastMembrane()], "no counterpart"),
    ],
)
def test_what_snntorch_has_not_is_refused(layers, message):
    with pytest.raises(ConversionError, match=message):
        to_snntorch(nn.Sequential(nn.Linear(3, 3), *layers))
    with pytest.raises(ConversionError, match="forward of its own"):
        to_snntorch(Own(*layers))


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_a_converted_network_is_scored_by_outcome(reset):
    module, x, y = nn.Module(), torch.rand(32, 5), torch.randint(3, (32,))
    module.network = from_snntorch(network(reset_mechanism=reset), num_steps=STEPS)
    module.criterion = nn.CrossEntropyLoss()
    engine = Engine(module, PolyStep(module.parameters(), seed=0), announce=None)
    engine.step(lambda: module.criterion(module.network(x), y))
    assert {a.tier.name for a in engine.plan.assignments} == {"outcome"}


@pytest.mark.parametrize("training", [True, False])
def test_every_layer_is_in_the_mode_of_the_original(training):
    original = nn.Sequential(nn.Linear(4, 3), snn.Leaky(beta=0.9, init_hidden=True)).train(training)
    converted = from_snntorch(original)
    assert {part.training for part in converted.modules()} == {training}
    assert {part.training for part in to_snntorch(converted).modules()} == {training}


class Tutorial(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("make", "cure"),
    [
        (Tutorial, "put its layers into an nn.Sequential"),
        (lambda: nn.Sequential(nn.Linear(2, 2)), "give the nn.Sequential that holds"),
        (lambda: nn.Sequential(nn.Linear(2, 2), snn.Synaptic(0.9, 0.8)), "use Leaky, build the network of"),
        (lambda: nn.Sequential(nn.Linear(2, 2), snn.Leaky(0.9, state_quant=lambda x: x)), "leave it out"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.Dropout(), snn.Leaky(0.9)), "Train the network as it is"),
    ],
)
def test_every_refusal_names_a_cure(make, cure):
    with pytest.raises(ConversionError, match=cure):
        from_snntorch(make())
