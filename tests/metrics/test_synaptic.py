"""Synaptic operations, by loops over synapses and by NeuroBench."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_polystep.layers import LIF, QuantActivation, QuantConv2d, QuantLinear, SpikeCount
from lightning_polystep.metrics import LayerWatch, SynapticOperations


def counted(inputs, layer, samples):
    operations = SynapticOperations()
    operations.update(inputs, layer, samples)
    return {name: float(value) for name, value in operations.compute().items()}


def linear_by_loop(inputs, weight):
    """How many pairs of a non-zero input and a non-zero weight meet, and how many pairs there are."""
    effective = dense = 0
    for row in inputs.reshape(-1, inputs.shape[-1]).tolist():
        for outgoing in weight.tolist():
            for value, strength in zip(row, outgoing, strict=True):
                effective += value != 0 and strength != 0
                dense += 1
    return effective, dense


def conv2d_by_loop(inputs, layer):
    """The same for a convolution with zero padding, one synapse at a time."""
    effective = dense = 0
    samples, _, height, width = inputs.shape
    outputs, group_in, *kernel = layer.weight.shape
    per_group = outputs // layer.groups
    out_size = layer(inputs).shape[-2:]
    ranges = [
        range(samples),
        range(outputs),
        *(range(s) for s in out_size),
        range(group_in),
        *(range(k) for k in kernel),
    ]
    for n, o, y, x, c, i, j in itertools.product(*ranges):
        row = y * layer.stride[0] + i * layer.dilation[0] - layer.padding[0]
        column = x * layer.stride[1] + j * layer.dilation[1] - layer.padding[1]
        if 0 <= row < height and 0 <= column < width:
            dense += 1
            value = inputs[n, o // per_group * group_in + c, row, column]
            effective += bool(value != 0 and layer.weight[o, c, i, j] != 0)
    return effective, dense


def sparse(*shape, binary):
    values = torch.randn(shape).sign() if binary else torch.randn(shape)
    return values * (torch.rand(shape) < 0.4)


@given(
    leading=st.lists(st.integers(1, 4), max_size=3),
    features=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    binary=st.booleans(),
    seed=st.integers(0, 99),
)
def test_linear_equals_a_loop_over_synapses(leading, features, binary, seed):
    torch.manual_seed(seed)
    layer = nn.Linear(*features)
    with torch.no_grad():
        layer.weight *= torch.rand_like(layer.weight) < 0.6
    inputs = sparse(*leading, features[0], binary=binary)
    if not binary:
        inputs[..., 0] = 0.5
    effective, dense = linear_by_loop(inputs, layer.weight)
    expected = {"accumulates": effective * binary, "multiply_accumulates": effective * (not binary), "dense": dense}
    assert counted(inputs, layer, samples=2) == pytest.approx({name: value / 2 for name, value in expected.items()})


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": (2, 1)}, {"groups": 2, "padding": 1}]
)
def test_convolution_equals_a_loop_over_synapses(options):
    layer = nn.Conv2d(2, 4, 3, **options)
    with torch.no_grad():
        layer.weight *= torch.rand_like(layer.weight) < 0.6
    inputs = sparse(2, 2, 6, 5, binary=True)
    effective, dense = conv2d_by_loop(inputs, layer)
    assert counted(inputs, layer, samples=1) == {"accumulates": effective, "multiply_accumulates": 0, "dense": dense}


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
@pytest.mark.parametrize("padding_mode", ["zeros", "circular", "replicate"])
def test_convolution_equals_ones_convolved(kind, padding_mode):
    rank = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[kind]
    layer = kind(2, 3, 3, padding=1, padding_mode=padding_mode, bias=False)
    inputs = sparse(3, 2, *[4] * rank, binary=False)
    same = kind(2, 3, 3, padding=1, padding_mode=padding_mode, bias=False)
    nn.init.ones_(same.weight)
    result = counted(inputs, layer, samples=3)
    assert result["multiply_accumulates"] == pytest.approx(float(same((inputs != 0).float()).detach().sum()) / 3)
    assert result["dense"] == pytest.approx(float(same(torch.ones_like(inputs)).detach().sum()) / 3)
    assert counted(inputs[0], layer, samples=1)["dense"] == pytest.approx(result["dense"])


def test_padding_as_a_word():
    layer, inputs = nn.Conv2d(1, 1, 3, padding="same"), torch.ones(1, 1, 4, 4)
    assert counted(inputs, layer, samples=1) == counted(inputs, nn.Conv2d(1, 1, 3, padding=1), samples=1)


def test_quantised_layers_count_codes():
    layer = QuantLinear(4, 3, weight_format="ternary", input_quant=QuantActivation(bits=1, scale=0.5))
    inputs = torch.tensor([[0.1, 0.5, 2.0, -1.0]])
    effective, dense = linear_by_loop(torch.tensor([[0.0, 1.0, 1.0, 0.0]]), layer.weight_codes())
    assert counted(inputs, layer, samples=1) == {"accumulates": effective, "multiply_accumulates": 0, "dense": dense}
    convolution = QuantConv2d(1, 2, 3, weight_format="ternary")
    plain = nn.Conv2d(1, 2, 3)
    plain.weight.data = convolution.weight_codes().detach()
    image = torch.rand(2, 1, 5, 5)
    assert counted(image, convolution, samples=2) == counted(image, plain, samples=2)


def test_calls_for_the_same_samples_and_samples_apart():
    layer, whole, parts, apart = nn.Linear(3, 2), SynapticOperations(), SynapticOperations(), SynapticOperations()
    spikes = sparse(4, 5, 3, binary=True)
    whole.update(spikes, layer, samples=5)
    for step, inputs in enumerate(spikes):
        parts.update(inputs, layer, samples=0 if step else 5)
        apart.update(inputs, layer, samples=0)
        apart.compute()
    apart.add_samples(5)
    assert parts.compute() == whole.compute() == apart.compute()


def test_what_does_not_fit_is_refused():
    operations = SynapticOperations()
    with pytest.raises(TypeError, match=r"^SynapticOperations: layer must be .*, got ReLU[.]$"):
        operations.update(torch.ones(2, 3), nn.ReLU(), 2)
    with pytest.raises(
        ValueError, match=r"^SynapticOperations: the inputs of Linear.* must be \(..., 4\), got \(2, 3\)"
    ):
        operations.update(torch.ones(2, 3), nn.Linear(4, 1), 2)
    with pytest.raises(ValueError, match=r"^SynapticOperations: the inputs of Conv2d.* must be .*, got \(2, 3\)[.]$"):
        operations.update(torch.ones(2, 3), nn.Conv2d(4, 1, 3), 2)
    with pytest.raises(ValueError, match=r"^SynapticOperations: samples must be .*[.]$"):
        operations.update(torch.ones(2, 3), nn.Linear(3, 1), -1)


@pytest.mark.parametrize("binary", [True, False])
def test_equals_neurobench(binary):
    reference = pytest.importorskip("neurobench.metrics.workload").SynapticOperations()
    layers = [nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Linear(64, 10)]
    network = nn.Sequential(layers[0], nn.Flatten(), LIF(beta=0.9, num_steps=6), layers[1], SpikeCount())
    with torch.no_grad():
        layers[1].weight *= torch.rand_like(layers[1].weight) < 0.5
    batches = [sparse(samples, 1, 8, 8, binary=binary) for samples in (3, 5)]
    with LayerWatch(network) as watch:
        for inputs in batches:
            network(inputs)
            watch.count_samples(len(inputs))
    figures = watch.compute()
    # Apart, because NeuroBench runs copies of the layers, with copies of their hooks.
    for inputs in batches:
        hooks = [Hook(layers[0], inputs), Hook(layers[1], network[:3](inputs))]
        expected = reference(SimpleNamespace(connection_hooks=hooks), None, (inputs, None))
    assert float(figures["accumulates"]) == pytest.approx(expected["Effective_ACs"])
    assert float(figures["multiply_accumulates"]) == pytest.approx(expected["Effective_MACs"])
    assert float(figures["dense_operations"]) == pytest.approx(expected["Dense"])
    assert (expected["Effective_MACs"] == 0) == binary
    assert expected["Effective_ACs"] > 0


class Hook:
    """What NeuroBench's metric reads of its own hooks: a layer and what it was given."""

    def __init__(self, layer, given):
        self.layer, self.inputs, self.hook = layer, [given], self

    def remove(self):
        pass

    def register_hook(self):
        pass
