import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

pytest.importorskip("nir")

import nir

from lightning_polystep.exports import from_nir, to_nir
from lightning_polystep.interop import ConversionError
from lightning_polystep.layers import LIF, OverTime
from tests.exports.networks import lif_stacks, spiking_convolutions


@given(lif_stacks(spike_on="gt"))
@settings(max_examples=20)
def test_a_stack_comes_back_bit_for_bit_through_a_file(tmp_path_factory, case):
    network, shape, inputs = case
    path = tmp_path_factory.mktemp("nir") / "net.nir"
    nir.write(path, to_nir(network, shape))
    back = from_nir(nir.read(path))
    assert torch.equal(back(inputs), network(inputs))
    for ours, theirs in zip(network, back, strict=True):
        assert type(ours) is type(theirs)
        for name, tensor in ours.state_dict().items():
            value = theirs.state_dict()[name]
            assert torch.equal(tensor.clamp(0, 1) if name == "beta" else tensor, value.expand_as(tensor)) or (
                torch.equal(tensor.expand_as(value), value)
            )


@given(spiking_convolutions(spike_on="gt"))
@settings(max_examples=20)
def test_a_network_of_convolutions_comes_back_bit_for_bit(case):
    network, shape, inputs = case
    back = from_nir(to_nir(network, shape))
    assert torch.equal(back(inputs), network(inputs))
    assert [type(layer) for layer in back] == [type(layer) for layer in network]


def lif(**changes):
    ones = np.ones(3)
    values = {"tau": 1e-3 * ones, "r": 10 * ones, "v_leak": 0 * ones, "v_threshold": ones, "v_reset": 0 * ones}
    return nir.LIF(**{**values, **{name: value * ones for name, value in changes.items()}})


def test_an_input_gain_becomes_a_threshold():
    back = from_nir(nir.NIRGraph.from_list(lif(r=5.0)), dt=1e-4)
    assert torch.equal(back[0].threshold, torch.tensor(2.0))
    assert float(back[0].beta) == np.float32(0.9)
    assert back[0].spike_on == "gt"


def test_an_integrate_and_fire_node_keeps_all():
    node = nir.IF(r=np.full(3, 2.0), v_threshold=np.array([1.0, 2.0, 3.0]))
    back = from_nir(nir.NIRGraph.from_list(node))
    assert float(back[0].beta) == 1
    assert back[0].threshold.tolist() == [0.5, 1.0, 1.5]


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (lif(v_leak=0.1), "another v_leak"),
        (lif(v_reset=0.1), "another v_reset"),
        (lif(tau=1e-5), "longer than the neurons' time constant"),
        (nir.Scale(np.ones(3)), "a node Scale of NIR has no layer here"),
    ],
)
def test_what_has_no_layer_here_is_refused(node, reason):
    with pytest.raises(ConversionError, match=reason):
        from_nir(nir.NIRGraph.from_list(node), dt=1e-4)


def test_a_graph_that_recurs_is_refused():
    nodes = {
        "input": nir.Input(np.array([3])),
        "lif": lif(),
        "back": nir.Linear(np.eye(3)),
        "output": nir.Output(np.array([3])),
    }
    edges = [("input", "lif"), ("lif", "back"), ("back", "lif"), ("lif", "output")]
    with pytest.raises(ConversionError, match="branches or recurs"):
        from_nir(nir.NIRGraph(nodes, edges))


def test_a_graph_of_another_library_is_read_spike_for_spike():
    snntorch = pytest.importorskip("snntorch")
    export_to_nir = pytest.importorskip("snntorch.export_nir").export_to_nir

    def leaky(neurons):
        constants = {"beta": torch.full((neurons,), 0.9), "threshold": torch.ones(neurons)}
        return snntorch.Leaky(**constants, init_hidden=True, reset_mechanism="zero", reset_delay=False)

    theirs = nn.Sequential(nn.Linear(6, 8), leaky(8), nn.Linear(8, 3), leaky(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it calls what nirtorch deprecates
        graph = export_to_nir(theirs, torch.zeros(1, 6), ignore_dims=[0])
    ours = from_nir(graph)
    inputs = torch.rand(9, 5, 6) * 3
    snntorch.utils.reset(theirs)
    with torch.no_grad():
        spikes = torch.stack([theirs(step) for step in inputs])
    assert 0 < spikes.mean() < 1
    assert torch.equal(ours(inputs), spikes)


def test_num_steps_are_those_of_the_graph_unless_told():
    graph = to_nir(nn.Sequential(LIF(num_steps=4, spike_on="gt")), (3,))
    assert from_nir(graph)[0].num_steps == 4
    assert from_nir(graph, num_steps=9)[0].num_steps == 9
    assert from_nir(graph, num_steps=0)[0].num_steps is None
    pooled = to_nir(nn.Sequential(LIF(num_steps=4, spike_on="gt"), OverTime(nn.MaxPool2d(2))), (1, 4, 4))
    assert isinstance(from_nir(pooled)[1].layer, nn.MaxPool2d)
