"""Spikes in the readers of other libraries are the network's, one for one."""

import warnings

import pytest
import torch
from hypothesis import assume, given, settings
from torch import nn

pytest.importorskip("nir")

import nir

from lightning_polystep.exports import check_nir, to_nir
from lightning_polystep.exports.nir_check import run_steps
from lightning_polystep.layers import LIF
from tests.exports.networks import lif_stacks, loud, spiking_convolutions

# Leaks for which Norse's own equation, v + (x - v) dt / tau, does not round.
EXACT_IN_NORSE = [0.5, 0.75, 0.875]


def compared(network, shape, inputs, folder):
    path = folder / "net.nir"
    nir.write(path, to_nir(network, shape))
    return check_nir(network, nir.read(path), inputs)


@given(lif_stacks(spike_on="gt"))
@settings(max_examples=20)
def test_stacks_in_snntorch(tmp_path_factory, case):
    pytest.importorskip("snntorch")
    network, shape, inputs = case
    assume(loud(network, inputs))
    found = compared(network, shape, inputs, tmp_path_factory.mktemp("nir"))
    assert sum("in snnTorch" in parity.what for parity in found) == sum(isinstance(x, LIF) for x in network)
    assert [str(parity) for parity in found if parity.unequal] == []


@given(spiking_convolutions(spike_on="gt"))
@settings(max_examples=20)
def test_convolutions_in_snntorch(tmp_path_factory, case):
    pytest.importorskip("snntorch")
    network, shape, inputs = case
    assume(loud(network, inputs))
    found = compared(network, shape, inputs, tmp_path_factory.mktemp("nir"))
    assert sum("in snnTorch" in parity.what for parity in found) == 3
    assert [str(parity) for parity in found if parity.unequal] == []


def spikes_in_norse(network, shape, inputs):
    norse = pytest.importorskip("norse.torch")
    graph = to_nir(network, shape, unit_resistance=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls what newer versions of its own parts deprecate
        reader = norse.from_nir(graph, dt=graph.metadata["dt"])
        steps = graph.metadata.get("num_steps")
        with torch.no_grad():
            samples = inputs.unbind(0 if steps is not None else 1)
            return torch.stack([run_steps(reader, sample, steps) for sample in samples], 1)


@given(lif_stacks(leaks=EXACT_IN_NORSE, spike_on="gt"))
@settings(max_examples=20)
def test_stacks_in_norse(case):
    network, shape, inputs = case
    assume(loud(network, inputs))
    layers = [layer for layer in network if isinstance(layer, nn.Linear | LIF)]
    assert torch.equal(spikes_in_norse(network, shape, inputs), nn.Sequential(*layers)(inputs))


@given(spiking_convolutions(leaks=EXACT_IN_NORSE, spike_on="gt"))
@settings(max_examples=20)
def test_convolutions_in_norse(case):
    network, shape, inputs = case
    assume(loud(network, inputs))
    assert torch.equal(spikes_in_norse(network, shape, inputs), network(inputs))


def test_a_file_of_another_network_is_found_out():
    torch.manual_seed(0)
    first, second = (nn.Sequential(nn.Linear(4, 5), LIF(0.9, 0.3, num_steps=6, spike_on="gt")) for _ in range(2))
    found = check_nir(first, to_nir(second, (4,)), torch.rand(8, 4))
    assert all(parity.unequal for parity in found)
    assert "DIFFER" in str(found[0])


def test_a_graph_that_snntorch_does_not_read_is_named():
    pytest.importorskip("snntorch")
    network = nn.Sequential(LIF(0.9, torch.tensor([1.0, 2.0]), num_steps=3, spike_on="gt"))
    with pytest.warns(UserWarning, match="snnTorch's reader does not take this graph .*v_threshold must be same"):
        found = check_nir(network, to_nir(network, (2,)), torch.rand(4, 2))
    assert [parity.unequal for parity in found] == [0, 0]
